"""The verbs of `import qcore`, each a thin layer over `qcore.verbs` and the modules that do the work."""

from dataclasses import fields
from pathlib import Path
from typing import Any, TypeVar, cast

from qcore import planning, recipes
from qcore.base import texts
from qcore.base.errors import InputError
from qcore.base.progress import Progress
from qcore.base.registry import unknown
from qcore.evaluation.choices import Answers
from qcore.evaluation.choices import ask as answer
from qcore.evaluation.perplexity import Evaluation
from qcore.evaluation.perplexity import evaluate as score
from qcore.evaluation.questions import load_questions
from qcore.evaluation.verdict import MARGIN, Verdict
from qcore.evaluation.verdict import judge as verdict_on
from qcore.formats.kv import NONE, kv_format_named
from qcore.library import Loaded, safetensors
from qcore.library.plain import check_judged
from qcore.measurement import throughput
from qcore.quantization.calibration.text import TOKENS
from qcore.recipes import Recipe
from qcore.recipes.spec import check_margin
from qcore.results.rows import ResultRow
from qcore.verbs import checks, prepare

ROOM = 512  # tokens of cache and activations included in the memory check of `load`


def load(model: str, revision: str | None = None, *, device: str = "cpu") -> Loaded:
    """Load a model: "smollm2-135m", a hub id, a folder, a GGUF file, or a folder written by `save`.

    Return its `model` (fp32 on a CPU, evaluation mode), `tokenizer` and `checkpoint`, and for a saved
    quantized model its `recipe` and `ledger`. Raise `InputError` for an invalid or unsupported model
    (`TooLargeError`: it does not fit into memory), `UnavailableError` if the hub or the device cannot be
    reached.
    """
    checkpoint = checks.check_model(model, revision, device=device)
    return prepare.load(checkpoint, device=device, tokens=ROOM, window=ROOM)


def quantize(
    model: Loaded | str,
    recipe: Recipe | str,
    *,
    skip: tuple[str, ...] = (),
    calibration: str | Path | None = None,
    calibration_tokens: int = TOKENS,
    calibration_minutes: float | None = None,
    progress: Progress | None = None,
) -> Loaded:
    """Apply `recipe` to `model`, in place: its full-precision weights are freed. `skip`: patterns of modules
    to leave out.

    Recipes such as int4-g64-gptq read `calibration_tokens` of a `calibration` text (a file; None is the
    packaged text); learned recipes take about `calibration_minutes`.

    Return the model with its `recipe` and `ledger`. Raise `InputError` for an unusable model, recipe or text,
    `NotAppliedError` if the recipe quantized less than it should.
    """
    chosen = _recipe(recipe)
    if skip:
        chosen = chosen.with_modules(skip=tuple(skip))
    text = prepare.CalibrationText(calibration, calibration_tokens, calibration_minutes)
    if isinstance(model, Loaded):  # no resume: the weights may have changed since loading
        return prepare.quantize(model, chosen, calibration=text, resume=False, progress=progress).loaded
    checkpoint = prepare.find_original(model, progress=progress)
    checks.check_skips(checkpoint, (chosen,))
    text.check(chosen)
    return prepare.prepare(checkpoint, chosen, calibration=text, progress=progress).loaded


def evaluate(
    model: Loaded | str,
    text: str | Path | None = None,
    *,
    tokens: int | None = 4096,
    window: int = 512,
    stride: int | None = None,
    kv: str = NONE,
    progress: Progress | None = None,
) -> Evaluation:
    """Return the perplexity of `model` on the first `tokens` tokens of `text` (a file; None is the packaged
    text). With `kv` "int8" or "int4" the text is read through a key-value cache in that form.

    Raise `InputError` for an unusable text or window, and for a text that was used to make the model.
    """
    loaded = load(model) if isinstance(model, str) else model
    content = texts.load_text(text)
    ids = texts.tokenize(content, loaded.tokenizer, limit=tokens)
    check_judged(loaded, content.name, content.sha256, ids)
    return score(
        loaded.model,
        ids,
        window=window,
        stride=stride,
        tokenizer=loaded.tokenizer,
        progress=progress,
        kv=kv_format_named(kv),
    )


def judge(before: Evaluation, after: Evaluation, margin: float = MARGIN) -> Verdict:
    """Return the verdict on `after` against `before`, two evaluations over the same text and windows: whether
    the loss is statistically real. Perplexity within `margin` (0.01 is 1 %) counts as equal.

    Raise `InputError` if the windows differ.
    """
    check_margin(margin)
    return verdict_on(after.to_dict(), before.to_dict(), margin)


def ask(
    model: Loaded | str, choices: str | Path | None = None, *, progress: Progress | None = None
) -> Answers:
    """Return the answers of `model`, by likelihood, to the multiple-choice questions in the file `choices`
    (None: the packaged questions). Raise `InputError` for an unusable file."""
    question_set = load_questions(choices)
    loaded = load(model) if isinstance(model, str) else model
    return answer(loaded.model, loaded.tokenizer, question_set.questions, progress=progress)


def measure(
    model: Loaded | str,
    *,
    prompt_tokens: int = 128,
    new_tokens: int = 32,
    repeats: int = 3,
    kv: str = NONE,
    progress: Progress | None = None,
) -> throughput.Throughput:
    """Return the prefill and decode speed of `model` in tokens per second on this machine, with a key-value
    cache in the form `kv`. Raise `InputError` for more tokens than the model has positions."""
    loaded = load(model) if isinstance(model, str) else model
    return throughput.measure(
        loaded.model, prompt_tokens, new_tokens, repeats=repeats, progress=progress, kv=kv_format_named(kv)
    )


def compare(model: str, recipes: list[str | Recipe], **conditions) -> list[ResultRow]:
    """Run several recipes on `model`, each in a separate process, and return one row per recipe
    (docs/results.md describes its keys). A model quantized by qcore is compared with its original, and
    becomes the last row.

    `conditions` are the fields of `RunSpec`: text, tokens, window, stride, prompt_tokens, new_tokens,
    repeats, kv, …; and `engine` "ray" with an `address`, which spreads the recipes over a cluster. A failed
    recipe is a row with its error. Raise `InputError` for input with which no recipe can run.
    """
    from qcore.jobs import jobs

    return jobs.compare(model, recipes, **conditions)


def plan(
    model: str | Path,
    recipes: list[str | Recipe] | None = None,
    *,
    context: int | None = None,
    users: int = 1,
    memory: str | int | None = None,
    kv: list[str] | None = None,
    probe: bool = False,
    min_tokens_per_second: float | None = None,
    max_kl: float | None = None,
    max_perplexity_ratio: float | None = None,
    revision: str | None = None,
    progress: Progress | None = None,
) -> planning.Plan:
    """Return the predicted memory, speed and quality of `model` under `recipes`, and a recommendation, from
    its headers alone.

    `memory` is the limit, such as "16GB" (None: the memory that is free on this machine); `context` tokens
    are cached for each of `users`, in the formats `kv` (None: all that the architecture allows). With `probe`
    the model's shapes are timed on this machine, some seconds per recipe. Raise `InputError` and
    `UnavailableError` as `load` does.
    """
    from qcore.verbs import plan as verb

    return verb.run(
        model,
        recipes,
        context=context,
        users=users,
        memory=memory,
        kv=kv,
        probe=probe,
        min_tokens_per_second=min_tokens_per_second,
        max_kl=max_kl,
        max_perplexity_ratio=max_perplexity_ratio,
        revision=revision,
        progress=progress,
    )


def save(model: Loaded, folder: str | Path, *, overwrite: bool = False) -> Path:
    """Write a quantized `model` into `folder`, which `load` can open, and return the folder. Raise
    `InputError` for a model that is not quantized and for a folder that is not empty."""
    if model.recipe is None or model.ledger is None:
        raise InputError(
            "This model is not quantized yet: apply a recipe with qcore.quantize before saving it."
        )
    origin = model.checkpoint.origin
    return safetensors.save(
        model.model, model.tokenizer, model.recipe, model.ledger, folder, overwrite=overwrite, origin=origin
    )


def qat(
    model: str,
    recipe: Recipe | str,
    folder: str | Path,
    *,
    form: str = "light",
    learn_scales: bool = False,
    schedule: dict | None = None,
    overwrite: bool = False,
    compare: bool = False,
    device: str = "cpu",
    progress: Progress | None = None,
    **options,
) -> dict:
    """Train `model` in the quantized form of `recipe` to reproduce its own predictions, and save it in
    `folder`.

    `options` are fields of `qcore.training.qat.Qat` (text, validation, tokens, window, loss, rate),
    `schedule` those of `qcore.training.loop.Schedule` (steps or minutes, batch, …). Return sizes and the loss
    curve; with `compare` also the figures beside the original's. After a kill the same call resumes. Raise
    `InputError` for unusable options.
    """
    from qcore.training.attach import TrainableSet
    from qcore.training.loop import Schedule
    from qcore.training.qat import Qat
    from qcore.verbs import qat as verb

    settings = _options(
        Qat, form=TrainableSet(form, learn_scales), schedule=_options(Schedule, **schedule or {}), **options
    )
    return verb.run(
        model,
        _recipe(recipe),
        settings,
        Path(folder),
        overwrite=overwrite,
        compare=compare,
        device=device,
        progress=progress or _unseen,
    )


def prune(
    model: str,
    method: str,
    amount: float,
    folder: str | Path,
    *,
    recipe: Recipe | str | None = None,
    overwrite: bool = False,
    compare: bool = False,
    progress: Progress | None = None,
    **options,
) -> dict:
    """Prune `amount` of `model` by `method` ("wanda", "magnitude", "2:4", "neurons", "heads", "layers") and
    save it in `folder`.

    `options` are fields of `qcore.verbs.prune.Prune`: order, sparse, calibration, tokens. Return the sizes
    and shares; with `compare` also the figures beside the original's.
    """
    from qcore.verbs import prune as verb

    chosen = None if recipe is None else _recipe(recipe)
    settings = _options(verb.Prune, method=method, amount=amount, recipe=chosen, **options)
    return verb.run(
        model, settings, Path(folder), overwrite=overwrite, compare=compare, progress=progress or _unseen
    )


def distill(
    model: str,
    layers: int,
    folder: str | Path,
    *,
    schedule: dict | None = None,
    overwrite: bool = False,
    compare: bool = False,
    device: str = "cpu",
    progress: Progress | None = None,
    **options,
) -> dict:
    """Train a student of `layers` layers to reproduce the predictions of `model`, and save it in `folder` as
    an ordinary model.

    `options` are fields of `qcore.training.distill.Distill`, `schedule` as for `qat`. Return sizes and the
    loss curve; with `compare` also the figures beside the original's.
    """
    from qcore.training.distill import Distill
    from qcore.training.loop import Schedule
    from qcore.verbs import distill as verb

    settings = _options(
        Distill, layers=layers, schedule=_options(Schedule, **{"batch": 2} | (schedule or {})), **options
    )
    return verb.run(
        model,
        settings,
        Path(folder),
        overwrite=overwrite,
        compare=compare,
        device=device,
        progress=progress or _unseen,
    )


def _recipe(recipe: Recipe | str) -> Recipe:
    return recipes.parse(recipe) if isinstance(recipe, str) else recipe


T = TypeVar("T")


def _options(kind: type[T], **given: Any) -> T:
    known = [each.name for each in fields(cast(Any, kind))]
    for name in given:
        if name not in known:
            raise unknown("option", name, known)
    return kind(**given)


def _unseen(done: int, total: int, text: str = "") -> None:
    pass
