"""Pieces of a stream, joined, are the decoded text, and none of them shows half a character."""

import pytest
import tiny
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from qcore.base.errors import InputError
from qcore.evaluation.textstream import TextStream, decode

BYTES = tiny.tokenizer()


def metaspace() -> PreTrainedTokenizerFast:
    """A tokenizer with one token per character, spaces as ▁, the first of which is dropped on decoding, and
    byte tokens for unknown characters."""
    characters = "▁abcdefghij"
    vocab = (
        {f"<0x{i:02X}>": i for i in range(256)}
        | {c: 256 + i for i, c in enumerate(characters)}
        | {"<unk>": 300}
    )
    inner = Tokenizer(models.BPE(vocab=vocab, merges=[], byte_fallback=True, unk_token="<unk>"))
    inner.pre_tokenizer = pre_tokenizers.Metaspace()
    inner.decoder = decoders.Sequence(
        [
            decoders.Replace("▁", " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(content=" ", left=1),
        ]
    )
    return PreTrainedTokenizerFast(tokenizer_object=inner, unk_token="<unk>")


SPACES = metaspace()


def stream(tokenizer, tokens: list[int]) -> list[str]:
    running = TextStream(tokenizer)
    return [*(running.push(token) for token in tokens), running.finish()]


@given(text=st.text(max_size=40))
def test_any_text_comes_through_whole(text):
    pieces = stream(BYTES, BYTES(text)["input_ids"])
    assert "".join(pieces) == text
    if "\ufffd" not in text:
        assert all("\ufffd" not in piece for piece in pieces)


@given(tokens=st.lists(st.integers(0, 257), max_size=60))
def test_any_bytes_are_shown_as_decoding_shows_them(tokens):
    assert "".join(stream(BYTES, tokens)) == decode(BYTES, tokens)


@given(text=st.text("abcdefghij  é😀", max_size=40))
def test_spaces_in_front_of_a_token_are_kept(text):
    tokens = SPACES(text)["input_ids"]
    assert "".join(stream(SPACES, tokens)) == decode(SPACES, tokens)


@pytest.mark.parametrize(("text", "shown"), [("é", 2), ("☃", 3), ("😀", 4)])
def test_a_character_appears_with_its_last_byte(text, shown):
    pieces = stream(BYTES, BYTES("a" + text + "b")["input_ids"])
    assert pieces == ["a", *[""] * (shown - 1), text, "b", ""]


def test_a_half_character_at_the_end_is_shown_by_finish():
    assert stream(BYTES, BYTES("a😀")["input_ids"][:-1]) == ["a", "", "", "", "\ufffd"]


def test_special_tokens_are_not_shown():
    assert "".join(stream(BYTES, [256, *BYTES("ab")["input_ids"], 257])) == "ab"


def test_a_long_text_is_decoded_in_short_pieces():
    class Counting:
        longest = 0

        def decode(self, tokens, **options):
            self.longest = max(self.longest, len(tokens))
            return BYTES.decode(tokens, **options)

    counting = Counting()
    assert "".join(stream(counting, BYTES("long " * 100)["input_ids"])) == "long " * 100
    assert counting.longest <= 8


@pytest.mark.row("47")
def test_a_token_of_megabytes_is_refused():
    """It would be kept, escaped and sent by a server that many share."""
    inner = Tokenizer.from_str(BYTES.backend_tokenizer.to_str())
    inner.decoder = decoders.Sequence([decoders.ByteLevel(), decoders.Replace("a", "b" * 5000)])
    hostile = PreTrainedTokenizerFast(tokenizer_object=inner)
    with pytest.raises(InputError, match="more than 512 characters"):
        decode(hostile, inner.encode("ca").ids[-2:])
    with pytest.raises(InputError, match="more than 512 characters"):
        stream(hostile, inner.encode("a").ids[-1:])
