"""Prompt files: every form that is read, and a sentence with the line for each that is not."""

import json

import pytest

from qcore.base.errors import InputError
from qcore.base.prompts import Message, Prompt, load_prompts

TALK = [{"role": "system", "content": "Be short."}, {"role": "user", "content": "Hi"}]
SHARED = [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Hello"}]


@pytest.fixture
def prompts(tmp_path):
    """Write a file and return its prompts."""

    def read(content, name="p.jsonl"):
        content = content if isinstance(content, str | bytes) else json.dumps(content)
        (tmp_path / name).write_bytes(content if isinstance(content, bytes) else content.encode())
        return load_prompts(tmp_path / name).prompts

    return read


def test_the_packaged_prompts():
    asked = load_prompts()
    assert len(asked.prompts) == 20 and asked.name == "packaged prompts"
    assert {each.kind for each in asked.prompts} == {"facts", "arithmetic", "code", "summary", "language"}
    assert all(2 < len(prompt.text) < 300 for prompt in asked.prompts)


def test_one_a_line(prompts):
    assert prompts("first\n\n  second \n", "p.txt") == (
        Prompt("1", "own", "first"),
        Prompt("3", "own", "  second "),
    )


STRANGE = "a\u2028b\u2029c\x85d\x0ce\x0bf\x1cg"


def test_only_line_feeds_end_lines(prompts, tmp_path):
    assert [each.text for each in prompts(f"{STRANGE}\nsecond", "p.txt")] == [STRANGE, "second"]
    raw = '{"text": "a\u2028b\u2029c\x85d"}\n{"text": "second"}'
    assert [each.text for each in prompts(raw)] == ["a\u2028b\u2029c\x85d", "second"]
    assert [each.text for each in prompts(b"one\r\ntwo\rthree\n", "p.txt")] == ["one", "two", "three"]
    assert load_prompts(tmp_path / "p.txt").record["line_ends_read_as_line_feeds"] == {"CR LF": 1, "CR": 1}


FORMS = {
    "lines": ('{"text": "a", "id": 7}\n{"text": "b", "id": "x"}', "p.jsonl"),
    "ndjson": ('{"text": "a", "id": 7}\n\n{"text": "b", "id": "x"}\n', "p.ndjson"),
    "a list": ([{"text": "a", "id": 7}, {"text": "b", "id": "x"}], "p.json"),
    "a list over lines": (
        json.dumps([{"prompt": "a", "id": 7}, {"prompt": "b", "id": "x"}], indent=1),
        "p.json",
    ),
    "under a key": ({"version": 1, "data": [{"prompt": "a", "id": 7}, {"prompt": "b", "id": "x"}]}, "p.json"),
    "rows of the hub's viewer": (
        {
            "rows": [
                {"row_idx": i, "row": {"text": t, "id": n}} for i, (t, n) in enumerate([("a", 7), ("b", "x")])
            ]
        },
        "p.json",
    ),
    "columns": ({"text": ["a", "b"], "id": [7, "x"]}, "p.json"),
    "columns by line": ({"text": {"0": "a", "1": "b"}, "id": {"0": 7, "1": "x"}}, "p.json"),
    "HumanEval": ('{"task_id": 7, "prompt": "a", "test": "…"}\n{"task_id": "x", "prompt": "b"}', "p.jsonl"),
    "questions": ('{"question_id": 7, "question": "a"}\n{"question_id": "x", "question": "b"}', "p.jsonl"),
    "instructions": (
        '{"instruction": "a", "input": "", "id": 7}\n{"instruction": "b", "id": "x"}',
        "p.jsonl",
    ),
    "CSV": ("id,prompt\n7,a\nx,b\n", "p.csv"),
    "semicolons": ("id;prompt;note\n7;a;\nx;b;1,5\n", "p.csv"),
    "a spreadsheet": ("sep=;\nid;text\n7;a\nx;b\n", "p.csv"),
    "tabs": ("text\tid\na\t7\nb\tx\n", "p.tsv"),
    "a byte order mark": ("\ufeffid,prompt\n7,a\nx,b\n", "p.csv"),
}


@pytest.mark.parametrize(("content", "name"), FORMS.values(), ids=FORMS)
def test_forms(prompts, content, name):
    assert prompts(content, name) == (Prompt("7", "own", "a"), Prompt("x", "own", "b"))


def test_texts_alone_and_kinds(prompts):
    assert [each.text for each in prompts(["a", "b"], "p.json")] == ["a", "b"]
    assert [each.text for each in prompts('"a"\n"b"')] == ["a", "b"]
    assert prompts('{"text": "a\\nb", "kind": "facts"}') == (Prompt("1", "facts", "a\nb"),)
    assert prompts({"instruction": "Add.", "input": "1 2", "category": "math"}) == (
        Prompt("1", "math", "Add.\n\n1 2"),
    )
    assert [each.text for each in prompts('text\n"two\nlines"\n"a, b"\n', "p.csv")] == ["two\nlines", "a, b"]


DIALOGUES = {
    "messages": {"messages": TALK},
    "with its answer": {"messages": [*TALK, {"role": "assistant", "content": "Hello"}]},
    "a preference pair": {"prompt": TALK, "chosen": [], "rejected": []},
    "a request": {"custom_id": "1", "method": "POST", "body": {"model": "m", "messages": TALK}},
    "parts": {"messages": [TALK[0], {"role": "user", "content": [{"type": "text", "text": "Hi"}]}]},
    "alone": TALK,
}


@pytest.mark.parametrize("value", DIALOGUES.values(), ids=DIALOGUES)
def test_dialogues(prompts, value):
    wanted = (Message("system", "Be short."), Message("user", "Hi"))
    lines = f"{json.dumps(value)}\n{json.dumps({'id': 'x', 'text': 'b'})}"
    assert prompts(lines)[0] == Prompt("1", "own", "system: Be short.\nuser: Hi", wanted)


def test_dialogues_of_other_names(prompts):
    one = (Message("user", "Hi"),)
    assert prompts([{"conversations": SHARED}], "p.json") == (Prompt("1", "own", "Hi", one),)
    assert prompts('{"question_id": 81, "category": "writing", "turns": ["Hi", "Again."]}') == (
        Prompt("81", "writing", "Hi", one),
    )
    assert prompts('{"messages": [{"role": "user", "content": "Hi"}]}') == (Prompt("1", "own", "Hi", one),)


BROKEN = {
    "json": ('{"text": "a"}\nnot json', "p.jsonl", "Line 2 of p.jsonl is not JSON.*'not json'"),
    "a comma": (
        '{"text": "a"},\n{"text": "b"}',
        "p.jsonl",
        "Line 1 of p.jsonl is not JSON: it ends with a comma",
    ),
    "a comma in a list": ('["a", ]', "p.json", "p.json is not JSON"),
    "a web page": ("<!DOCTYPE html>\n<html>", "p.jsonl", "Line 1 of p.jsonl is not JSON.*DOCTYPE"),
    "key": ('{"foo": "a", "bar": 1}', "p.jsonl", 'has no "text".*it has the keys foo, bar'),
    "blank": ('{"text": " "}', "p.jsonl", 'Line 1 of p.jsonl has no "text": it is blank'),
    "number": ('{"text": 5}', "p.jsonl", 'has no "text": its value is 5'),
    "a number alone": ("5", "p.jsonl", 'has no "text".*it is a number'),
    "empty": ("", "p.jsonl", "holds no prompts"),
    "an empty list": ("[]", "p.json", "holds no prompts"),
    "twice": ('{"text": "a", "id": "x"}\n{"text": "b", "id": "x"}', "p.jsonl", "uses the id 'x' twice"),
    "many": ('{"text": "a"}\n' * 1001, "p.jsonl", "at most 1000"),
    "id null": ('{"text": "a"}\n{"text": "b", "id": null}', "p.jsonl", "Line 2 of p.jsonl has id = None"),
    "id list": ('{"text": "a", "id": [1]}', "p.jsonl", r"Line 1 of p.jsonl has id = \[1\]"),
    "id fraction": ('{"text": "a", "id": 1.50}', "p.jsonl", "has id = 1.50"),
    "id truth": ('{"text": "a", "id": true}', "p.jsonl", "has id = True"),
    "kind list": ('{"text": "a", "kind": ["x"]}', "p.jsonl", "has kind = "),
    "NaN": (
        '{"text": "a"}\n{"text": "b", "x": NaN}',
        "p.jsonl",
        "Line 2 of p.jsonl cannot be used: it holds NaN",
    ),
    "infinity": ('{"text": "a", "x": -Infinity}', "p.jsonl", "it holds -Infinity"),
    "half a pair": ('{"text": "a\\ud83d"}', "p.jsonl", r"Line 1 of p.jsonl holds half of a surrogate pair"),
    "key twice": ('{"text": "a", "text": "b"}', "p.jsonl", "the key 'text' occurs twice"),
    "role": ('{"messages": [{"role": "king", "content": "a"}]}', "p.jsonl", "its role is 'king'"),
    "no content": ('{"messages": [{"role": "user"}]}', "p.jsonl", "has a message that cannot be used"),
    "no user": (
        '{"messages": [{"role": "system", "content": "a"}]}',
        "p.jsonl",
        "without a message of the user",
    ),
    "a picture": (
        '{"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}',
        "p.jsonl",
        r"other than text \(image_url\)",
    ),
    "column": ("a,b\nc,d\n", "p.csv", "needs a column called text, prompt, .*; its first line has a, b"),
    "cells": ("id,text\n1,a, b\n", "p.csv", "Line 2 of p.csv has 3 cells, but the heading has 2"),
    "quotes": ('text\n"a" b\n', "p.csv", "Line 2 of p.csv is not CSV"),
    "two columns": ("text,text\na,b\n", "p.csv", "two columns called 'text'"),
    "pickled": (b"\x80\x04\x95", "p.jsonl", "p.jsonl is not UTF-8 text"),
}


@pytest.mark.parametrize(("content", "name", "message"), BROKEN.values(), ids=BROKEN)
def test_broken(prompts, content, name, message):
    with pytest.raises(InputError, match=message):
        prompts(content, name)


def test_both_halves_of_a_pair_are_a_character(prompts):
    assert prompts('{"text": "\\ud83d\\ude00"}')[0].text == "😀"
