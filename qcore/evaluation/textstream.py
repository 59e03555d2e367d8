"""Turn tokens into text as they arrive, without partial characters.

One character may take several tokens, and a decoder shows an incomplete one as U+FFFD; some tokenizers also
drop the space before the first token that they decode. So tokens are decoded together with those shown last,
and trailing U+FFFD are held back until the next token completes or confirms them.

`TextIteratorStreamer` of transformers (5.24) holds back every symbol until the next space: of "f(x)=1;y" it
shows "f", and the rest when the text ends. `DecodeStream` of tokenizers takes fast tokenizers only and cannot
flush the text that it holds back.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from qcore.base.errors import InputError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

HELD = "\ufffd"
LONGEST_TOKEN = 512  # characters; the longest of smollm2-135m has 81, and a stranger may write megabytes


class TextStream:
    """`push` each token, `finish` at the end; the pieces, joined, are the decoded text."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self._tokenizer = tokenizer
        self._tokens: list[int] = []  # tokens shown last, for context, and tokens not shown yet
        self._context = 0  # how many of them are context
        self._shown = 0  # characters of the decoded tokens already given out

    def push(self, token: int) -> str:
        """Return the text that is now certain: often a word, sometimes empty."""
        self._tokens.append(token)
        text = self._decode(self._tokens)
        stable = text.rstrip(HELD)
        piece = stable[self._shown :]
        self._shown = max(self._shown, len(stable))
        if (
            stable == text
        ):  # nothing held back: what came before this step's tokens is no longer needed as context
            self._tokens = self._tokens[self._context :]
            self._context = len(self._tokens)
            self._shown = len(self._decode(self._tokens))
        return piece

    def finish(self) -> str:
        """Return the text held back."""
        text = self._decode(self._tokens)
        piece, self._shown = text[self._shown :], len(text)
        return piece

    def _decode(self, tokens: list[int]) -> str:
        return decode(self._tokenizer, tokens)


def decode(tokenizer: PreTrainedTokenizerBase, tokens: list[int]) -> str:
    """Decode `tokens`, without special tokens and with spaces as generated."""
    text = str(tokenizer.decode(tokens, skip_special_tokens=True, clean_up_tokenization_spaces=False))
    if len(text) > LONGEST_TOKEN * len(tokens):
        raise InputError(
            f"The tokenizer makes more than {LONGEST_TOKEN:,} characters of a token, so no text is shown."
        )
    return text
