"""Speed of reading a prompt (prefill) and generating one token after another (decode), in the loop that all
of qcore uses: `qcore.runtime.Context`.

    TTFT            seconds from the prompt to the first token
    prefill tok/s   prompt tokens / TTFT
    decode tok/s    (n - 1) / time from the first token to the n-th
    p50, p90, p99   milliseconds per output token after the first, pooled over the repeats

The number of new tokens is fixed and decoding is greedy, so every recipe does the same work; warm-up rounds
are discarded.
"""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

import torch

from qcore.base.errors import InputError, RunError
from qcore.base.other_work import OtherWork, is_disturbed
from qcore.base.progress import Progress
from qcore.base.quantile import quantile
from qcore.formats.kv import KVFormat
from qcore.layers.positions import positions
from qcore.layers.text_part import computing_type
from qcore.runtime import Context
from qcore.runtime.calls import device_of

if TYPE_CHECKING:
    from transformers import PreTrainedModel

Clock = Callable[[], float]


@dataclass(frozen=True)
class Sample:
    """One repeat: seconds to the first token, and seconds for each later token."""

    ttft_s: float
    token_s: tuple[float, ...]


@dataclass(frozen=True)
class Throughput:
    """Medians over the repeats, percentiles over all their tokens, and the raw `samples`. `cache_bytes` is
    the stored size of the key-value cache of `cache_tokens` tokens. `others_share` is the share of the
    processor that other processes took during the repeats."""

    prefill_tok_s: float
    decode_tok_s: float
    ttft_s: float
    p50_ms: float
    p90_ms: float
    p99_ms: float
    prompt_tokens: int
    new_tokens: int
    threads: int
    dtype: str
    device: str
    samples: tuple[Sample, ...]
    cache_bytes: int | None = None
    cache_tokens: int | None = None
    others_share: float | None = None

    @classmethod
    def of(cls, samples: Sequence[Sample], prompt_tokens: int, **conditions) -> Throughput:
        """Summarize `samples` by the definitions above; each must have at least one token after the first."""
        tokens = sorted(second for sample in samples for second in sample.token_s)
        p50, p90, p99 = (1000 * quantile(tokens, q) for q in (0.5, 0.9, 0.99))
        return cls(
            prefill_tok_s=statistics.median(prompt_tokens / sample.ttft_s for sample in samples),
            decode_tok_s=statistics.median(
                len(sample.token_s) / math.fsum(sample.token_s) for sample in samples
            ),
            ttft_s=statistics.median(sample.ttft_s for sample in samples),
            p50_ms=p50,
            p90_ms=p90,
            p99_ms=p99,
            prompt_tokens=prompt_tokens,
            new_tokens=len(samples[0].token_s) + 1,
            samples=tuple(samples),
            cache_tokens=prompt_tokens
            + len(samples[-1].token_s),  # the last token is generated but never read
            **conditions,
        )

    def to_dict(self) -> dict:
        """Return a JSON-ready dictionary."""
        return {**asdict(self), "disturbed": self.disturbed}

    @property
    def disturbed(self) -> bool:
        """Whether other processes took so much of the processor that the speeds are not this machine's."""
        return is_disturbed(self.others_share)


def measure(
    model: PreTrainedModel,
    prompt: torch.Tensor | int,
    new_tokens: int,
    *,
    repeats: int = 3,
    warmup: int = 1,
    clock: Clock = time.perf_counter,
    seed: int = 0,
    progress: Progress | None = None,
    kv: KVFormat | None = None,
) -> Throughput:
    """Measure a causal language model on a `prompt`: token ids (P,), or the number of random ones (drawn with
    `seed`). Keys and values are kept in the form `kv` (None: as the model keeps them).

    Raise `InputError` for numbers out of range or more tokens than the model has positions, `RunError` if a
    logit is NaN.
    """
    ids = _prompt(model, prompt, seed)
    _check(model, ids, new_tokens, repeats, warmup)
    ids = ids.to(device_of(model))[None]
    samples, held, others = [], None, OtherWork()
    for round_number in range(warmup + repeats):
        if progress:
            phase = "warm-up" if round_number < warmup else f"repeat {round_number - warmup + 1} of {repeats}"
            progress(round_number, warmup + repeats, phase)
        if round_number == warmup:
            others = OtherWork()
        sample, held = _sample(model, ids, new_tokens, clock, kv)
        samples.append(sample)
    others_share = others.share()
    if progress:
        progress(warmup + repeats, warmup + repeats, "measured")
    return Throughput.of(
        samples[warmup:],
        ids.shape[1],
        threads=torch.get_num_threads(),
        dtype=str(computing_type(model)).removeprefix("torch."),
        device=str(ids.device),
        cache_bytes=held,
        others_share=others_share,
    )


@torch.no_grad()  # not inference_mode: optimum-quanto's int4 tensors fail under it
def _sample(
    model: PreTrainedModel, ids: torch.Tensor, new_tokens: int, clock: Clock, kv: KVFormat | None
) -> tuple[Sample, int | None]:
    """Read the prompt `ids` (1, P), generate `new_tokens`, and read the clock once before and once after each
    new token. Return the times and the final bytes of the cache."""
    context = Context(model, kv)
    times = [clock()]
    for _ in range(new_tokens):
        logits = context.append(ids)[0]
        token = int(logits.argmax())  # reading the value waits for a GPU
        times.append(clock())
        ids = torch.full((1, 1), token, device=ids.device)
    if logits.isnan().any():
        raise RunError("The model's logits are NaN, so its speed means nothing: this run has failed.")
    seconds = [after - before for before, after in zip(times, times[1:], strict=False)]
    return Sample(seconds[0], tuple(seconds[1:])), context.nbytes


def _prompt(model: PreTrainedModel, prompt: torch.Tensor | int, seed: int) -> torch.Tensor:
    if isinstance(prompt, torch.Tensor):
        return prompt.flatten()
    if isinstance(prompt, bool) or prompt < 1:
        raise InputError(f"The number of prompt tokens is {prompt}, but it must be at least 1.")
    vocabulary = model.config.get_text_config().vocab_size
    return torch.randint(vocabulary, (prompt,), generator=torch.Generator().manual_seed(seed))


def _check(model: PreTrainedModel, ids: torch.Tensor, new_tokens: int, repeats: int, warmup: int) -> None:
    for name, value, least in (
        ("number of prompt tokens", len(ids), 1),
        ("number of new tokens", new_tokens, 2),
        ("number of repeats", repeats, 1),
        ("number of warm-up rounds", warmup, 0),
    ):
        if value < least:
            raise InputError(f"The {name} is {value}, but it must be at least {least}.")
    limit = positions(model.config)
    if limit and len(ids) + new_tokens > limit:
        raise InputError(
            f"{len(ids)} prompt tokens and {new_tokens} new ones are more than the "
            f"{limit} positions of this model."
        )
