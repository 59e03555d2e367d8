"""Models made from others: quantization-aware training, pruning, distillation. The model is saved in the
folder `out`, or in a folder of its own:

    QCORE_HOME/made/NAME-RUN_ID

A stopped training resumes when the same request is submitted again.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from qcore.base.files import expanded
from qcore.base.home import home
from qcore.base.progress import Progress
from qcore.jobs.kind import Context, JobKind, JobRequest, check_output
from qcore.results.folder import RunFolder
from qcore.verbs.record import safe_name

if TYPE_CHECKING:
    from qcore.recipes import Recipe
    from qcore.training.distill import Distill
    from qcore.training.qat import Qat
    from qcore.verbs.prune import Prune


@dataclass(frozen=True, kw_only=True)
class MakeRequest(JobRequest, ABC):
    """`out`: the folder to save into (None: a new folder in the cache folder); with `compare` the models
    before and after are measured."""

    out: str | None = None
    overwrite: bool = False
    compare: bool = False
    device: str = "cpu"

    @property
    @abstractmethod
    def name(self) -> str:
        """Return a folder name that describes the model."""

    def check(self, progress: Progress) -> None:
        """Raise `InputError` for an unusable model or folder."""
        if self.out is not None:
            check_output(self, self.out, self.overwrite, progress)

    def folder(self, run: RunFolder) -> Path:
        """Return the output folder: two requests never share one unless they name it."""
        return Path(self.out) if self.out is not None else home() / "made" / f"{self.name}-{run.run_id}"

    def absolute(self):
        """Return the same request with relative paths made absolute."""
        from dataclasses import replace

        out = None if self.out is None else str(expanded(self.out).absolute())
        return replace(super().absolute(), out=out)


@dataclass(frozen=True, kw_only=True)
class QatRequest(MakeRequest):
    """Quantization-aware training in the form of `recipe`, see `qcore.training.qat`."""

    kind: ClassVar[str] = "qat"
    FILES: ClassVar[tuple[str, ...]] = ("options.text", "options.validation")
    recipe: Recipe
    options: Qat

    def __post_init__(self):
        from qcore.training.qat import check_recipe

        super().__post_init__()
        check_recipe(self.recipe)

    @classmethod
    def read(cls, record: dict) -> dict:
        """Return the fields of a record, with dictionaries converted to objects."""
        from qcore.recipes import Recipe
        from qcore.training.attach import TrainableSet
        from qcore.training.loop import Schedule
        from qcore.training.qat import Qat

        options = dict(record["options"])
        form, schedule = TrainableSet(**options.pop("form")), Schedule(**options.pop("schedule"))
        return record | {
            "recipe": Recipe.from_dict(record["recipe"]),
            "options": Qat(form=form, schedule=schedule, **options),
        }

    @property
    def name(self) -> str:
        """Return a folder name that describes the model."""
        return safe_name(self.model, f"{self.recipe.name}-trained")


@dataclass(frozen=True, kw_only=True)
class PruneRequest(MakeRequest):
    """Pruning, see `qcore.verbs.prune`."""

    kind: ClassVar[str] = "prune"
    FILES: ClassVar[tuple[str, ...]] = ("options.calibration",)
    options: Prune

    @classmethod
    def read(cls, record: dict) -> dict:
        """Return the fields of a record, with dictionaries converted to objects."""
        from qcore.recipes import Recipe
        from qcore.verbs.prune import Prune

        options = dict(record["options"])
        recipe = options.pop("recipe")
        return record | {"options": Prune(recipe=recipe and Recipe.from_dict(recipe), **options)}

    @property
    def name(self) -> str:
        """Return a folder name that describes the model."""
        options = self.options
        suffix = "" if options.recipe is None else f"-{options.recipe.name}"
        method = options.method.replace(":", "of")
        return safe_name(self.model, f"{method}-{round(100 * options.amount)}{suffix}")


@dataclass(frozen=True, kw_only=True)
class DistillRequest(MakeRequest):
    """Distillation, see `qcore.training.distill`."""

    kind: ClassVar[str] = "distill"
    FILES: ClassVar[tuple[str, ...]] = ("options.text", "options.validation")
    options: Distill

    @classmethod
    def read(cls, record: dict) -> dict:
        """Return the fields of a record, with dictionaries converted to objects."""
        from qcore.training.distill import Distill
        from qcore.training.loop import Schedule

        options = dict(record["options"])
        return record | {"options": Distill(schedule=Schedule(**options.pop("schedule")), **options)}

    @property
    def name(self) -> str:
        """Return a folder name that describes the model."""
        return safe_name(self.model, f"{self.options.layers}-layers")


class Training(JobKind):
    """Quantization-aware training."""

    name, title, resumes = "qat", "Quantization-aware training", True
    request = QatRequest

    def describe(self, record: dict) -> str:
        """Return the recipe."""
        return f"{record['recipe']['name']} trained"

    def run(self, request: QatRequest, context: Context) -> dict:
        """Train, and save the model."""
        from qcore.verbs import qat

        return qat.run(
            request.model,
            request.recipe,
            request.options,
            **_common(request, context),
            device=request.device,
            watch=context.watch,
        )


class Pruning(JobKind):
    """Pruning."""

    name, title = "prune", "Prune"
    request = PruneRequest

    def describe(self, record: dict) -> str:
        """Return method, share and recipe."""
        options = record["options"]
        recipe = f", {options['recipe']['name']}" if options["recipe"] else ""
        return f"{options['method']} {options['amount']:.0%} pruned{recipe}"

    def run(self, request: PruneRequest, context: Context) -> dict:
        """Prune, and save the model."""
        from qcore.verbs import prune

        return prune.run(request.model, request.options, **_common(request, context))


class Distillation(JobKind):
    """Distillation."""

    name, title, resumes = "distill", "Distill", True
    request = DistillRequest

    def describe(self, record: dict) -> str:
        """Return the size of the student."""
        return f"distilled to {record['options']['layers']} layers"

    def run(self, request: DistillRequest, context: Context) -> dict:
        """Train the student, and save it."""
        from qcore.verbs import distill

        return distill.run(
            request.model,
            request.options,
            **_common(request, context),
            device=request.device,
            watch=context.watch,
        )


def _common(request: MakeRequest, context: Context) -> dict:
    return {
        "folder": request.folder(context.folder),
        "revision": request.revision,
        "overwrite": request.overwrite,
        "compare": request.compare,
        "progress": context.progress,
    }
