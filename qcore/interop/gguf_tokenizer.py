"""The tokenizer of a GGUF file, from the definition in tokenizer.json.

llama.cpp has the splitting rules ("pre-tokenizers") in its code and selects them by a name. The name is found
as its converter finds it, by a hash of the tokens of one text; failing that, by the rule itself where it is
one of those in `RULES`. Any other rule is refused, because llama.cpp would split text differently.

    gpt2    byte-level BPE: tokens, merges, name of the rule
    llama   SentencePiece BPE: tokens with scores. Where only merges are known, a token's score is the
            negative rank of the merge that makes it, so llama.cpp merges in the same order
    t5      SentencePiece unigram: tokens with scores, character map
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from qcore.base.errors import InputError
from qcore.base.files import asset
from qcore.interop.gguf_writer import Field

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = 1, 2, 3, 4, 5, 6  # llama.cpp's types of tokens
SPACE = "\N{LOWER ONE EIGHTH BLOCK}"  # SentencePiece's
_ADDED = -1000.0  # score of a token that no merge makes
_BYTE = re.compile(r"<0x[0-9A-Fa-f]{2}>")
_LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+"
    r"|\s+(?!\S)|\s+"
)
_QWEN2 = _LLAMA3.replace(r"\p{N}{1,3}", r"\p{N}")
# (parts of the pre-tokenizer, whether words in the vocabulary are taken whole): llama.cpp's name
RULES: dict[tuple[tuple[str, ...], bool], str] = {
    (("words",), False): "gpt-2",
    (("digits", "words"), False): "smollm",
    ((f"split {_LLAMA3}", "bytes"), True): "llama-bpe",
    ((f"split {_LLAMA3}", "bytes"), False): "smaug-bpe",
    ((f"split {_QWEN2}", "bytes"), False): "qwen2",
}


@dataclass(frozen=True)
class SpecialTokens:
    """Ids of tokens with a task. `ends` are all that end a text, the most usual one first."""

    bos: int | None = None
    ends: tuple[int, ...] = ()
    unknown: int | None = None
    padding: int | None = None


@dataclass(frozen=True)
class Vocabulary:
    """What llama.cpp needs to split text: `model` and `pre` select its code; a row per token."""

    model: str
    pre: str
    tokens: tuple[str | bytes, ...]
    types: tuple[int, ...]
    scores: tuple[float, ...] | None = None
    merges: tuple[str, ...] | None = None
    space_prefix: bool | None = None
    character_map: bytes | None = None


def fields(
    vocabulary: Vocabulary,
    special: SpecialTokens,
    *,
    adds_bos: bool,
    adds_eos: bool,
    templates: Mapping[str, str],
) -> list[Field]:
    """Return the settings of the tokenizer. `adds_bos` and `adds_eos`: whether encoding a text adds these
    tokens; `templates`: the chat templates by name, the usual one as "default"."""
    found = [
        Field("tokenizer.ggml.model", "str", vocabulary.model),
        Field("tokenizer.ggml.pre", "str", vocabulary.pre),
        Field("tokenizer.ggml.tokens", "[str]", vocabulary.tokens),
        Field("tokenizer.ggml.token_type", "[i32]", vocabulary.types),
    ]
    if vocabulary.scores is not None:
        found.append(Field("tokenizer.ggml.scores", "[f32]", vocabulary.scores))
    if vocabulary.merges is not None:
        found.append(Field("tokenizer.ggml.merges", "[str]", vocabulary.merges))
    if vocabulary.space_prefix is not None:
        found.append(Field("tokenizer.ggml.add_space_prefix", "bool", vocabulary.space_prefix))
    if vocabulary.character_map is not None:
        found.append(Field("tokenizer.ggml.precompiled_charsmap", "[u8]", vocabulary.character_map))
    ids = {"bos": special.bos, "unknown": special.unknown, "padding": special.padding}
    ids |= dict(zip(("eos", "eot", "eom"), special.ends, strict=False))  # llama.cpp stops at each of these
    found += [Field(f"tokenizer.ggml.{key}_token_id", "u32", i) for key, i in ids.items() if i is not None]
    found.append(Field("tokenizer.ggml.add_bos_token", "bool", adds_bos))
    found.append(Field("tokenizer.ggml.add_eos_token", "bool", adds_eos))
    if "default" in templates:
        found.append(Field("tokenizer.chat_template", "str", templates["default"]))
    if others := sorted(set(templates) - {"default"}):
        found.append(Field("tokenizer.chat_templates", "[str]", others))
        found += [Field(f"tokenizer.chat_template.{name}", "str", templates[name]) for name in others]
    return found


def vocabulary(
    definition: Mapping[str, Any],
    size: int,
    *,
    encode: Callable[[str], Sequence[int]],
    pieces: Path | None = None,
) -> Vocabulary:
    """Return the vocabulary of a tokenizer.json, `definition`, for an embedding of `size` rows. `encode`
    returns the ids of a text as the tokenizer does; `pieces` is SentencePiece's own file, tokenizer.model, if
    there is one.

    Raise `InputError` for a splitting rule that llama.cpp does not have, and for tokens that do not fit the
    embedding.
    """
    kind = definition["model"]["type"]
    table = _table(definition, size)
    if kind == "BPE" and "ByteLevel" in _types(definition.get("pre_tokenizer")):
        merges = tuple(_merge(each) for each in definition["model"]["merges"])
        return Vocabulary("gpt2", rule(definition, encode), *_columns(table), merges=merges)
    if kind == "BPE" and definition["model"].get("byte_fallback"):
        scores = _scores_of_merges(definition)
        if pieces is not None:
            scores = {text: score for text, score, _ in read_pieces(pieces)}
        return _sentencepiece("llama", definition, table, scores)
    if kind == "Unigram":
        scores = {text: score for text, score in definition["model"]["vocab"]}
        return _sentencepiece("t5", definition, table, scores)
    raise InputError(
        f"llama.cpp has no tokenizer like this one ({kind} without bytes), so the model cannot be exported "
        "as GGUF."
    )


def rule(definition: Mapping[str, Any], encode: Callable[[str], Sequence[int]]) -> str:
    """Return llama.cpp's name of the splitting rule of a byte-level tokenizer. Raise `InputError` for one
    that is not known."""
    known = _known()
    digest = hashlib.sha256(str(list(encode(known["text"]))).encode()).hexdigest()
    if digest in known["names"]:
        return known["names"][digest]
    parts = _parts(definition.get("pre_tokenizer"))
    whole = bool(definition["model"].get("ignore_merges"))
    if _normalizes(definition.get("normalizer")) and (parts, whole) in RULES:
        return RULES[parts, whole]
    raise InputError(
        "llama.cpp has no name for the rule by which this tokenizer splits text "
        f"({' + '.join(parts) or 'none'}), so it would read other tokens. Export the model for another "
        "target, such as compressed-tensors."
    )


def read_pieces(path: Path) -> list[tuple[str, float, int]]:
    """Return (text, score, type) of the tokens in SentencePiece's file, a protocol buffer whose field 1
    repeats the pieces. Raise `InputError` if it is damaged."""
    found: list[tuple[str, float, int]] = []
    try:
        for field, value in _protobuf(path.read_bytes()):
            if field != 1:
                continue
            piece = dict(_protobuf(value))
            score = memoryview(piece.get(2, bytes(4))).cast("f")[0]
            found.append((piece[1].decode(), score, piece.get(3, NORMAL)))
    except (IndexError, KeyError, TypeError, ValueError, AttributeError) as error:
        raise InputError(f"{path.name} is damaged: it is not a SentencePiece model.") from error
    return found


# -- tokens --------------------------------------------------------------------------------------------------


def _table(definition: Mapping[str, Any], size: int) -> list[tuple[str, int]]:
    """Return (text, type) of the tokens 0 … size − 1. Rows of the embedding without a token get a name of
    their own."""
    model = definition["model"]
    words = model["vocab"]
    ids = {text: i for i, (text, _) in enumerate(words)} if isinstance(words, list) else dict(words)
    unknown = model.get("unk_token") if not isinstance(words, list) else words[model.get("unk_id") or 0][0]
    types = dict.fromkeys(ids, NORMAL)
    if model.get("byte_fallback"):
        types |= {text: BYTE for text in ids if _BYTE.fullmatch(text)}
    if unknown in types and (model.get("byte_fallback") or isinstance(words, list)):
        types[unknown] = UNKNOWN
    for added in definition.get("added_tokens", ()):
        text = added["content"]
        if text not in ids and added["id"] >= size:
            continue  # some classes of tokenizers add tokens of their own, which this model cannot read
        ids[text] = added["id"]
        if types.get(text) != UNKNOWN:
            types[text] = CONTROL if added["special"] or _looks_special(text) else USER_DEFINED
    rows: list[tuple[str, int]] = [(f"[PAD{i}]", UNUSED) for i in range(size)]
    for text, i in ids.items():
        if i >= size:
            raise InputError(
                f"The token {text!r} has the number {i}, but the embedding has {size} rows: llama.cpp would "
                "refuse the file. Use the tokenizer that belongs to this model."
            )
        rows[i] = (text, types[text])
    if len({text for text, _ in rows}) < size:
        raise InputError("Two tokens have the same text, which llama.cpp does not accept.")
    return rows


def _columns(table: Sequence[tuple[str, int]]) -> tuple[tuple[str, ...], tuple[int, ...]]:
    return tuple(text for text, _ in table), tuple(kind for _, kind in table)


def _looks_special(text: str) -> bool:
    """Return whether an added token marks structure although it is not declared as special; such tokens must
    never be read from a user's text."""
    return (
        text in ("<pad>", "<mask>", "<2mass>", "[@BOS@]")
        or (text.startswith("<|") and text.endswith("|>"))
        or (text.startswith("<\N{FULLWIDTH VERTICAL LINE}") and text.endswith("\N{FULLWIDTH VERTICAL LINE}>"))
        or (text.startswith("<unused") and text.endswith(">"))
    )


def _merge(merge: str | Sequence[str]) -> str:
    """Return a merge as llama.cpp reads it: two texts with a space between; a space inside is a byte of its
    own."""
    if isinstance(merge, str):
        return merge
    return " ".join(part.replace(" ", chr(ord(" ") + 256)) for part in merge)


# -- splitting rules -----------------------------------------------------------------------------------------


@cache
def _known() -> dict[str, Any]:
    return json.loads(asset("gguf_pretokenizers.json").read_text(encoding="utf-8"))


def _members(step: Mapping[str, Any] | None, key: str) -> list[Mapping[str, Any]]:
    if not step:
        return []
    return list(step[key]) if step["type"] == "Sequence" else [step]


def _types(step: Mapping[str, Any] | None) -> set[str]:
    return {each["type"] for each in _members(step, "pretokenizers")}


def _parts(step: Mapping[str, Any] | None) -> tuple[str, ...]:
    """Return the parts of a pre-tokenizer as the texts that `RULES` has."""
    found = []
    for each in _members(step, "pretokenizers"):
        if each["type"] == "ByteLevel" and not each.get("add_prefix_space"):
            found.append("words" if each.get("use_regex", True) else "bytes")
        elif each["type"] == "Digits" and each.get("individual_digits"):
            found.append("digits")
        elif each["type"] == "Split" and each["behavior"] == "Isolated" and not each["invert"]:
            found.append(f"split {each['pattern'].get('Regex', each['pattern'])}")
        else:
            found.append(str(each["type"]))
    return tuple(found)


def _normalizes(step: Mapping[str, Any] | None) -> bool:
    """Return whether a normalizer leaves ordinary text as it is."""
    return {each["type"] for each in _members(step, "normalizers")} <= {"NFC"}


# -- SentencePiece -------------------------------------------------------------------------------------------


def _sentencepiece(
    model: str, definition: Mapping[str, Any], table: Sequence[tuple[str, int]], scores: Mapping[str, float]
) -> Vocabulary:
    texts = [text.replace(SPACE, " ") if kind == USER_DEFINED else text for text, kind in table]
    values = [
        scores.get(text, _ADDED) if kind in (NORMAL, BYTE, UNKNOWN, CONTROL) else _ADDED
        for text, kind in table
    ]
    return Vocabulary(
        model,
        "default",
        tuple(texts),
        tuple(kind for _, kind in table),
        scores=tuple(values),
        space_prefix=_adds_space(definition),
        character_map=_character_map(definition.get("normalizer")) if model == "t5" else None,
    )


def _scores_of_merges(definition: Mapping[str, Any]) -> dict[str, float]:
    """Return a score per token: those that merges make in the merges' order, single characters 0."""
    scores = {text: 0.0 for text in definition["model"]["vocab"]}
    for rank, merge in reversed(list(enumerate(definition["model"]["merges"]))):
        left, right = merge.split(" ") if isinstance(merge, str) else merge
        scores[left + right] = -float(rank + 1)
    return scores


def _adds_space(definition: Mapping[str, Any]) -> bool:
    """Return whether the tokenizer puts a space before a text."""
    for each in _members(definition.get("normalizer"), "normalizers"):
        if each["type"] == "Prepend":
            return True
    return any(
        each["type"] == "Metaspace" and each.get("prepend_scheme", "always") != "never"
        for each in _members(definition.get("pre_tokenizer"), "pretokenizers")
    )


def _character_map(normalizer: Mapping[str, Any] | None) -> bytes | None:
    for each in _members(normalizer, "normalizers"):
        if each["type"] == "Precompiled":
            return base64.b64decode(each["precompiled_charsmap"])
    return None


def _protobuf(data: bytes) -> list[tuple[int, Any]]:
    """Return (field, value) of a message: bytes of nested fields and 32-bit numbers, integers of the
    others."""
    found: list[tuple[int, Any]] = []
    place = 0
    value: Any
    while place < len(data):
        tag, place = _varint(data, place)
        kind = tag & 7
        if kind == 0:
            value, place = _varint(data, place)
        elif kind in (1, 5):
            width = 8 if kind == 1 else 4
            value, place = data[place : place + width], place + width
        elif kind == 2:
            length, place = _varint(data, place)
            value, place = data[place : place + length], place + length
        else:
            raise ValueError(f"a field of type {kind}")
        found.append((tag >> 3, value))
    return found


def _varint(data: bytes, place: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = data[place]
        value |= (byte & 127) << shift
        place, shift = place + 1, shift + 7
        if byte < 128:
            return value, place
