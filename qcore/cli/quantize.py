"""`qcore quantize` and `qcore export`: one model, one recipe, saved in one folder."""

from pathlib import Path
from typing import Annotated

import typer

from qcore.base.errors import InputError
from qcore.base.executor import LOCAL
from qcore.cli import options
from qcore.cli.output import write_output
from qcore.cli.progress import Show
from qcore.cli.runs import start
from qcore.library import exports
from qcore.recipes.spec import RunSpec


def quantize(
    model: options.Model,
    recipe: Annotated[
        str, typer.Option(help="One of qcore's own recipes; `recipes` lists them", show_default=False)
    ],
    out: Annotated[
        Path | None, typer.Option(help="Output folder (default: named after model and recipe)", metavar="DIR")
    ] = None,
    skip: options.Skip = None,
    overwrite: options.Overwrite = False,
    revision: options.Revision = None,
    calibration: options.Calibration = None,
    calibration_tokens: options.CalibrationTokens = RunSpec.calibration_tokens,
    calibration_minutes: options.CalibrationMinutes = None,
    imatrix: options.Imatrix = None,
    device: options.Device = "cpu",
    stream: Annotated[
        bool, typer.Option("--stream", help="Quantize one tensor at a time, for models larger than memory")
    ] = False,
    engine: options.EngineName = LOCAL,
    address: options.Address = None,
) -> int:
    """Quantize MODEL and save it as safetensors, in a folder that eval, bench and qcore.load accept as
    a model."""
    from qcore.base.executor import Executor
    from qcore.cli.outcomes import quantized
    from qcore.jobs.kind_folder import QuantizeRequest
    from qcore.verbs import quantize as verb
    from qcore.verbs.prepare import CalibrationText
    from qcore.verbs.record import safe_name

    chosen, where = options.one_recipe(recipe, skip), Executor(engine, address)
    folder = out if out is not None else Path(safe_name(model, chosen.name))
    if stream and device != "cpu":
        raise InputError("A streamed quantization runs on the CPU. Leave out --device, or --stream.")
    if stream:
        request = QuantizeRequest(
            model=model,
            revision=revision,
            recipe=chosen,
            out=str(folder),
            overwrite=overwrite,
            engine=engine,
            address=address,
        )
        return start(request)
    with Show() as show:
        result = verb.run(
            model,
            chosen,
            folder,
            revision=revision,
            overwrite=overwrite,
            calibration=CalibrationText(calibration, calibration_tokens, calibration_minutes, imatrix),
            device=device,
            engine=where,
            progress=show,
        )
    return write_output(None, None, quantized(result))


def export(
    model: options.Model,
    out: Annotated[Path, typer.Option(help="Output folder", metavar="DIR", show_default=False)],
    to: Annotated[str, typer.Option(help=f"Target: {', '.join(exports.TARGETS)}", metavar="TARGET")] = "onnx",
    recipe: Annotated[
        str | None,
        typer.Option(help="A recipe that the target can express, such as int4-g64-gptq (default: as it is)"),
    ] = None,
    skip: options.Skip = None,
    overwrite: options.Overwrite = False,
    revision: options.Revision = None,
    calibration: options.Calibration = None,
    calibration_tokens: options.CalibrationTokens = RunSpec.calibration_tokens,
    imatrix: options.Imatrix = None,
) -> int:
    """Export MODEL (or a folder that quantize wrote) for another project's code. The folder holds everything
    that the model needs there."""
    from qcore.jobs.kind_folder import ExportRequest

    request = ExportRequest(
        model=model,
        revision=revision,
        recipe=options.one_recipe(recipe, skip),
        to=to,
        out=str(out),
        overwrite=overwrite,
        calibration=calibration,
        calibration_tokens=calibration_tokens,
        imatrix=imatrix,
    )
    return start(request)


def imatrix(
    model: options.Model,
    out: Annotated[Path, typer.Option(help="File to write", metavar="FILE")] = Path("imatrix.gguf"),
    revision: options.Revision = None,
    calibration: Annotated[
        str | None, typer.Option(help="UTF-8 calibration text (default: the packaged text)", metavar="FILE")
    ] = None,
    calibration_tokens: options.CalibrationTokens = RunSpec.calibration_tokens,
    device: options.Device = "cpu",
) -> int:
    """Write the importance of the inputs of MODEL's weights as llama.cpp's importance matrix, for its own
    quantizer."""
    from qcore.verbs import imatrix as verb
    from qcore.verbs.prepare import CalibrationText

    with Show() as show:
        result = verb.run(
            model,
            out,
            revision=revision,
            calibration=CalibrationText(calibration, calibration_tokens),
            device=device,
            progress=show,
        )
    words = f"{result.path}: the importance of the inputs of {result.weights} weights, over "
    return write_output(None, None, f"{words}{result.tokens:,} tokens of {result.text}")
