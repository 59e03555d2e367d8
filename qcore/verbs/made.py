"""The result of `qat`, `prune` and `distill`: the new model, and its figures beside the original's, measured
on the same text and the same machine."""

from __future__ import annotations

import tempfile
import time
from pathlib import Path
from statistics import median

import torch

from qcore import library
from qcore.base import texts
from qcore.base.other_work import OtherWork, is_disturbed
from qcore.base.progress import Progress
from qcore.evaluation import Reference, evaluate
from qcore.layers.positions import positions
from qcore.library import Loaded
from qcore.measurement.throughput import measure
from qcore.models import Checkpoint
from qcore.recipes import Recipe
from qcore.verbs import card
from qcore.verbs.prepare import quantize
from qcore.verbs.record import stored_bytes

COMPARED, WINDOW = 2048, 256  # tokens of the evaluation text scored by every model
PROMPT, NEW, TURNS = 64, 16, 3  # tokens of the speed measurement, and how often each model is timed


def summary(model: str, folder: Path, made: Loaded, *, began: float, **more) -> dict:
    """Return the description of the model made from `model` (JSON-ready): its folder, its stored bytes, the
    seconds since `began` (`time.perf_counter`), and `more`."""
    size, seconds = stored_bytes(made), time.perf_counter() - began
    return {"model": model, "folder": str(folder), "stored_bytes": size, "seconds": seconds, **more}


def with_card(result: dict, folder: Path, checkpoint: Checkpoint, words: list[str]) -> dict:
    """Write the card of the model in `folder` (see `qcore.verbs.card`), with the figures of `result` if it
    was compared, and return {"notes": sentences for the user}."""
    return {"notes": list(card.write(folder, checkpoint, words, measured=card.of_compared(result)))}


def compared(
    wanted: bool, checkpoint: Checkpoint, folder: Path, recipe: Recipe | None, progress: Progress
) -> dict:
    """Return {"compared": figures} of the original ("before"), the original rounded by a `recipe` without
    calibration text ("rounded"), and the model in `folder` ("after"), with the conditions; an empty
    dictionary unless `wanted`.

    Perplexity and divergence come from `qcore.evaluation.evaluate`, as in every other table.
    """
    if not wanted:
        return {}
    # no memory check: each model was in memory before, and a refusal would discard hours of work
    original = library.load(checkpoint)
    content = texts.load_text(None)
    ids = texts.tokenize(content, original.tokenizer, limit=COMPARED)
    loaded = {"before": original}
    if recipe is not None and not recipe.calibrated:
        progress(0, 4, f"quantizing the original as {recipe.name}")
        loaded["rounded"] = quantize(library.load(checkpoint), recipe).loaded
    progress(1, 4, "loading the new model")
    loaded["after"] = library.load(folder)
    progress(2, 4, "measuring quality")
    found = _quality(loaded, ids)
    progress(3, 4, "measuring speed")
    others = OtherWork()
    for name, speed in _speeds(loaded).items():
        found[name]["decode_tok_s"] = speed
    others_share = others.share()
    conditions = {
        "text": content.name,
        "tokens": len(ids),
        "window": _window(original),
        "prompt_tokens": PROMPT,
        "new_tokens": NEW,
        "others_share": others_share,
        "disturbed": is_disturbed(others_share),
    }
    return {"compared": found | conditions}


def _quality(loaded: dict[str, Loaded], ids: torch.Tensor) -> dict[str, dict]:
    """Score the tokens `ids` (T,) with each model; the first model is the baseline of the others."""
    found: dict[str, dict] = {}
    window = _window(loaded["before"])
    with tempfile.TemporaryDirectory() as scratch:
        reference = Path(scratch) / "reference.safetensors"
        for name, each in loaded.items():
            first = not found
            result = evaluate(
                each.model,
                ids,
                window=window,
                record=reference if first else None,
                reference=None if first else Reference.open(reference),
            )
            found[name] = {
                "stored_bytes": stored_bytes(each),
                "perplexity": result.perplexity,
                "kl_mean": 0.0 if first else result.divergence.kl_mean,
                "parameters": sum(parameter.numel() for parameter in each.model.parameters()),
            }
    return found


def _window(loaded: Loaded) -> int:
    return min(WINDOW, positions(loaded.model.config) or WINDOW)


def _speeds(loaded: dict[str, Loaded]) -> dict[str, float]:
    """Return the decode speed of each model in tokens per second: the median over alternating turns, so that
    other load on the machine affects all models equally."""
    turns = [
        {name: measure(each.model, PROMPT, NEW, repeats=1).decode_tok_s for name, each in loaded.items()}
        for _ in range(TURNS)
    ]
    return {name: median(turn[name] for turn in turns) for name in loaded}
