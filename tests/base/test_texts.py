"""Texts, and every way in which a file of them can be wrong."""

import gzip
import hashlib
import sys
from types import SimpleNamespace

import pytest
import tiny
import torch
from hypothesis import given
from hypothesis import strategies as st

from qcore.base import text_files, texts
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
    (tmp_path / "t.txt").write_bytes("\ufeffHällo\nyou".encode())
    text = texts.load_text(tmp_path / "t.txt")
    assert (text.name, text.content) == ("t.txt", "Hällo\nyou")
    assert text.record == {"name": "t.txt", "sha256": text.sha256}


def test_line_ends_of_other_systems_are_line_feeds(tmp_path):
    (tmp_path / "unix.txt").write_bytes(b"one\n\ntwo\nthree\n")
    (tmp_path / "other.txt").write_bytes(b"one\r\n\rtwo\nthree\r\n")
    unix, other = texts.load_text(tmp_path / "unix.txt"), texts.load_text(tmp_path / "other.txt")
    assert other.content == unix.content and other.sha256 == unix.sha256
    assert other.record["line_ends_read_as_line_feeds"] == {"CR LF": 2, "CR": 1}
    assert text_files.line_end_note("t", other.line_ends) == (
        "Line ends of t were read as line feeds (2 CR LF and 1 CR)."
    )
    assert text_files.line_end_note("t", unix.line_ends) is None


def test_only_line_feeds_end_lines(tmp_path):
    content = "a\u2028b\u2029c\x85d\x0ce\x0bf\x1cg"
    assert texts.text_from_bytes("t", content.encode()).content == content


def test_strange_characters_are_kept():
    content = "<b>x</b> $y$ \u202e \u200b \x00 \x1b[31m 😀"
    assert texts.text_from_bytes("t", content.encode()).content == content


@pytest.mark.row("14")
@pytest.mark.parametrize("content", [b"", b"  \n\t ", "\ufeff".encode()], ids=["empty", "blank", "bom"])
def test_empty_texts(content):
    with pytest.raises(InputError, match="needs at least 2 tokens"):
        texts.text_from_bytes("t", content)


def test_not_utf8(tmp_path):
    (tmp_path / "t.txt").write_bytes(b"abc\xff\xfe")
    with pytest.raises(InputError, match="t.txt is not UTF-8 text .byte 3 is not"):
        texts.load_text(tmp_path / "t.txt")


FOUND = {
    "gzip": (gzip.compress(b"some text"), "compressed with gzip"),
    "zip": (b"PK\3\4\xff", "a zip archive or an office document"),
    "parquet": (b"PAR1\xff\xff", "a Parquet table"),
    "pdf": (b"%PDF-1.7\n\xff", "a PDF document"),
    "UTF-16": ("text".encode("utf-16"), "UTF-16 text. Save it as UTF-8"),
    "UTF-16 without a mark": ("some text".encode("utf-16-le"), "UTF-16 text"),
    "UTF-16, the other order": ("some text".encode("utf-16-be"), "UTF-16 text"),
    "Windows": ("Grüße".encode("cp1252"), "byte 2 is not"),
}


@pytest.mark.parametrize(("content", "message"), FOUND.values(), ids=FOUND)
def test_what_is_no_text_is_named(content, message):
    with pytest.raises(InputError, match=f"t.txt is not UTF-8 text.*{message}"):
        texts.text_from_bytes("t.txt", content)


def test_a_pointer_of_git_lfs_is_no_text():
    with pytest.raises(InputError, match="only points to a file in Git LFS"):
        texts.text_from_bytes("t", b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 5\n")


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


@pytest.mark.row("14")
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


@pytest.mark.row("13")
def test_a_token_beyond_the_embedding():
    assert len(texts.tokenize("abc", tiny.tokenizer(), vocabulary=258)) == 3
    with pytest.raises(InputError, match="has only 50"):
        texts.tokenize("abc", tiny.tokenizer(), vocabulary=50)
