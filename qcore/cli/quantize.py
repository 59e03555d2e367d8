"""`qcore quantize` and `qcore export`: one model, one recipe, saved in one folder."""

from pathlib import Path
from typing import Annotated

import typer

from qcore.base.executor import LOCAL
from qcore.cli import options
from qcore.cli.progress import Show
from qcore.recipes.spec import RunSpec

TARGETS = ("onnx",)


def quantize(
    model: options.Model,
    recipe: Annotated[
        str, typer.Option(help="One of qcore's own recipes; `recipes` lists them", show_default=False)
    ],
    out: Annotated[
        Path | None,
        typer.Option(help="Folder to save into; without it, named after model and recipe", metavar="DIR"),
    ] = None,
    skip: options.Skip = None,
    overwrite: options.Overwrite = False,
    revision: options.Revision = None,
    calibration: options.Calibration = None,
    calibration_tokens: options.CalibrationTokens = RunSpec.calibration_tokens,
    calibration_minutes: options.CalibrationMinutes = None,
    stream: Annotated[
        bool, typer.Option("--stream", help="One tensor at a time, for models larger than memory")
    ] = False,
    engine: options.EngineName = LOCAL,
    address: options.Address = None,
) -> int:
    """Quantize MODEL and save it as safetensors, in a folder that eval, bench and qcore.load take as a
    model."""
    from qcore.base.executor import Engine
    from qcore.results import report
    from qcore.verbs import quantize as verb
    from qcore.verbs.prepare import CalibrationText
    from qcore.verbs.record import safe_name

    chosen, where = options.one_recipe(recipe, skip), Engine(engine, address)
    folder = out if out is not None else Path(safe_name(model, chosen.name))
    with Show() as show:
        result = verb.run(
            model,
            chosen,
            folder,
            revision=revision,
            overwrite=overwrite,
            calibration=CalibrationText(calibration, calibration_tokens, calibration_minutes),
            stream=stream,
            engine=where,
            progress=show,
        )
    size, share = report.human_bytes(result["stored_bytes"]), report.human_percent(result["coverage"])
    bits = report.human_number(result["bits_per_weight"])
    print(f"{chosen.name}: {size}, {bits} bits per weight on {share} of the weights. Saved in {folder}")
    return 0


def export(
    model: options.Model,
    out: Annotated[Path, typer.Option(help="Folder to export into", metavar="DIR", show_default=False)],
    to: Annotated[str, typer.Option(help="Form to export to: onnx", metavar="FORM")] = "onnx",
    recipe: Annotated[
        str | None,
        typer.Option(help="fp32, onnx-int8, or integers such as int4-g64-gptq; without it, as it is"),
    ] = None,
    overwrite: options.Overwrite = False,
    revision: options.Revision = None,
    calibration: options.Calibration = None,
    calibration_tokens: options.CalibrationTokens = RunSpec.calibration_tokens,
) -> int:
    """Export MODEL (or a folder that quantize wrote) with a key-value cache, for ONNX Runtime; the folder
    holds a program that runs it."""
    from qcore.base.registry import unknown
    from qcore.results import report
    from qcore.verbs import export as verb
    from qcore.verbs.prepare import CalibrationText

    if to not in TARGETS:
        raise unknown("form", to, TARGETS)
    chosen = options.one_recipe(recipe)
    with Show() as show:
        result = verb.run(
            model,
            chosen,
            out,
            revision=revision,
            overwrite=overwrite,
            calibration=CalibrationText(calibration, calibration_tokens),
            progress=show,
        )
    size, bits = report.human_bytes(result["stored_bytes"]), report.human_number(result["bits_per_weight"])
    found = result["agreement"]
    print(
        f"{result['recipe']}: {size}, {bits} bits per weight. Logits within "
        f"{max(found['prefill'], found['decode']):.1g} of PyTorch's ({found['tokens']} tokens, the last "
        f"{found['decoded']} through the cache). Exported to {out}"
    )
    return 0
