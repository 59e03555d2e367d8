"""`eval`: perplexity of one model on a text, in this process. `run_streamed` evaluates a checkpoint without
loading it whole, for several recipes in one pass."""

from __future__ import annotations

import time

from qcore.base import texts
from qcore.base.progress import Progress
from qcore.base.turn import heavy_turn
from qcore.evaluation import evaluate
from qcore.formats.kv import NONE, kv_format_named
from qcore.library import plain
from qcore.library.loading import load_tokenizer
from qcore.measurement.environment import environment
from qcore.recipes import Recipe
from qcore.recipes.spec import check_limits
from qcore.streaming.evaluating import evaluate_streamed
from qcore.verbs import record
from qcore.verbs.checks import check_model
from qcore.verbs.prepare import find, load


def run(
    model: str,
    *,
    revision: str | None = None,
    text: str | None = None,
    tokens: int | None = None,
    window: int = 512,
    stride: int | None = None,
    device: str = "cpu",
    kv: str = NONE,
    progress: Progress,
) -> dict:
    """Return the perplexity of `model` on the first `tokens` tokens of `text` (both None: the whole packaged
    text), read through a cache in the form `kv`, with its record.

    Raise `InputError` for unusable input, before the model is loaded where possible.
    """
    _check_lengths(tokens, window, stride)
    content, form = texts.load_text(text), kv_format_named(kv)
    checkpoint = check_model(model, revision, device=device, kv=form, progress=progress)
    with heavy_turn(progress):
        began = time.time()
        loaded = load(checkpoint, device=device, tokens=window, window=window, progress=progress)
        ids = texts.tokenize(content, loaded.tokenizer, limit=tokens)
        plain.check_judged(loaded, content.name, content.sha256, ids)
        result = evaluate(
            loaded.model,
            ids,
            window=window,
            stride=stride,
            tokenizer=loaded.tokenizer,
            progress=progress,
            kv=form,
        ).to_dict()
    detail = {name: result.pop(name) for name in ("window_nll", "window_tokens", "divergence")}
    words = record.options(
        text=text, window=window, stride=stride, tokens=tokens, revision=revision, device=device, kv=kv
    )
    about = {"device": device, "recipe": record.recipe_of(loaded), "kv": record.kv_format(form)}
    about |= record.describe(loaded, content) | record.times(began, ["eval", model, *words]) | detail
    return {"model": model, **result, "stored_bytes": record.stored_bytes(loaded), "record": about}


def run_streamed(
    model: str,
    recipes: tuple[Recipe, ...],
    *,
    revision: str | None = None,
    text: str | None = None,
    tokens: int | None = None,
    window: int = 512,
    stride: int | None = None,
    progress: Progress,
) -> dict:
    """Return {"model", "rows", "record"}: one row for the baseline and one per recipe, all scored on the same
    windows.

    Raise `InputError` as `evaluate_streamed` does, before anything is computed.
    """
    _check_lengths(tokens, window, stride)
    content, checkpoint = texts.load_text(text), find(model, revision, progress=progress)
    with heavy_turn(progress):
        began = time.time()
        tokenizer = load_tokenizer(checkpoint)
        ids = texts.tokenize(content, tokenizer, limit=tokens)
        found = evaluate_streamed(
            checkpoint,
            list(recipes),
            ids,
            window=window,
            stride=stride,
            tokenizer=tokenizer,
            progress=progress,
        )
    names = ",".join(recipe.name for recipe in recipes) or None
    words = record.options(
        recipes=names, text=text, window=window, stride=stride, tokens=tokens, revision=revision
    )
    about = {
        "digest": checkpoint.digest,
        "revision": checkpoint.revision,
        "text": content.record,
        "environment": environment(),
        **record.times(began, ["eval", model, "--stream", *words]),
    }
    rows = [{"recipe": name, **result.to_dict()} for name, result in found.items()]
    return {"model": model, "rows": rows, "record": about}


def _check_lengths(tokens: int | None, window: int, stride: int | None) -> None:
    check_limits(window=window, stride=stride, **({} if tokens is None else {"tokens": tokens}))
