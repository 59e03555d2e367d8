"""Models written into folders without training or pruning: exported for another project's code, or quantized
from disk to disk."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from qcore.base.executor import LOCAL, Executor
from qcore.base.files import expanded
from qcore.base.progress import Progress
from qcore.jobs.kind import Context, JobKind, JobRequest, check_output
from qcore.recipes.spec import RunSpec

if TYPE_CHECKING:
    from qcore.recipes import Recipe


@dataclass(frozen=True, kw_only=True)
class FolderRequest(JobRequest):
    """A request that writes into the folder `out`."""

    out: str
    overwrite: bool = False

    @classmethod
    def read(cls, record: dict) -> dict:
        """Return the fields of a record, with dictionaries converted to objects."""
        from qcore.recipes import Recipe

        return record | {"recipe": record["recipe"] and Recipe.from_dict(record["recipe"])}

    def absolute(self):
        """Return the same request with relative paths made absolute."""
        return replace(super().absolute(), out=str(expanded(self.out).absolute()))


@dataclass(frozen=True, kw_only=True)
class ExportRequest(FolderRequest):
    """An export for the target `to` (see `qcore.library.exports`), of the unchanged model or under `recipe`.
    Methods that need calibration read `calibration_tokens` of the text `calibration`, or the importance
    matrix in the file `imatrix`."""

    kind: ClassVar[str] = "export"
    FILES: ClassVar[tuple[str, ...]] = ("calibration", "imatrix")
    recipe: Recipe | None = None
    to: str = "onnx"
    calibration: str | None = None
    calibration_tokens: int = RunSpec.calibration_tokens
    imatrix: str | None = None

    def __post_init__(self):
        from qcore.library import exports

        super().__post_init__()
        exports.check_name(self.to)

    def check(self, progress: Progress) -> None:
        """Raise `InputError` for a model or recipe that the target cannot express, or a folder that is not
        empty."""
        from qcore.verbs import export

        export.check(
            self.model,
            self.recipe,
            Path(self.out),
            to=self.to,
            revision=self.revision,
            overwrite=self.overwrite,
            calibration=self.text,
            progress=progress,
        )

    @property
    def text(self):
        """The calibration text."""
        from qcore.verbs.prepare import CalibrationText

        return CalibrationText(self.calibration, self.calibration_tokens, imatrix=self.imatrix)


@dataclass(frozen=True, kw_only=True)
class QuantizeRequest(FolderRequest):
    """A streamed quantization with `recipe`: tensor by tensor, from file to file. The engine "ray" spreads
    the shards over the cluster at `address`."""

    kind: ClassVar[str] = "quantize"
    recipe: Recipe
    engine: str = LOCAL
    address: str | None = None

    def __post_init__(self):
        super().__post_init__()
        Executor(self.engine, self.address)

    def check(self, progress: Progress) -> None:
        """Raise `InputError` for a recipe that cannot be streamed, or an unusable model or folder."""
        from qcore.library import safetensors
        from qcore.streaming import quantizing

        Executor(self.engine, self.address).check()
        safetensors.check_target(self.recipe, Path(self.out), overwrite=self.overwrite)
        quantizing.check(self.recipe)
        check_output(self, self.out, self.overwrite, progress)


class Export(JobKind):
    """Export for another project's code."""

    name, title = "export", "Export"
    request = ExportRequest

    def describe(self, record: dict) -> str:
        """Return the form and the recipe."""
        recipe = f", {record['recipe']['name']}" if record.get("recipe") else ""
        return f"exported to {record['to']}{recipe}"

    def run(self, request: ExportRequest, context: Context) -> dict:
        """Export the model and return its sizes."""
        from qcore.verbs import export

        return export.run(
            request.model,
            request.recipe,
            Path(request.out),
            to=request.to,
            revision=request.revision,
            overwrite=request.overwrite,
            calibration=request.text,
            progress=context.progress,
        )


class StreamedQuantization(JobKind):
    """Quantization from disk to disk; finished shards are kept."""

    name, title, resumes = "quantize", "Quantize from disk", True
    request = QuantizeRequest

    def describe(self, record: dict) -> str:
        """Return the recipe."""
        return f"{record['recipe']['name']}, streamed"

    def run(self, request: QuantizeRequest, context: Context) -> dict:
        """Quantize the model and return its sizes."""
        from qcore.verbs import quantize

        return quantize.run(
            request.model,
            request.recipe,
            Path(request.out),
            revision=request.revision,
            overwrite=request.overwrite,
            stream=True,
            engine=Executor(request.engine, request.address),
            progress=context.progress,
        )
