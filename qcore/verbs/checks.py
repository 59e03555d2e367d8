"""Check from headers and files alone, before anything starts, whether a run is possible.

The Python API, the command line and the pages call these functions, so they accept and reject the same input
with the same message. No weights are downloaded: a hub model that is not in the cache is checked by its
headers, and a default model that is not in the cache is downloaded by the run.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from qcore.base.errors import InputError, UnavailableError
from qcore.base.progress import Progress
from qcore.formats.kv import KVFormat
from qcore.models.config_limits import text_settings
from qcore.recipes.spec import BASELINE, RunSpec

if TYPE_CHECKING:
    from qcore.base.prompts import Prompts
    from qcore.base.texts import Text
    from qcore.models import Checkpoint
    from qcore.recipes import Recipe
    from qcore.verbs.prepare import Finder


def check_run(spec: RunSpec, finder: Finder | None = None) -> tuple[RunSpec, Checkpoint | None]:
    """Return the checked comparison that `spec` stands for (see `beside_original`), and the checkpoint of its
    model (None: a default model that the run will download).

    Raise `InputError` and `UnavailableError` as `beside_original` and `check` do.
    """
    from qcore.verbs.prepare import Finder

    finder = finder or Finder()
    settled = beside_original(spec, finder)
    return settled, check(settled, finder)


def check(spec: RunSpec, finder: Finder | None = None) -> Checkpoint | None:
    """Return the checkpoint of the model of `spec`, None for a default model that is not in the cache.

    Raise `InputError` for an unusable model, text, prompt file or skip pattern, or if no recipe can run;
    `UnavailableError` if the device or the hub is not available. A recipe that cannot run beside others that
    can becomes a failed row.
    """
    from qcore import planning
    from qcore.base import texts
    from qcore.base.prompts import load_prompts
    from qcore.evaluation.questions import load_questions
    from qcore.library.vocabulary import check_vocabulary
    from qcore.verbs.prepare import Finder, check_imatrix, quantized_already

    finder = finder or Finder()
    check_device(spec.device)
    checkpoint = finder.headers(spec.model, spec.revision)
    if checkpoint is not None and checkpoint.is_quantized:
        raise quantized_already(checkpoint)
    text = texts.load_text(spec.text)
    if any(recipe.calibrated for recipe in spec.recipes):
        check_calibration(spec, text)
    if spec.imatrix is not None:
        check_imatrix(spec.imatrix, spec.recipes)
    if spec.generate:
        check_prompts(load_prompts(spec.prompts), checkpoint, chat=spec.chat)
    if spec.choices is not None:
        load_questions(spec.choices)
    if checkpoint is None:
        return None
    check_skips(checkpoint, spec.recipes)
    refusals = []
    for recipe in spec.recipes:
        loaded, applied = loaded_from(checkpoint, recipe, finder)
        if loaded.foreign is not None and checkpoint.source in ("default", "folder"):  # the tokenizer is here
            check_vocabulary(loaded, checkpoint)
        check_kv(loaded, spec.kv_format)
        try:
            planning.check_fits(
                loaded, applied, tokens=spec.prompt_tokens + spec.new_tokens, window=spec.window
            )
        except InputError as error:
            refusals.append(error)
    if len(refusals) == len(spec.recipes):
        raise refusals[0]
    return checkpoint


def check_model(
    model: str,
    revision: str | None = None,
    *,
    device: str = "cpu",
    kv: KVFormat | None = None,
    as_stored: bool = True,
    progress: Progress | None = None,
) -> Checkpoint:
    """Find `model`, which may be quantized, and return its checkpoint: with the codes that another project
    chose if `as_stored`, see `library.resolve`.

    Raise `InputError` or `UnavailableError` if it cannot be found, cannot keep a cache in the form `kv`, or
    cannot run on `device`.
    """
    from qcore.verbs.prepare import find

    check_device(device)
    checkpoint = find(model, revision, as_stored=as_stored, progress=progress)
    check_kv(checkpoint, kv)
    return checkpoint


def beside_original(spec: RunSpec, finder: Finder | None = None) -> RunSpec:
    """Return `spec` unchanged, or for a model quantized by qcore the comparison on its original model, with
    the quantized model as the last row.

    A quantized model that does not record its original is left to `check`. Raise `InputError` if the original
    is missing or has changed.
    """
    model, revision, recipes = lineup(spec.model, spec.revision, spec.recipes, finder)
    return spec if model == spec.model else replace(spec, model=model, revision=revision, recipes=recipes)


def lineup(
    model: str, revision: str | None, recipes: Sequence[Recipe], finder: Finder | None = None
) -> tuple[str, str | None, tuple[Recipe, ...]]:
    """Return model, revision and recipes unchanged, or for a `model` quantized by qcore its original, the
    original's revision, and the recipes with the quantized model as the last one.

    A quantized model that does not record its original is returned unchanged. Raise `InputError` if the
    original is missing or has changed.
    """
    from qcore.library.saving import made_from
    from qcore.models.names import classify
    from qcore.recipes import SAVED, parse_row
    from qcore.verbs.prepare import Finder

    finder = finder or Finder()
    checkpoint = finder.headers(model, revision)
    origin = made_from(checkpoint.folder) if checkpoint is not None and checkpoint.is_quantized else None
    if origin is None:
        return model, revision, tuple(recipes)
    name = (origin["model"], origin["revision"])
    # a commit of the hub and a default model never change
    if classify(*name).kind in ("folder", "gguf") and finder(*name).digest != origin["digest"]:
        raise InputError(
            f"{model} was made from {origin['model']}, which holds other weights now. "
            "Quantize the original again."
        )
    own = parse_row(SAVED + model)
    return lineup(*name, (*recipes, *([] if own in recipes else [own])), finder)


def loaded_from(
    checkpoint: Checkpoint, recipe: Recipe, finder: Finder | None = None
) -> tuple[Checkpoint, Recipe]:
    """Return the checkpoint that a row of a comparison on `checkpoint` loads, and the recipe to apply to it
    (fp32 for a saved model).

    Raise `InputError` for a saved model that cannot be read, or whose vocabulary differs from that of
    `checkpoint`.
    """
    from qcore.recipes import Saved, parse
    from qcore.verbs.prepare import Finder

    if not isinstance(recipe.weights, Saved):
        return checkpoint, recipe
    saved = (finder or Finder()).stored(recipe.weights.folder)
    ours, theirs = (text_settings(each.config).get("vocab_size") for each in (checkpoint, saved))
    if ours != theirs:
        raise InputError(
            f"{saved.name} has a vocabulary of {theirs} tokens and {checkpoint.name} one of {ours}. "
            "A comparison can only include quantized models made from the model that is compared."
        )
    return saved, parse(BASELINE)


def check_skips(checkpoint: Checkpoint, recipes: tuple[Recipe, ...]) -> None:
    """Raise `InputError` for a skip pattern that matches no module with a matrix to quantize."""
    from qcore.layers.select import matches

    modules = [
        name.rpartition(".")[0] for name, tensor in checkpoint.tensors.items() if len(tensor.shape) > 1
    ]
    for pattern in dict.fromkeys(pattern for recipe in recipes for pattern in recipe.modules.skip):
        if not any(matches(module, pattern) for module in modules):
            raise InputError(
                f"The skip pattern {pattern!r} matches no module of {checkpoint.name}. "
                f"An example of a module name is {modules[-1]!r}."
            )


def check_kv(checkpoint: Checkpoint, kv: KVFormat | None) -> None:
    """Raise `InputError` if the architecture has no key-value cache that the form `kv` could store."""
    from qcore.formats.kv import check_config
    from qcore.models import meta_model

    if kv is not None:
        check_config(meta_model(checkpoint).config)


def check_calibration(spec: RunSpec, text: Text) -> None:
    """Raise `InputError` if the calibration text cannot be read or is the evaluation `text`. Partial overlap
    is checked during the run."""
    from qcore.quantization.calibration.text import calibration_text

    found = calibration_text(spec.calibration)
    if found.sha256 == text.sha256:
        raise InputError(
            f"The calibration text is the evaluation text ({text.name}). "
            "A model must not be evaluated on its calibration text; choose another text for one of them."
        )


def check_prompts(asked: Prompts, checkpoint: Checkpoint | None, *, chat: bool) -> None:
    """Raise `InputError` if the prompts hold a dialogue and the model has no chat template, or if its
    template is needed and broken. A model whose tokenizer is not on this machine yet is checked by the
    run."""
    from qcore.evaluation.chat import check_template
    from qcore.library.companions import chat_templates

    if checkpoint is None or not (checkpoint.folder / "tokenizer_config.json").is_file():
        return
    templates, dialogue = chat_templates(checkpoint), any(prompt.messages for prompt in asked.prompts)
    if dialogue or (chat and templates):
        check_template(templates)


def check_device(device: str) -> None:
    """Raise `InputError` for a device that torch does not know, `UnavailableError` for one that this machine
    does not have."""
    import torch

    try:
        kind = torch.device(device).type
    except RuntimeError as error:
        raise InputError(f"Unknown device {device!r}; try cpu or cuda.") from error
    if kind == "cpu":
        return
    here = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    if here is None or here.type != kind:
        raise UnavailableError(f"The device {device!r} is not available on this machine; use cpu.")
