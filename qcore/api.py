"""The verbs of `import qcore`, each a thin layer over `qcore.verbs` and the modules that do the work."""

import logging
from collections.abc import Sequence
from pathlib import Path

from qcore import planning, recipes
from qcore.base import texts
from qcore.base.errors import InputError
from qcore.base.progress import Progress
from qcore.base.registry import filled
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
from qcore.verbs import card, checks, prepare
from qcore.verbs.audit_types import Audit
from qcore.verbs.command_words import words_of_ledger

_log = logging.getLogger(__name__)
ROOM = 512  # tokens whose cache and activations count in the memory check of `load`


def load(model: str, revision: str | None = None, *, device: str = "cpu") -> Loaded:
    """Load a model: "smollm2-135m", a hub id, a folder, a GGUF file, or a folder written by `save`.

    Return the `model` (fp32 on a CPU, in evaluation mode), its `tokenizer` and its `checkpoint`; a saved
    quantized model also has a `recipe` and a `ledger`. Raise `InputError` for an invalid or unsupported
    model, its subclass `TooLargeError` for a model that does not fit into memory, and `UnavailableError` if
    the hub or the device cannot be reached.
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
    imatrix: str | Path | None = None,
    device: str = "cpu",
    progress: Progress | None = None,
) -> Loaded:
    """Quantize `model` in place with `recipe`; the full-precision weights are freed. Modules that match a
    pattern in `skip` are not quantized.

    Recipes such as int4-g64-gptq read `calibration_tokens` tokens of the `calibration` text (a file, or None
    for the packaged text). Recipes with learned rounding train for about `calibration_minutes`. Recipes with
    -imatrix read llama.cpp's importance matrix in the file `imatrix` in place of text. A name is loaded on
    `device`; a loaded model stays where it is.

    Return the model with its `recipe` and `ledger`. Raise `InputError` for an unusable model, recipe or text,
    and `NotAppliedError` if the recipe could not quantize every tensor that it selects.
    """
    chosen = _recipe(recipe)
    if skip:
        chosen = chosen.with_modules(skip=tuple(skip))
    text = prepare.CalibrationText(calibration, calibration_tokens, calibration_minutes, imatrix)
    if isinstance(model, Loaded):  # no resume: the weights may have changed since loading
        return prepare.quantize(model, chosen, calibration=text, resume=False, progress=progress).loaded
    checkpoint = prepare.find_original(model, progress=progress)
    checks.check_device(device)
    checks.check_skips(checkpoint, (chosen,))
    text.check(chosen)
    return prepare.prepare(checkpoint, chosen, device=device, calibration=text, progress=progress).loaded


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
    """Return the perplexity of `model` on the first `tokens` tokens of `text` (a file, or None for the
    packaged text). With `kv` "int8" or "int4" the text is read through a key-value cache of that format.

    Raise `InputError` for an unusable text or window, and for a text that was used to calibrate, prune or
    train the model.
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
    """Return the verdict on `after` compared with `before`: equivalent, worse, better or undecided. Both are
    evaluations over the same text and windows. A change in perplexity within `margin` (0.01 is 1 %) counts as
    equivalent.

    Raise `InputError` if the windows differ.
    """
    check_margin(margin)
    return verdict_on(after.to_dict(), before.to_dict(), margin)


def ask(
    model: Loaded | str, choices: str | Path | None = None, *, progress: Progress | None = None
) -> Answers:
    """Answer the multiple-choice questions in the file `choices` (None: the packaged questions) by the
    likelihood that `model` gives each choice. Raise `InputError` for an unusable file."""
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
    cache of format `kv`. Raise `InputError` if prompt and new tokens exceed the model's positions."""
    loaded = load(model) if isinstance(model, str) else model
    return throughput.measure(
        loaded.model, prompt_tokens, new_tokens, repeats=repeats, progress=progress, kv=kv_format_named(kv)
    )


def compare(
    model: str, recipes: list[str | Recipe], *, files: str | Sequence[str] = (), **conditions
) -> list[ResultRow]:
    """Run several recipes on `model`, each in a separate process, and return one row per recipe
    (docs/results.md describes its keys). A model quantized by qcore is compared with its original, and
    becomes the last row. `files` adds rows for models that other projects quantized from `model`: GGUF files
    (also "*.gguf"), folders and hub ids.

    `conditions` are the fields of `RunSpec`: text, tokens, window, stride, prompt_tokens, new_tokens,
    repeats, kv and others. An `engine` of "ray" with an `address` spreads the recipes over a Ray cluster.
    A recipe that fails still has a row, with the error. Raise `InputError` for input that prevents every
    recipe from running.
    """
    from qcore.jobs import jobs

    return jobs.compare(model, recipes, files=files, **conditions)


def plan(
    model: str | Path,
    recipes: list[str | Recipe] | None = None,
    *,
    context: int | None = None,
    users: int = 1,
    memory: str | int | None = None,
    device: str = "cpu",
    kv: list[str] | None = None,
    probe: bool = False,
    min_tokens_per_second: float | None = None,
    max_kl: float | None = None,
    max_perplexity_ratio: float | None = None,
    revision: str | None = None,
    progress: Progress | None = None,
) -> planning.Plan:
    """Predict memory, speed and quality of `model` for each of `recipes` from the headers of the checkpoint,
    and return the predictions with a recommendation.

    `memory` is the limit, such as "16GB" (None: the free memory of `device`). The key-value cache holds
    `context` tokens for each of `users` sequences, in the formats `kv` (None: every format that the
    architecture supports). With `probe`, the model's layer shapes are timed on this machine, which takes some
    seconds per recipe. Raise `InputError` and `UnavailableError` as `load` does.
    """
    from qcore.verbs import plan as verb

    return verb.run(
        model,
        recipes,
        context=context,
        users=users,
        memory=memory,
        device=device,
        kv=kv,
        probe=probe,
        min_tokens_per_second=min_tokens_per_second,
        max_kl=max_kl,
        max_perplexity_ratio=max_perplexity_ratio,
        revision=revision,
        progress=progress,
    )


def audit(
    model: str | Path, revision: str | None = None, *, values: bool = True, progress: Progress | None = None
) -> Audit:
    """Return what is in the checkpoint `model`, quantized by any project or not at all, and what is broken in
    it: its `findings`, a `ledger` of every tensor, and what was `not_looked_at`.

    `model` is a folder, a GGUF file, a default model, or a hub id, of which only headers are read. Without
    `values` only headers and settings are read. Nothing is loaded, so models that `load` refuses can be
    audited. Raise `InputError` for a folder without weights, and `UnavailableError` as `load` does.
    """
    from qcore.verbs import audit as verb

    return verb.run(model, revision, values=values, progress=progress)


def save(model: Loaded, folder: str | Path, *, overwrite: bool = False) -> Path:
    """Save a quantized `model` in `folder`, from where `load` can load it, and return the folder. Raise
    `InputError` for a model that is not quantized and for a folder that is not empty."""
    if model.recipe is None or model.ledger is None:
        raise InputError(
            "This model is not quantized yet: apply a recipe with qcore.quantize before saving it."
        )
    base, recipe = model.checkpoint, model.recipe
    saved = safetensors.save(
        model.model, model.tokenizer, recipe, model.ledger, folder, overwrite=overwrite, origin=base.origin
    )
    for note in card.write(saved, base, words_of_ledger(base, recipe, model.ledger, saved)):
        _log.warning(note)
    return saved


def export(
    model: str,
    recipe: Recipe | str | None,
    folder: str | Path,
    *,
    to: str,
    skip: tuple[str, ...] = (),
    revision: str | None = None,
    overwrite: bool = False,
    calibration: str | Path | None = None,
    calibration_tokens: int = TOKENS,
    progress: Progress | None = None,
) -> dict:
    """Write `model` under `recipe` (None: unchanged, or with the codes of a model that qcore saved) into
    `folder` for another project's code: `to` is one of `qcore.library.exports.TARGETS`, such as "gguf".

    Return sizes, files and notes. Raise `InputError`, before any work, for a model or recipe that the target
    cannot express.
    """
    from qcore.verbs import export as verb

    chosen = None if recipe is None else _recipe(recipe)
    if chosen is not None and skip:
        chosen = chosen.with_modules(skip=tuple(skip))
    return verb.run(
        model,
        chosen,
        Path(folder),
        to=to,
        revision=revision,
        overwrite=overwrite,
        calibration=prepare.CalibrationText(calibration, calibration_tokens),
        progress=progress or _unseen,
    )


def push(folder: str | Path, repo_id: str, *, public: bool = False, message: str | None = None) -> str:
    """Upload the model in `folder`, which qcore wrote, to the repository `repo_id` ("owner/name") of the hub
    with the user's token, and return its address. A new repository is private unless `public`. Raise
    `InputError` before anything is sent if the folder, the name or the token cannot be used."""
    from qcore.verbs import push as verb

    return verb.run(folder, repo_id, public=public, message=message)


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
    """Train `model`, quantized by `recipe`, to reproduce the predictions of the unquantized model
    (quantization-aware training), and save it in `folder`.

    `options` are fields of `qcore.training.qat.Qat` (text, validation, tokens, window, loss, rate), and
    `schedule` has the fields of `qcore.training.loop.Schedule` (steps or minutes, batch, …). Return sizes and
    the loss curve; with `compare`, also the results of the trained and the original model. If the process is
    killed, the same call resumes the training. Raise `InputError` for unusable options.
    """
    from qcore.training.attach import TrainableSet
    from qcore.training.loop import Schedule
    from qcore.training.qat import Qat
    from qcore.verbs import qat as verb

    settings = filled(
        Qat, form=TrainableSet(form, learn_scales), schedule=filled(Schedule, **schedule or {}), **options
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
    """Prune a share `amount` of the weights or parts of `model` by `method` ("wanda", "magnitude", "2:4",
    "neurons", "heads", "layers"), and save the model in `folder`.

    `options` are fields of `qcore.verbs.prune.Prune`: order, sparse, calibration, tokens. Return sizes and
    pruned shares; with `compare`, also the results of the pruned and the original model.
    """
    from qcore.verbs import prune as verb

    chosen = None if recipe is None else _recipe(recipe)
    settings = filled(verb.Prune, method=method, amount=amount, recipe=chosen, **options)
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

    `options` are fields of `qcore.training.distill.Distill`; `schedule` is described in `qat`. Return sizes
    and the loss curve; with `compare`, also the results of the student and the original model.
    """
    from qcore.training.distill import Distill
    from qcore.training.loop import Schedule
    from qcore.verbs import distill as verb

    settings = filled(
        Distill, layers=layers, schedule=filled(Schedule, **{"batch": 2} | (schedule or {})), **options
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


def _unseen(done: int, total: int, text: str = "") -> None:
    pass
