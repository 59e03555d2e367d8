"""Evaluation of a checkpoint that is never loaded whole, for the command line: see
`qcore.streaming.evaluating`."""

import time

from qcore.base.progress import Progress
from qcore.base.turn import heavy_turn
from qcore.recipes import Recipe
from qcore.recipes.spec import check_limits
from qcore.verbs.pipeline import scored_bytes
from qcore.verbs.single import options, times, waiting


def evaluate_streamed_once(
    model: str,
    recipes: tuple[Recipe, ...],
    *,
    revision: str | None,
    text: str | None,
    tokens: int | None,
    window: int,
    stride: int | None,
    progress: Progress,
) -> dict:
    """{"model", "rows", "record"}: a row for the baseline and one for each of `recipes`, all scored on the
    same windows.

    Raises `InputError` as `evaluate_streamed` does, before anything is computed.
    """
    from qcore import library
    from qcore.base import texts
    from qcore.library.loading import load_tokenizer
    from qcore.measurement.environment import environment
    from qcore.streaming.evaluating import evaluate_streamed

    check_limits(window=window, stride=stride, **({} if tokens is None else {"tokens": tokens}))
    content, checkpoint = texts.load_text(text), library.resolve(model, revision, progress=progress)
    with heavy_turn(waiting(progress)):
        began = time.time()
        tokenizer = load_tokenizer(checkpoint)
        ids = texts.tokenize(content, tokenizer, limit=tokens)
        found = evaluate_streamed(
            checkpoint,
            list(recipes),
            ids,
            window=window,
            stride=stride,
            text_bytes=scored_bytes(ids, tokenizer),
            progress=progress,
        )
    names = ",".join(recipe.name for recipe in recipes) or None
    words = [
        "eval",
        model,
        "--stream",
        *options(recipes=names, text=text, window=window, stride=stride, tokens=tokens, revision=revision),
    ]
    record = {
        "digest": checkpoint.digest,
        "revision": checkpoint.revision,
        "text": {"name": content.name, "sha256": content.sha256},
        "environment": environment(),
        **times(began, words),
    }
    return {
        "model": model,
        "rows": [{"recipe": name, **result.to_dict()} for name, result in found.items()],
        "record": record,
    }
