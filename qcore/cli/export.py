"""`python -m qcore export`: a model in a form that other programs run."""

from pathlib import Path
from typing import Annotated

import typer

from qcore.base.errors import InputError
from qcore.cli.progress import Show

TARGETS = ("onnx",)


def export(
    model: Annotated[
        str,
        typer.Argument(
            metavar="MODEL", help="smollm2-135m, a hub id, a folder, or a GGUF file", show_default=False
        ),
    ],
    out: Annotated[Path, typer.Option(help="Folder to export into", metavar="DIR", show_default=False)],
    to: Annotated[str, typer.Option(help="Form to export to: onnx", metavar="FORM")] = "onnx",
    recipe: Annotated[
        str | None,
        typer.Option(help="fp32, onnx-int8, or integers such as int4-g64-gptq; without it, as it is"),
    ] = None,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace a model that was exported there")
    ] = False,
    revision: Annotated[str | None, typer.Option(help="Branch, tag or commit on the hub")] = None,
    calibration: Annotated[
        str | None, typer.Option(help="Text that methods such as gptq read", metavar="FILE")
    ] = None,
    calibration_tokens: Annotated[int, typer.Option(help="Tokens of it that are read")] = 16384,
) -> int:
    """Export MODEL (or a folder that quantize wrote) with a key-value cache, for ONNX Runtime; the folder
    holds a program that runs it."""
    from qcore.base.registry import unknown
    from qcore.recipes import parse
    from qcore.results import report
    from qcore.verbs.export import export_to

    if to not in TARGETS:
        raise unknown("form", to, TARGETS)
    if recipe is not None and ("," in recipe or not recipe.strip()):
        raise InputError(f"--recipe takes one recipe, but got {recipe!r}.")
    chosen = None if recipe is None else parse(recipe)
    with Show() as show:
        result = export_to(
            model,
            chosen,
            out,
            revision=revision,
            overwrite=overwrite,
            calibration=calibration,
            calibration_tokens=calibration_tokens,
            progress=show,
        )
    size, bits, found = (
        report.human_bytes(result["stored_bytes"]),
        report.human_number(result["bits_per_weight"]),
        result["agreement"],
    )
    print(
        f"{result['recipe']}: {size}, {bits} bits a weight. Logits within {max(found['prefill'], found['decode']):.1g} of PyTorch's "
        f"({found['tokens']} tokens, the last {found['decoded']} through the cache). Exported to {out}"
    )
    return 0
