"""Predict prefill and decode speed from a probe, and find recipes that are smaller but slower here.

    step(context)  = head + blocks · block + (KV bytes at the context − KV bytes in the probe) / rate
    decode tok/s   = 1 / step
    prefill tok/s  = prompt / (head + blocks · block reading the prompt)
    memory limit   = read bandwidth / (bytes of weights read per token + KV bytes at the context)

The native step was measured to read keys and values at about half of the read bandwidth. Transformers' caches
copy all their content to append a token, which costs about five times the bytes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from qcore.measurement.traffic import bytes_a_token
from qcore.planning import cache
from qcore.planning.probe import Probe
from qcore.planning.stored import tensors
from qcore.recipes import Recipe

if TYPE_CHECKING:
    from transformers import PreTrainedModel

NATIVE_RATE, MODULES_RATE = 0.5, 0.2  # share of the read bandwidth, for keys and values
# a smaller recipe below this share of the larger one's speed counts as slower; machines vary by more than a
# tenth
SLOWER = 0.8


@dataclass(frozen=True)
class Speed:
    """Tokens per second for one user at a context. `limit_tok_s` is the bound from reading weights and
    cache."""

    decode_tok_s: float
    prefill_tok_s: float
    limit_tok_s: float


def weights_a_token(model: PreTrainedModel, recipe: Recipe) -> int:
    """Return the bytes of weights that a step of `model` (a meta model) reads under `recipe`."""
    return bytes_a_token(model, tensors(model, recipe))


def predict(
    probe: Probe, model: PreTrainedModel, recipe: Recipe, context: int, prompt: int | None = None
) -> Speed:
    """Predict the decode speed with `context` tokens in the cache, and the prefill speed of a prompt of
    `prompt` tokens (None: the probe's length)."""
    layers = cache.layout(model)
    rate = probe.bandwidth * (NATIVE_RATE if probe.native else MODULES_RATE)
    held = cache.kv_bytes(layers, context)
    more = (held - cache.kv_bytes(layers, round(probe.context))) / rate
    step = probe.head_s + probe.layers * probe.block_s
    read = (
        probe.head_s
        + probe.layers * probe.prefill_block_s * (prompt or probe.prompt_tokens) / probe.prompt_tokens
    )
    return Speed(
        1 / max(step + more, 0.5 * step),
        (prompt or probe.prompt_tokens) / read,
        probe.bandwidth / (weights_a_token(model, recipe) + held),
    )


def smaller_but_slower(rows: Sequence) -> list[str]:
    """Return one sentence per row (`recipe`, `stored_bytes`, `decode_tok_s`) that is smaller and slower than
    another row: fp32 if it is among the rows, else the fastest larger one."""
    timed = [row for row in rows if row.decode_tok_s]
    sentences = []
    for row in timed:
        larger = [
            other
            for other in timed
            if other.stored_bytes > row.stored_bytes and row.decode_tok_s < SLOWER * other.decode_tok_s
        ]
        if larger:
            other = next(
                (each for each in larger if each.recipe == "fp32"),
                max(larger, key=lambda each: each.decode_tok_s),
            )
            sentences.append(
                f"{row.recipe} is smaller than {other.recipe}, but slower on this machine: "
                f"{row.decode_tok_s:.3g} against "
                f"{other.decode_tok_s:.3g} tok/s."
            )
    return sentences
