"""`generate`: continue one text with one model, in this process."""

from __future__ import annotations

import time
from dataclasses import asdict

import torch

from qcore.base.progress import Progress
from qcore.base.turn import heavy_turn
from qcore.evaluation.generation import check_new_tokens, generate_text
from qcore.evaluation.sampling import Sampling
from qcore.formats.kv import NONE, kv_format_named
from qcore.recipes.spec import check_limits
from qcore.verbs import record
from qcore.verbs.checks import check_model
from qcore.verbs.prepare import load

GREEDY = Sampling()


def run(
    model: str,
    prompt: str,
    new_tokens: int = 64,
    *,
    chat: bool = False,
    sampling: Sampling = GREEDY,
    kv: str = NONE,
    threads: int | None = None,
    revision: str | None = None,
    device: str = "cpu",
    progress: Progress,
) -> dict:
    """Return the continuation of `prompt` by `model` (`Generated.to_dict()`), with keys and values in the
    form `kv`, and the record.

    Raise `InputError` for numbers out of range, before the model is loaded.
    """
    form = kv_format_named(kv)
    check_new_tokens(new_tokens)
    check_limits(threads=threads)
    checkpoint = check_model(model, revision, device=device, kv=form, progress=progress)
    if threads:
        torch.set_num_threads(threads)
    with heavy_turn(progress):
        began = time.time()
        loaded = load(checkpoint, device=device, tokens=new_tokens, window=new_tokens, progress=progress)
        found = generate_text(
            loaded.model,
            loaded.tokenizer,
            prompt,
            new_tokens,
            chat=chat,
            **asdict(sampling),
            kv=form,
            on_text=lambda text: progress(0, new_tokens, "writing"),
        )
    given = {name: value for name, value in asdict(sampling).items() if value != getattr(GREEDY, name)}
    words = record.options(
        prompt=prompt,
        new_tokens=new_tokens,
        threads=threads,
        revision=revision,
        device=device,
        **given,
        kv=kv,
    )
    about = {
        "device": device,
        "recipe": record.recipe_of(loaded),
        "sampling": asdict(sampling),
        "execution": record.execution(loaded.model, form),
        "kv": record.kv_format(form),
    }
    command = ["generate", model, *words, *["--chat"] * chat]
    about |= record.describe(loaded, threads=threads) | record.times(began, command)
    return {"model": model, **found.to_dict(), "record": about}
