"""What JSON of strangers may not do."""

import json
import time

import pytest

from qcore.base.strict_json import DEEPEST, distinct, is_deep, repeated


def nested(depth: int) -> list:
    value: list = []
    for _ in range(depth - 1):
        value = [value]
    return value


@pytest.mark.row("5")
def test_a_key_that_occurs_twice_is_found_in_time():
    """It took hours for the square of a million keys."""
    keys = ", ".join(f'"{i}": 0' for i in range(200_000))
    began = time.process_time()
    with pytest.raises(ValueError, match="the key '199999' occurs twice"):
        json.loads(f'{{{keys}, "199999": 1}}', object_pairs_hook=distinct)
    assert time.process_time() - began < 5
    assert repeated("abcba") == "b" and repeated([]) is None


@pytest.mark.parametrize(
    ("value", "deep"),
    [
        (nested(DEEPEST), False),
        (nested(DEEPEST + 2), True),
        ({"a": {"b": nested(DEEPEST)}}, True),
        ({"a": [1, "x", None, {}]}, False),
        ("text", False),
    ],
    ids=["deepest", "deeper", "mixed", "flat", "text"],
)
def test_depth(value, deep):
    assert is_deep(value) is deep
