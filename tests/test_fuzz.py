"""The parsers of untrusted input against mutated files, in short; `python -m tests.fuzz` runs millions. And
the loop itself, with parsers that break each limit."""

import faulthandler
import json
import os
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qcore.base.errors import InputError
from tests.fuzz import loop
from tests.fuzz.__main__ import main
from tests.fuzz.parsers import PARSERS, Parser

LIGHT = ("safetensors", "index", "gguf", "imatrix", "config", "generation", "onnx", "recipe", "name", "text")
HEAVY = {"architecture": 12, "tokenizer": 25, "template": 40, "manifest": 20, "database": 25, "kernels": 60}
ROWS = {
    "safetensors": ("5", "6"),
    "index": ("4", "7"),
    "config": ("F8", "10"),
    "architecture": ("F8", "10"),
    "generation": ("F18",),
    "template": ("F17",),
    "manifest": ("F1",),
    "kernels": ("F1",),
    "database": ("36",),
    "name": ("1",),
    "text": ("19",),
}


def cases(names):
    return [
        pytest.param(name, id=name, marks=[pytest.mark.row(*ROWS[name])] if name in ROWS else [])
        for name in names
    ]


@pytest.fixture(scope="module")
def opened(tmp_path_factory):
    """Each parser's source of inputs and function, opened once."""
    made = {}

    def get(name):
        if name not in made:
            made[name] = PARSERS[name].open(tmp_path_factory.mktemp(name))
        return made[name]

    return get


@pytest.mark.parametrize("name", cases((*LIGHT, "entries")))
@given(chance=st.randoms(use_true_random=False))
def test_mutated_files_break_no_limit(name, opened, chance):
    mutate, call = opened(name)
    content = mutate(chance)
    assert loop.judge(call, content) is None, content[:500]


@pytest.mark.slow
@pytest.mark.parametrize("name", cases(HEAVY))
def test_mutated_files_of_slower_parsers(name, opened):
    mutate, call = opened(name)
    chance = random.Random(name)
    for _ in range(HEAVY[name]):
        content = mutate(chance)
        assert loop.judge(call, content) is None, content[:500]


def test_every_parser_is_in_one_of_the_lists():
    assert sorted(PARSERS) == sorted([*LIGHT, *HEAVY, "entries"])


# -- the loop


def broken(content: bytes) -> None:
    """A parser with a fault of each kind."""
    number = int(content)
    if number == 0:
        raise KeyError(number)
    if number in (1, 7, 9, 11):
        raise InputError("")
    if number == 2:
        bytearray(1 << 30)
    if number == 3:
        try:
            bytearray(1 << 30)
        except MemoryError as error:
            raise InputError("hidden") from error
    if number == 4:
        faulthandler.disable()  # no traceback among the results of the tests
        os.abort()
    while number == 5:
        pass
    if number % 2:
        raise InputError("An odd number.")


@pytest.mark.slow
def test_each_limit_is_noticed_and_counts_add_up(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(loop, "PATIENCE", 0.4)
    monkeypatch.setattr(loop, "_WARM_UP", 0)
    monkeypatch.setattr(loop, "_REPLAY", 1)
    opened = (lambda chance: str(chance.randrange(1200)).encode()), broken
    monkeypatch.setitem(PARSERS, "broken", Parser("broken", lambda folder: opened))
    path = tmp_path / "fuzz-broken.json"
    calls = [main(["broken", "--inputs", "3000", "--results", str(tmp_path)]) for _ in range(2)]
    record = json.loads(path.read_text())
    assert calls == [1, 1]
    kinds = sorted(each["kind"] for each in record["findings"])
    assert kinds == ["crash", "exception", "hang", "memory", "memory", "message"], record
    assert record["inputs"] == sum(each["inputs"] for each in record["runs"]) >= 6000
    assert 0 < record["accepted"] < record["inputs"] and record["next_batch"] >= 6

    sound = (lambda chance: b"8"), (lambda content: None)
    monkeypatch.setitem(PARSERS, "broken", Parser("broken", lambda folder: sound))
    assert main(["broken", "--replay", "--results", str(tmp_path)]) == 0
    record = json.loads(path.read_text())
    assert record["fixed"] == 6 and not record["findings"] and len(record["runs"]) == 2
    assert "0 findings" in capsys.readouterr().out


def test_an_input_can_be_made_again(monkeypatch):
    monkeypatch.setitem(
        PARSERS, "n", Parser("n", lambda folder: (lambda chance: str(chance.random()).encode(), int))
    )
    chance = random.Random("n 7")
    assert [loop.made("n", 7, index) for index in range(3)] == [
        str(chance.random()).encode() for _ in range(3)
    ]


def test_without_a_name_the_parsers_are_listed(tmp_path, capsys):
    assert main(["--results", str(tmp_path)]) == 0
    assert [line.split()[0] for line in capsys.readouterr().out.splitlines()] == list(PARSERS)
