"""Texts and prompts, and every way in which a file of them can be wrong."""

import hashlib
import sys
from types import SimpleNamespace

import pytest
import tiny
import torch
from hypothesis import given
from hypothesis import strategies as st

from qcore.base import texts
from qcore.base.errors import InputError, UnavailableError


def test_the_default_text_is_prose():
    text = texts.load_text()
    assert text == texts.load_text("default")
    assert text.sha256 == hashlib.sha256(text.content.encode()).hexdigest()
    assert text.nbytes == len(text.content.encode()) > 100_000
    paragraphs = text.content.strip().split("\n\n")
    assert len(set(paragraphs)) == len(paragraphs)
    assert all(
        "\n" not in paragraph and paragraph[0].isupper() and paragraph.endswith((".", ".)"))
        for paragraph in paragraphs
    )
    for trace in (">>>", "::=", "\n   ", "****", "===="):
        assert trace not in text.content


def test_no_word_of_the_default_text_is_changed():
    from pydoc_data.topics import topics

    words = set(" ".join(topics.values()).replace("*", "").split())
    assert set(texts.load_text().content.replace("*", "").split()) <= words


def test_a_file(tmp_path):
    (tmp_path / "t.txt").write_bytes("\ufeffHällo\r\nyou".encode())
    text = texts.load_text(tmp_path / "t.txt")
    assert (text.name, text.content) == ("t.txt", "Hällo\r\nyou")


def test_strange_characters_are_kept():
    content = "<b>x</b> $y$ \u202e \u200b \x00 \x1b[31m 😀"
    assert texts.text_from_bytes("t", content.encode()).content == content


@pytest.mark.parametrize("content", [b"", b"  \n\t ", "\ufeff".encode()], ids=["empty", "blank", "bom"])
def test_empty_texts(content):
    with pytest.raises(InputError, match="needs at least 2 tokens"):
        texts.text_from_bytes("t", content)


def test_not_utf8(tmp_path):
    (tmp_path / "t.txt").write_bytes(b"abc\xff\xfe")
    with pytest.raises(InputError, match="t.txt is not UTF-8 text .byte 3 is not"):
        texts.load_text(tmp_path / "t.txt")


def test_too_large(tmp_path, monkeypatch):
    monkeypatch.setattr(texts, "LARGEST_TEXT", 10)
    (tmp_path / "t.txt").write_bytes(b"x" * 11)
    with pytest.raises(InputError, match="t.txt is larger than"):
        texts.load_text(tmp_path / "t.txt")
    with pytest.raises(InputError, match="more than the"):
        texts.text_from_bytes("t", b"x" * 11)


def test_missing_files_and_folders(tmp_path):
    with pytest.raises(InputError, match="There is no file"):
        texts.load_text(tmp_path / "absent")
    with pytest.raises(InputError, match="is a folder"):
        texts.load_text(tmp_path)
    with pytest.raises(InputError, match="cannot be read"):
        texts.load_text("a\0b")
    with pytest.raises(InputError, match="There is no file|cannot be read"):
        texts.load_text("x" * 5000)


@pytest.fixture
def home(monkeypatch, tmp_path):
    monkeypatch.setenv("QCORE_HOME", str(tmp_path / "home"))


def test_wikitext_without_a_hub(home):
    with pytest.raises(UnavailableError, match="does not answer. Give a text file"):
        texts.load_text("wikitext-2")


def test_wikitext_is_the_lines_joined_and_downloaded_once(home, monkeypatch):
    rows, calls = [" = Title = \n", "", " Some text . \n"], []

    def load_dataset(*arguments, split):
        calls.append((*arguments, split))
        return {"text": rows}

    monkeypatch.setitem(sys.modules, "datasets", SimpleNamespace(load_dataset=load_dataset))
    monkeypatch.setattr("huggingface_hub.HfApi.dataset_info", lambda *args, **options: None)
    for _ in range(2):
        assert texts.load_text("wikitext-2").content == " = Title = \n Some text . \n"
    assert calls == [("Salesforce/wikitext", "wikitext-2-raw-v1", "test")]


def test_wikitext_without_the_library(home, monkeypatch):
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(UnavailableError, match="not installed"):
        texts.load_text("wikitext-2")


# -- tokens --------------------------------------------------------------------------------------------------


def test_tokens():
    ids = texts.tokenize(texts.text_from_bytes("t", b"abc"), tiny.tokenizer())
    assert ids.dtype == torch.long
    assert ids.tolist() == tiny.tokenizer()("abc")["input_ids"]


@pytest.mark.parametrize("content", ["", "a"])
def test_too_few_tokens(content):
    with pytest.raises(InputError, match=f"has {len(content)} token.*at least 2"):
        texts.tokenize(content, tiny.tokenizer())


def test_a_limit_below_two():
    with pytest.raises(InputError, match="1 tokens are too few"):
        texts.tokenize("abc", tiny.tokenizer(), 1)


@given(st.text(min_size=2, max_size=400), st.integers(2, 40))
def test_a_limit_gives_the_beginning_of_the_whole(text, limit):
    tokenizer = tiny.tokenizer()
    try:
        whole = texts.tokenize(text, tokenizer)
    except InputError:
        return
    assert torch.equal(texts.tokenize(text, tokenizer, limit), whole[:limit])


def test_a_limit_reads_on_where_tokens_are_long():
    class Words:
        def __call__(self, text, **options):
            return {"input_ids": [len(word) for word in text.split(" ")]}

    text = " ".join("x" * 500 for _ in range(100))
    assert texts.tokenize(text, Words(), 10).tolist() == [500] * 10


def test_a_token_beyond_the_embedding():
    assert len(texts.tokenize("abc", tiny.tokenizer(), vocabulary=258)) == 3
    with pytest.raises(InputError, match="has only 50"):
        texts.tokenize("abc", tiny.tokenizer(), vocabulary=50)


# -- prompts -------------------------------------------------------------------------------------------------


def test_the_packaged_prompts():
    prompts = texts.load_prompts()
    assert len(prompts) == 20
    assert {prompt.kind for prompt in prompts} == {"facts", "arithmetic", "code", "summary", "language"}
    assert all(2 < len(prompt.text) < 300 for prompt in prompts)


def test_prompts_one_a_line(tmp_path):
    (tmp_path / "p.txt").write_text("first\n\n  second \n")
    assert texts.load_prompts(tmp_path / "p.txt") == [
        texts.Prompt("1", "own", "first"),
        texts.Prompt("3", "own", "  second "),
    ]


def test_prompts_as_json_lines(tmp_path):
    (tmp_path / "p.jsonl").write_text('{"text": "a\\nb", "id": 7, "kind": "facts"}\n{"text": "c"}\n')
    assert texts.load_prompts(tmp_path / "p.jsonl") == [
        texts.Prompt("7", "facts", "a\nb"),
        texts.Prompt("2", "own", "c"),
    ]


@pytest.mark.parametrize(
    "content, message",
    [
        ('{"text": "a"}\nnot json', "Line 2 of p.jsonl is not JSON"),
        ('{"prompt": "a"}', 'Line 1 of p.jsonl has no "text"'),
        ('{"text": " "}', 'has no "text"'),
        ('{"text": 5}', 'has no "text"'),
        ('["a"]', 'has no "text"'),
        ("", "holds no prompts"),
        ('{"text": "a", "id": "x"}\n{"text": "b", "id": "x"}', "uses the id 'x' twice"),
        ('{"text": "a"}\n' * 1001, "at most 1000"),
    ],
    ids=["json", "key", "blank", "number", "list", "empty", "twice", "many"],
)
def test_broken_prompts(tmp_path, content, message):
    (tmp_path / "p.jsonl").write_text(content)
    with pytest.raises(InputError, match=message):
        texts.load_prompts(tmp_path / "p.jsonl")
