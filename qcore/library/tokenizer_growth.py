"""A bound on what the steps of a tokenizer add to a text.

A file says what a step puts in the place of a character, and steps multiply: twenty characters of a prompt
may become gigabytes. The library has no limit, so the steps are checked before it reads them. Their fields
count, not their types: the library also takes a step without a type.

The Unicode forms (NFKD, lower case …) make at most 18 characters of one, once, and count with the characters
that a step adds.
"""

from __future__ import annotations

import binascii
import json
import re
import unicodedata
from base64 import b64decode
from collections.abc import Iterator, Mapping
from math import prod
from typing import TYPE_CHECKING

from qcore.base.errors import InputError
from qcore.evaluation.textstream import LONGEST_TOKEN

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

MOST_GROWTH = 100  # characters per character: 36 are possible with the table of SentencePiece and its "▁"
_MOST_OBJECTS = 1000  # in the description of one part
_MOST_ADDED = 64  # ids that stand for one special token around a text
_READING, _WRITING = ("normalizer", "pre_tokenizer", "post_processor"), ("decoder",)
# a regular expression of characters and classes, none of which may be missing, so that no match is empty
_CONSUMING = re.compile(
    r"(?:(?:\[\^?\]?(?:\\.|[^\]\\\[])+\]|\\[pP]\{\^?\w+\}|\\[sSdDwWnrt]|\\[^A-Za-z0-9]|[^\\\[\](){}*+?^$|])"
    r"(?:\+|\{[1-9]\d*,?\})?)+",
    re.S,
)


def check_definition(definition: Mapping[str, object], name: str) -> None:
    """Raise `InputError` if the steps in the tokenizer.json of the model `name` add too much to a text, or if
    one of its tokens has more than `LONGEST_TOKEN` characters."""
    _check(definition, name)
    model, added = definition.get("model"), definition.get("added_tokens")
    vocabulary = model.get("vocab") if isinstance(model, dict) else None
    longest = max(map(_length_of, (*_entries(vocabulary), *_entries(added))), default=0)
    if longest > LONGEST_TOKEN:
        raise InputError(
            f"The tokenizer of {name} has a token of {longest:,} characters; at most {LONGEST_TOKEN} are "
            "read. Choose another model."
        )


def check_tokenizer(tokenizer: PreTrainedTokenizerBase, name: str) -> None:
    """Raise `InputError` if the steps of a loaded `tokenizer`, which may come from any file, add too much to
    a text."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    parts = {part: getattr(backend, part, None) for part in (*_READING, *_WRITING)}
    _check({key: json.loads(part.__getstate__()) for key, part in parts.items() if part is not None}, name)


def _check(parts: Mapping[str, object], name: str) -> None:
    for side, does in ((_READING, "reads"), (_WRITING, "writes")):
        if (made := prod(_growth(parts.get(part), part, name) for part in side)) > MOST_GROWTH:
            most = f"{made:,}" if made < 1e9 else "billions of"
            raise InputError(
                f"The tokenizer of {name} may make {most} characters of each that it {does}; at most "
                f"{MOST_GROWTH} are allowed, because texts would fill the memory. Choose another model."
            )


def _growth(part: object, title: str, name: str) -> int:
    """Return the most characters (tokens of a post-processor) that a part makes of one."""
    made = 1
    for number, step in enumerate(_objects(part)):
        ids = max(
            (len(value) for key in ("ids", "tokens") if isinstance(value := step.get(key), list)), default=0
        )
        if number == _MOST_OBJECTS or ids > _MOST_ADDED:
            raise InputError(
                f"The {title.replace('_', '-')} in the tokenizer of {name} has too many steps or tokens. "
                "Choose another model."
            )
        made *= _of_step(step)
    return made


def _objects(value: object) -> Iterator[dict]:
    """Yield the JSON objects in `value`, at any depth."""
    waiting = [value]
    while waiting:
        each = waiting.pop()
        if isinstance(each, dict):
            yield each
            waiting.extend(each.values())
        elif isinstance(each, list):
            waiting.extend(each)


def _of_step(step: dict) -> int:
    """Return the most characters that a step makes of one."""
    made = 1
    if "pattern" in step and "content" in step:
        made *= _of_replacement(step["pattern"], _length(step["content"]))
    if "prepend" in step:
        made *= 1 + _length(step["prepend"])
    if "precompiled_charsmap" in step:
        made *= _of_table(step["precompiled_charsmap"])
    if step.get("type") == "ByteLevel":
        made *= 2 if step.get("add_prefix_space") is False else 4
    if step.get("handle_chinese_chars"):
        made *= 3  # blanks around a character
    if "replacement" in step or "suffix" in step or "word_delimiter_token" in step:
        made *= 2  # a mark or blank in front of each piece
    if isinstance(pieces := step.get("single"), list):
        made *= max(1, sum("Sequence" in piece for piece in pieces if isinstance(piece, dict)))
    return made


def _of_replacement(pattern: object, length: int) -> int:
    text = pattern.get("String") if isinstance(pattern, dict) else None
    if isinstance(text, str) and text:
        return max(1, -(-length // len(text)))
    regex = pattern.get("Regex") if isinstance(pattern, dict) else None
    if isinstance(regex, str) and _CONSUMING.fullmatch(regex):
        return max(1, length)
    return 1 + length  # an empty match adds to what is there


def _of_table(encoded: object) -> int:
    """Return the length of the longest text in a table of SentencePiece: the bytes of a trie, preceded by
    their number, and texts that end with a zero."""
    try:
        table = b64decode(encoded, validate=True) if isinstance(encoded, str) else b""
    except (binascii.Error, ValueError):
        return 1  # the library refuses it
    texts = table[4 + int.from_bytes(table[:4], "little") // 4 * 4 :].decode("utf-8", "replace")
    return max(1, *map(_length, texts.split("\0")))


def _length(text: object) -> int:
    """Return the number of characters that a text has in the longest of the Unicode forms."""
    if not isinstance(text, str):
        return 0
    return max(len(text), len(unicodedata.normalize("NFKD", text.lower())))


def _entries(tokens: object) -> Iterator[object]:
    """Yield the texts of a vocabulary: keys, first elements of lists, or "content" of objects."""
    if isinstance(tokens, dict):
        yield from tokens
    for token in tokens if isinstance(tokens, list) else ():
        if isinstance(token, dict):
            yield token.get("content")
        elif isinstance(token, list) and token:
            yield token[0]


def _length_of(text: object) -> int:
    return len(text) if isinstance(text, str) else 0
