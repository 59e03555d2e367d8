"""Perplexity and, given a reference, divergence from the baseline, in one pass over a text.

    perplexity = exp(Σ NLL / scored tokens)

Every token but the first is scored exactly once (`windows.py` defines by which window); windows are not
averaged, nothing is padded, and no window gets an extra BOS token. If the tokenizer puts a BOS token at the
beginning of the text, the first window begins with it, and `bos_policy` reports it. A perplexity is
meaningless without its window and stride.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from qcore.base.errors import InputError, RunError
from qcore.base.progress import Progress
from qcore.evaluation import windows as cut
from qcore.evaluation.divergence import Divergence, DivergenceMeter, LogProbabilities
from qcore.evaluation.logits import LogitReader
from qcore.evaluation.reference import Recorder, Reference
from qcore.formats.kv import KVFormat
from qcore.layers.positions import positions
from qcore.runtime.calls import device_of

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


@dataclass(frozen=True)
class Evaluation:
    """The result of `evaluate`. `window_nll` holds the sum of NLL (nats) per window, `window_tokens` the
    tokens scored."""

    perplexity: float
    nll_sum: float
    tokens_scored: int
    window: int
    stride: int
    bos_policy: str
    bits_per_byte: float | None
    window_nll: list[float]
    window_tokens: list[int]
    divergence: Divergence | None

    def to_dict(self) -> dict[str, Any]:
        """Return a JSON-ready dictionary."""
        return asdict(self)


def evaluate(
    model: PreTrainedModel,
    ids: torch.Tensor,
    *,
    window: int = 512,
    stride: int | None = None,
    reference: Reference | None = None,
    record: Path | None = None,
    checkpoint: Path | None = None,
    tokenizer: PreTrainedTokenizerBase | None = None,
    progress: Progress | None = None,
    chunk: int | None = None,
    kv: KVFormat | None = None,
) -> Evaluation:
    """Score the text `ids` (T,) with a causal language model.

    window, stride   in tokens; windows begin every `stride` tokens (default: window)
    reference        the baseline, recorded over the same text and windows: adds the divergence
    record           a file to record this model to, as the reference for others (`Reference.open`)
    checkpoint       folder with the safetensors files of the recorded, unquantized model: the record then
                     points to the output head there instead of copying it
    tokenizer        of the text: adds `bos_policy` and bits per byte,
                     Σ NLL / (ln 2 · UTF-8 bytes of the scored tokens)
    progress         called after each window with (tokens scored, tokens to score, a phrase for the user)
    chunk            positions per piece of logits (default: as many as fit 64 MiB, at most 128)
    kv               key-value cache through which every window is read, as if token by token (default: none)

    Raise `InputError` for fewer than two tokens, tokens beyond the vocabulary, a window that the model cannot
    read, or a reference over other text; `RunError` if logits are NaN or infinite, so that a broken model
    never gets a number.
    """
    window, stride = cut.check(window, stride)
    _check_ids(model, ids, window)
    training = model.training
    model.eval()
    try:
        reader = LogitReader(model, chunk, kv)
        return _evaluate(
            model, ids, window, stride, reference, record, checkpoint, tokenizer, progress, reader
        )
    finally:
        model.train(training)


def _evaluate(
    model: PreTrainedModel,
    ids: torch.Tensor,
    window: int,
    stride: int,
    reference: Reference | None,
    record: Path | None,
    checkpoint: Path | None,
    tokenizer: PreTrainedTokenizerBase | None,
    progress: Progress | None,
    reader: LogitReader,
) -> Evaluation:
    meter = DivergenceMeter() if reference else None
    if reference:
        reference.match(ids, window, stride, reader)
    recorder = Recorder(record, reader, ids, window, stride, checkpoint) if record else None
    nlls: list[float] = []
    counts: list[int] = []
    device, done = device_of(model), 0
    try:
        for number, span in enumerate(plan := list(cut.windows(len(ids), window, stride)), 1):
            total = 0.0
            for part in reader.read(ids[span.begin : span.end], span.skip):
                targets = ids[span.begin + part.start + 1 : span.begin + part.stop + 1].to(device)
                if recorder:
                    recorder.add(part)
                own = LogProbabilities(part.logits)
                total += float(own.nll(targets).sum())
                if reference and meter:
                    meter.add(LogProbabilities(reference.logits(done, len(targets), device)), own, targets)
                done += len(targets)
            nlls.append(total)
            counts.append(span.scored)
            if meter:
                meter.close_window()
            if progress:
                progress(done, len(ids) - 1, f"window {number} of {len(plan)}")
        if recorder:
            recorder.close()
    finally:
        if recorder:
            recorder.discard()
    nll = math.fsum(nlls)
    nbytes = None if tokenizer is None else scored_bytes(ids, tokenizer)
    return Evaluation(
        perplexity=_exp(nll / done),
        nll_sum=nll,
        tokens_scored=done,
        window=window,
        stride=stride,
        bos_policy=bos_policy(tokenizer, ids),
        bits_per_byte=nll / math.log(2) / nbytes if nbytes else None,
        window_nll=nlls,
        window_tokens=counts,
        divergence=meter.result() if meter else None,
    )


def scored_bytes(ids: torch.Tensor, tokenizer: PreTrainedTokenizerBase) -> int:
    """Return the UTF-8 length of the scored tokens: all but the first of `ids` (T,)."""
    text = str(tokenizer.decode(ids[1:], skip_special_tokens=False, clean_up_tokenization_spaces=False))
    return len(text.encode("utf-8", "replace"))


def bos_policy(tokenizer: PreTrainedTokenizerBase | None, ids: torch.Tensor) -> str:
    """Describe the tokens that `tokenizer` put in front of the text `ids` (T,)."""
    if tokenizer is None:
        return "unknown: the text was given as token ids"
    plain, whole = (tokenizer("a", add_special_tokens=added)["input_ids"] for added in (False, True))
    count = next((i for i in range(len(whole)) if whole[i : i + len(plain)] == plain), 0)
    if not count or ids[:count].tolist() != whole[:count]:
        return "none added"
    names = ", ".join(tokenizer.convert_ids_to_tokens(whole[:count]))
    return f"{names} at the beginning of the text, added by the tokenizer"


def _exp(nll: float) -> float:
    try:
        return math.exp(nll)
    except OverflowError:
        raise RunError(
            f"The mean NLL is {nll:.4g} nats, so the perplexity overflows: the model has failed."
        ) from None


def _check_ids(model: PreTrainedModel, ids: torch.Tensor, window: int) -> None:
    if ids.ndim != 1:
        raise InputError(
            f"The text's token ids have the shape {tuple(ids.shape)}; they must be one row, (T,)."
        )
    if len(ids) < 2:
        raise InputError(
            f"The text has {ids.numel()} token{'s' * (ids.numel() != 1)}; scoring needs at least 2."
        )
    config = model.config.get_text_config() if hasattr(model.config, "get_text_config") else model.config
    lowest, highest = int(ids.min()), int(ids.max())
    if lowest < 0 or highest >= config.vocab_size:
        wrong = highest if highest >= config.vocab_size else lowest
        raise InputError(
            f"Token id {wrong} is outside the model's vocabulary of {config.vocab_size}: "
            "another tokenizer made this text."
        )
    limit = positions(config)
    if limit and min(window, len(ids) - 1) > limit:
        raise InputError(
            f"The window of {window} tokens is longer than the {limit} that this model can read; "
            f"use a window of {limit} or less."
        )
