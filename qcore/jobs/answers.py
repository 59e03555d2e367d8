"""What the pages need torch or transformers for. The worker process computes it (see `resident.py`).

A function here takes and returns plain data (see `wire.py`). One with the parameter `progress` reports its
steps, and can be cancelled between two of them.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from pathlib import Path
from threading import Lock
from typing import TYPE_CHECKING, Any

from qcore.base.errors import InputError, QcoreError
from qcore.base.progress import Progress
from qcore.models.checkpoint import Checkpoint
from qcore.planning.types import LARGEST_CONTEXT, Band, Estimate, Plan
from qcore.recipes import Recipe
from qcore.recipes.spec import RunSpec
from qcore.verbs.layer_types import Histogram, LayerError
from qcore.verbs.lesson_types import Predicted, WeightOutline

if TYPE_CHECKING:
    from qcore.verbs.lessons import Predictions, Sample
    from qcore.verbs.prepare import Finder

KEPT = 4  # weights of the lessons
_samples: OrderedDict[tuple, Sample] = OrderedDict()
_lock = Lock()


def resolve(name: str, revision: str | None, progress: Progress | None = None) -> Checkpoint:
    """Return the checkpoint of a model, fetched if needed; see `library.resolve`."""
    from qcore import library

    return library.resolve(name, revision, progress=progress)


def outline(name: str, revision: str | None, progress: Progress | None = None) -> Checkpoint:
    """Return the checkpoint of a model from its headers alone; see `library.outline`."""
    from qcore import library

    return library.outline(name, revision, progress=progress)


def engines_here() -> dict[str, str | None]:
    """Return for each engine why it cannot be used here, or None; see `engines.available`."""
    from qcore import engines

    return {name: engines.available(name) for name in engines.ENGINES}


# -- before a run --------------------------------------------------------------------------------------------


def check_run(spec: RunSpec, known: Checkpoint | None = None) -> RunSpec:
    """Return the checked comparison that `spec` stands for; see `checks.check_run`. `known` is the checkpoint
    of its model, where it is resolved already."""
    from qcore.verbs import checks

    return checks.check_run(spec, _finder(spec, known))[0]


def estimates(spec: RunSpec, known: Checkpoint) -> tuple[int, list[tuple[str, Estimate | str]]]:
    """Return the number of weights of the model, and the estimated memory of each recipe of `spec` or the
    reason why it cannot run. The list is empty for a model that no recipe can start from."""
    from qcore import planning
    from qcore.verbs import checks

    finder = _finder(spec, known)
    spec = checks.beside_original(spec, finder)
    checkpoint = finder.headers(spec.model, spec.revision)
    if checkpoint is None or checkpoint.is_quantized:
        return 0, []
    checks.check_kv(checkpoint, spec.kv_format)
    found: list[tuple[str, Estimate | str]] = []
    for recipe in spec.recipes:
        try:
            stored, applied = checks.loaded_from(checkpoint, recipe, finder)
            tokens = spec.prompt_tokens + spec.new_tokens
            found.append((recipe.name, planning.estimate(stored, applied, tokens=tokens, window=spec.window)))
        except QcoreError as error:
            found.append((recipe.name, str(error)))
    return checkpoint.parameters, found


def lineup(
    name: str, revision: str | None, recipes: Sequence[Recipe]
) -> tuple[str, str | None, tuple[Recipe, ...]]:
    """Return what the playground runs: model, revision and recipes as `checks.lineup` does, or a quantized
    model alone whose original is unknown."""
    from qcore.recipes import SAVED, parse_row
    from qcore.verbs import checks
    from qcore.verbs.prepare import Finder

    finder = Finder()
    name, revision, chosen = checks.lineup(name, revision, recipes, finder)
    found = finder.headers(name, revision)
    if found is not None and found.is_quantized:
        chosen = (parse_row(SAVED + name),)
    return name, revision, chosen


def check_export(checkpoint: Checkpoint, recipe: Recipe | None, out: Path, to: str) -> None:
    """Raise `InputError` if the target `to` cannot express the model; see `verbs.export.check`."""
    from qcore.verbs import export

    export.check(checkpoint, recipe, out, to=to)


def job_record(record: dict) -> dict:
    """Return the checked record of a job's request, with absolute paths. Raise `InputError` if a field is
    missing, unknown or out of range."""
    from qcore.jobs.kinds import kind_of

    return kind_of(record).request.from_dict(record).absolute().to_dict()


# -- plans ---------------------------------------------------------------------------------------------------


def limits_of_plan(checkpoint: Checkpoint) -> tuple[int, tuple[str, ...]]:
    """Return the longest context of a model, and the formats of its key-value cache."""
    from qcore.models import meta_model
    from qcore.planning.cache import formats_for

    config = meta_model(checkpoint).config.get_text_config()
    longest = getattr(config, "max_position_embeddings", None) or LARGEST_CONTEXT
    return longest, tuple(formats_for(config))


def plan(checkpoint: Checkpoint, needs: dict[str, Any], visible: Sequence[str] | None = None) -> Plan:
    """Return the plan of a model, with the quality measured in the `visible` runs (None: all) of this cache
    folder; `needs` are the other arguments of `planning.plan`."""
    from qcore import planning

    return planning.plan(checkpoint, runs=_rows(checkpoint.name, visible), **needs)


def error_bands(visible: Sequence[str] | None = None) -> list[Band]:
    """Return the errors of the plans made for the `visible` runs (None: all)."""
    from qcore.planning import hindsight

    return hindsight.bands(_rows(None, visible))


def _rows(model: str | None, visible: Sequence[str] | None) -> list[dict]:
    from qcore.verbs.plan import known_rows

    return [row for row in known_rows(model) if visible is None or row["run_id"] in visible]


# -- weights and lessons -------------------------------------------------------------------------------------


def layer_errors(
    checkpoint: Checkpoint, recipe: Recipe, progress: Progress | None = None
) -> list[LayerError]:
    """Return the error of every layer that `recipe` quantizes; see `verbs.layer_errors`."""
    from qcore.verbs import layer_errors

    return layer_errors.errors(checkpoint, recipe, progress)


def histogram(checkpoint: Checkpoint, name: str, recipe: Recipe, bins: int) -> Histogram:
    """Return the values of one weight before and after `recipe`; see `verbs.layer_errors`."""
    from qcore.verbs import layer_errors

    return layer_errors.histogram(checkpoint, name, recipe, bins)


def lesson_weights(checkpoint: Checkpoint) -> list[str]:
    """Return the names of the weights that lessons can show."""
    from qcore.verbs import lessons

    return lessons.names(checkpoint)


def lesson_weight(checkpoint: Checkpoint, name: str) -> WeightOutline:
    """Return the shape of the weight `name`, as far as the lessons read it."""
    sample = _sample(checkpoint, name)
    return WeightOutline(name, (sample.weight.shape[0], sample.weight.shape[1]), sample.rows)


def lesson(checkpoint: Checkpoint, name: str, what: str, *arguments: Any) -> Any:
    """Return a lesson's figures for the weight `name`: the function `what` of `verbs.lessons`, which takes a
    weight and the `arguments`."""
    from qcore.verbs import lessons

    if what not in LESSONS:
        raise InputError(f"There is no lesson {what!r}.")
    weight = _sample(checkpoint, name).weight
    return getattr(lessons, what)(weight, *arguments)


def lesson_predictions(checkpoint: Checkpoint, prompt: str, temperatures: Sequence[float]) -> Predicted:
    """Return the next token that a model and half of its layers predict, softened by each temperature."""
    from qcore.verbs import lessons

    found: Predictions = lessons.predictions(checkpoint, prompt)
    taught = {each: lessons.taught(found.teacher, found.student, each) for each in temperatures}
    return Predicted(found.layers, found.words, taught)


LESSONS = ("activations", "clipped", "group_sizes", "learn", "outlier", "places", "prune", "rounded")
ANSWERS = {
    each.__name__: each
    for each in (
        resolve,
        outline,
        engines_here,
        check_run,
        estimates,
        lineup,
        check_export,
        job_record,
        limits_of_plan,
        plan,
        error_bands,
        layer_errors,
        histogram,
        lesson_weights,
        lesson_weight,
        lesson,
        lesson_predictions,
    )
}


def _sample(checkpoint: Checkpoint, name: str) -> Sample:
    """Return a weight; the last few are kept."""
    from qcore.verbs import lessons

    key = checkpoint.key, name
    sample = _samples.get(key)
    if sample is None:
        sample = lessons.read(checkpoint, name)
        with _lock:
            _samples[key] = sample
            while len(_samples) > KEPT:
                _samples.popitem(last=False)
    return sample


def _finder(spec: RunSpec, known: Checkpoint | None) -> Finder:
    from qcore.verbs.prepare import Finder

    finder = Finder()
    if known is not None:
        finder.know(spec.model, spec.revision, known)
    return finder
