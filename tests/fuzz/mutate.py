"""Valid files with something changed, from a seeded stream of random numbers.

Bytes      bits, numbers, slices and lengths of a binary file or a text
Json       values, keys and sizes inside a JSON object, and sometimes its text
"""

import json
import random
import struct
from collections.abc import Sequence
from typing import Any, Protocol

_NUMBERS = (
    *(0, 1, 2, 3, 4, 7, 8, 16, 31, 32, 64, 127, 128, 255, 256, 1000, 4096, 65535, 65536, 10**6, 10**9),
    *(2**24, 2**31 - 1, 2**31, 2**32 - 1, 2**32, 2**40, 2**53, 2**62, 2**63 - 1, 2**63, 2**64 - 1),
)
_WORDS = (
    *("", "0", "-1", "1e999", "NaN", "null", "F32", "BF16", "U8", "I64", "fp32", "int4", "nf4", "uniform"),
    *("../x", "/etc/passwd", "a/b", "a\\b", "..", ".", "\0", "\ud800", "é", "\u202e", "\x1b[31m", "a" * 300),
    *("model.safetensors", "codebook", "float32", "full_attention", "{{ x }}", "%s", "=1+1", "<b>", "\r\n"),
)
_VALUES: tuple[Any, ...] = (
    *(None, True, False, 0.0, -0.0, 0.5, 1e308, -1e308, float("inf"), float("nan"), [], {}, [[]], [{}]),
    *([0], [1, 2], [None], ["a"], {"a": 1}, {"type": "uniform"}, [2**31] * 3, 10**30, 10**320, -(10**320)),
    *_NUMBERS,
    *(-number for number in _NUMBERS[1:]),
    *_WORDS,
)
_LONG = ("x" * 5000, [0] * 5000, ["a"] * 3000, {str(i): i for i in range(2000)}, [[]] * 3000)
_NESTED = "\ue000"  # stands for lists within lists, which `json.dumps` cannot write
_NESTED_TEXT = json.dumps(_NESTED).encode()


class Mutator(Protocol):
    """A source of inputs."""

    def __call__(self, chance: random.Random) -> bytes:
        """Return one input."""


class Bytes:
    """Changes to the bytes of one of the `samples`; `words` are inserted whole."""

    def __init__(self, samples: Sequence[bytes], words: Sequence[bytes] = ()):
        self._samples = tuple(samples)
        self._words = (*words, *(word.encode("utf-8", "surrogatepass") for word in _WORDS))

    def __call__(self, chance: random.Random) -> bytes:
        content = bytearray(chance.choice(self._samples))
        for _ in range(chance.choice((1, 1, 1, 2, 2, 3, 5))):
            self._change(content, chance)
        return bytes(content)

    def _change(self, content: bytearray, chance: random.Random) -> None:
        way, size = chance.randrange(11), len(content)
        if not size or way == 0:
            place = chance.randint(0, size)
            content[place:place] = chance.choice(self._words)
            return
        place = chance.randrange(size)
        if way == 1:
            content[place] ^= 1 << chance.randrange(8)
        elif way == 2:
            content[place] = chance.randrange(256)
        elif way in (3, 4, 5):  # a number of 1, 2, 4 or 8 bytes, little-endian
            width = chance.choice((1, 2, 4, 8))
            number = chance.choice(_NUMBERS) & ((1 << 8 * width) - 1)
            content[place : place + width] = number.to_bytes(width, "little")
        elif way == 6:  # a number near the one that is there
            width = chance.choice((4, 8))
            old = int.from_bytes(content[place : place + width], "little")
            number = (old + chance.choice((-2, -1, 1, 2, old, 8 * old))) & ((1 << 8 * width) - 1)
            content[place : place + width] = number.to_bytes(width, "little")
        elif way == 7:
            del content[place : place + chance.choice((1, 2, 4, 8, 16, 64))]
        elif way == 8:
            content[place:place] = content[place : place + chance.choice((1, 4, 8, 32, 128))]
        elif way == 9:
            del content[place:]
        else:  # the end of another sample
            other = chance.choice(self._samples)
            content[place:] = other[chance.randrange(len(other) + 1) :]


class Json:
    """Changes inside one of the `samples`, which are JSON objects; one input of ten has its text changed
    after that. `prefix` encodes what stands before the JSON, given its bytes, and `rest` follows it."""

    def __init__(self, samples: Sequence[dict], rest: bytes = b"", header: bool = False):
        self._samples = [(sample, list(_paths(sample))[1:]) for sample in samples]
        self._rest, self._header = rest, header
        self._bytes = Bytes([self._whole(json.dumps(sample).encode()) for sample in samples])

    def __call__(self, chance: random.Random) -> bytes:
        if chance.random() < 0.1:
            return self._bytes(chance)
        sample, paths = chance.choice(self._samples)
        changed: Any = sample
        for _ in range(chance.choice((1, 1, 1, 2, 3))):
            changed = _changed(changed, chance.choice(paths), chance)
        text = json.dumps(changed).encode()
        if _NESTED_TEXT in text:
            depth = chance.choice((10, 40, 200, 900, 3000))
            text = text.replace(_NESTED_TEXT, b"[" * depth + b"]" * depth)
        return self._whole(text)

    def _whole(self, text: bytes) -> bytes:
        return (struct.pack("<Q", len(text)) if self._header else b"") + text + self._rest


def _paths(value: Any, path: tuple = ()):
    """Yield the paths of all values inside a JSON value; of long lists, only some."""
    yield path
    inside = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, child in inside:
        if isinstance(key, str) or key < 8:
            yield from _paths(child, (*path, key))


def _changed(value: Any, path: tuple, chance: random.Random) -> Any:
    """Return `value` with a change at `path`; what lies beside the path is shared."""
    if not path or not isinstance(value, dict | list):
        return _other(value, chance)
    key, copy = path[0], value.copy()
    if (key not in copy) if isinstance(copy, dict) else (not isinstance(key, int) or key >= len(copy)):
        return copy
    if len(path) > 1:
        copy[key] = _changed(copy[key], path[1:], chance)
        return copy
    way = chance.randrange(8)
    if way == 0:
        del copy[key]
    elif way == 1 and isinstance(copy, dict):
        copy[chance.choice(_WORDS)] = copy.pop(key)
    elif way == 1:
        copy.insert(chance.randint(0, len(copy)), copy[key])
    elif way == 2 and isinstance(copy, dict):
        copy[key] = chance.choice(list(copy.values()))
    elif way == 2:
        chance.shuffle(copy)
    else:
        copy[key] = _other(copy[key], chance)
    return copy


def _other(old: Any, chance: random.Random) -> Any:
    """Return another value in place of `old`."""
    way = chance.randrange(12)
    if type(old) is int and way < 5:
        return chance.choice(
            (old + 1, old - 1, -old, 2 * old, 8 * old, old // 2, str(old), float(old % 2**60))
        )
    if isinstance(old, str) and way < 3:
        return chance.choice((old.upper(), old + "x", old[:-1], old[::-1], [old], "../" + old))
    if way == 11 and chance.random() < 0.1:
        return chance.choice(_LONG) if chance.random() < 0.8 else _NESTED
    return chance.choice(_VALUES)
