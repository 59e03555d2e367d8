"""The comparison of vocabularies: what other projects quantized is scored on the original's tokens."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from qcore.base.errors import InputError
from qcore.library.loading import Loaded, load_tokenizer

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from qcore.models import Checkpoint


def with_tokens_of(loaded: Loaded, original: Checkpoint) -> Loaded:
    """Return `loaded` with the tokenizer of `original`. Raise `InputError` as `check_vocabulary` does."""
    tokenizer = load_tokenizer(original)
    _check(loaded.tokenizer, loaded.checkpoint, tokenizer, original)
    return replace(loaded, tokenizer=tokenizer)


def check_vocabulary(checkpoint: Checkpoint, original: Checkpoint) -> None:
    """Raise `InputError` for a vocabulary of `checkpoint` in which a number stands for another token than in
    that of `original`."""
    _check(load_tokenizer(checkpoint), checkpoint, load_tokenizer(original), original)


def _check(
    theirs: PreTrainedTokenizerBase,
    checkpoint: Checkpoint,
    ours: PreTrainedTokenizerBase,
    original: Checkpoint,
) -> None:
    known = {number: token for token, number in theirs.get_vocab().items()}
    for token, number in sorted(ours.get_vocab().items(), key=lambda item: item[1]):
        if known.get(number) != token:
            stored = f"is {known[number]!r}" if number in known else "does not exist"
            raise InputError(
                f"The tokenizer of {checkpoint.name} differs from that of {original.name}: token {number} "
                f"{stored} there and is {token!r} here. A comparison needs models of one vocabulary."
            )
