"""Evaluation texts and their tokens.

The default text needs no network: it is the prose of the Python language reference, which the standard
library contains in `pydoc_data.topics`. It differs slightly between versions of Python, so every record holds
its SHA-256.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from qcore.base.errors import InputError, UnavailableError
from qcore.base.files import expanded
from qcore.base.home import build_folder, home
from qcore.base.patience import watched
from qcore.base.text_files import TextFile, decode, digest_record, read_bytes, with_line_feeds

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedTokenizerBase

DEFAULT, WIKITEXT = "default", "wikitext-2"
_WIKITEXT_ID = "Salesforce/wikitext"
_WIKITEXT_SECONDS = 300.0  # for 5 MB
_NEARLY_WIKITEXT = ("wikitext", "wikitext2", "wikitext2raw", "wikitext2rawv1")
_PATIENCE = 10  # seconds for the hub to answer
LARGEST_TEXT = 200_000_000  # bytes


@dataclass(frozen=True)
class Text:
    """A text called `name` in records; `sha256` is that of its content in UTF-8. `line_ends` counts the line
    ends that were read as line feeds."""

    name: str
    content: str
    sha256: str
    line_ends: Mapping[str, int] = field(default_factory=dict)

    @property
    def nbytes(self) -> int:
        """Length in UTF-8, for bits per byte."""
        return len(self.content.encode("utf-8"))

    @property
    def record(self) -> dict:
        """The JSON-ready identity of the text."""
        return digest_record(self.name, self.sha256, self.line_ends)


def load_text(source: str | Path | None = None) -> Text:
    """Return the text called `source`: None or "default" (packaged), "wikitext-2" (from the hub), or a UTF-8
    file.

    Line ends become line feeds and a byte order mark is dropped; all other characters stay unchanged. Raise
    `InputError` for a file that is missing, too large or not text, `UnavailableError` if the hub cannot be
    reached.
    """
    if source is None or source == DEFAULT:
        return _text("the Python language reference", with_line_feeds(language_reference()))
    if source == WIKITEXT:
        return _text("WikiText-2 raw, test", with_line_feeds(_wikitext()))
    path = expanded(source)
    if re.sub(r"[^a-z0-9]", "", str(source).lower()) in _NEARLY_WIKITEXT and not path.exists():
        raise InputError(f"There is no file {str(source)!r}. Did you mean {WIKITEXT}?")
    return text_from_bytes(path.name, read_bytes(path, LARGEST_TEXT, "a text"))


def text_from_bytes(name: str, content: bytes) -> Text:
    """Return the text of an upload. Raise `InputError` if it is too large, not UTF-8, or blank."""
    if len(content) > LARGEST_TEXT:
        raise InputError(
            f"{name} has {len(content) / 1e6:.0f} MB, more than the {LARGEST_TEXT / 1e6:.0f} MB that a text "
            "may have. Shorten it."
        )
    file = decode(content, name)
    if not file.content.strip():
        raise InputError(f"{name} is empty. A text needs at least 2 tokens.")
    return _text(name, file)


def tokenize(
    text: Text | str,
    tokenizer: PreTrainedTokenizerBase,
    limit: int | None = None,
    vocabulary: int | None = None,
) -> torch.Tensor:
    """Return the token ids (T,), T ≥ 2, of `text`, at most the first `limit`; with a beginning-of-text token
    if the tokenizer adds one by default.

    Raise `InputError` if there are fewer than two tokens, or (given the embedding's size, `vocabulary`) a
    token that the model lacks.
    """
    import torch

    name, content = (text.name, text.content) if isinstance(text, Text) else ("The text", text)
    if limit is not None and limit < 2:
        raise InputError(
            f"{limit} tokens are too few: the first one is never scored, so at least 2 are needed."
        )
    ids = _encode(content, tokenizer, limit)
    if len(ids) < 2:
        raise InputError(
            f"{name} has {len(ids)} token{'s' * (len(ids) != 1)}, but at least 2 are needed: the first one "
            "is never scored."
        )
    if vocabulary is not None and max(ids) >= vocabulary:
        raise InputError(
            f"The tokenizer produces token {max(ids)}, but the model has only {vocabulary} tokens. They "
            "belong to different models."
        )
    return torch.tensor(ids, dtype=torch.long)


def _encode(content: str, tokenizer: PreTrainedTokenizerBase, limit: int | None) -> list[int]:
    """Encode only as much text as `limit` tokens need: a tokenizer takes seconds for each 10 MB."""
    part = len(content) if limit is None else 16 * limit
    while True:
        piece = content[:part]
        ids = tokenizer(piece, truncation=False, verbose=False)["input_ids"]
        # The last tokens of a cut text may differ from those of the whole, so encode some extra text.
        if limit is None or part >= len(content) or len(ids) >= limit + 64:
            return ids[:limit]
        part *= 2


def language_reference() -> str:
    """Return the prose paragraphs of `pydoc_data.topics`, topics in alphabetic order, each paragraph once,
    joined by blank lines.

    Headings, code, tables, grammar and lists are left out, line breaks inside a paragraph become spaces, and
    quotation marks and asterisks that only mark up a word are taken off; no word is changed.
    """
    from pydoc_data.topics import topics

    paragraphs: dict[str, None] = {}
    for topic in sorted(topics):
        for block in re.split(r"\n\s*\n", topics[topic]):
            lines = block.split("\n")
            paragraph = " ".join(line.strip() for line in lines if line.strip())
            if _is_prose(lines, paragraph):
                paragraphs[_MARKED.sub(r"\1", paragraph)] = None
    return "\n\n".join(paragraphs) + "\n"


_MARKED = re.compile(r"(?<![\w*])\*(\w[^*\n]*?)\*(?![\w*])")
_FEWEST_WORDS = 12


def _is_prose(lines: list[str], paragraph: str) -> bool:
    """Return whether a paragraph is prose: it starts at the margin with a capital letter, has a minimum
    length, and ends like a sentence."""
    if any(line.startswith(" ") for line in lines) or "::=" in paragraph or ">>>" in paragraph:
        return False
    if not paragraph[:1].isupper() or len(paragraph.split()) < _FEWEST_WORDS:
        return False
    return paragraph.endswith((".", ".)"))


def _text(name: str, file: TextFile) -> Text:
    digest = hashlib.sha256(file.content.encode("utf-8")).hexdigest()
    return Text(name, file.content, digest, file.line_ends)


def _wikitext() -> str:
    """Return the test split of wikitext-2-raw-v1, with its lines joined unchanged. It is downloaded once and
    kept in the cache folder."""

    def fetch(folder: Path) -> None:
        (folder / "test.txt").write_text("".join(_download_wikitext()), encoding="utf-8", newline="")

    return (build_folder(home() / "texts" / WIKITEXT, fetch) / "test.txt").read_bytes().decode("utf-8")


def _download_wikitext() -> list[str]:
    failed = (
        "WikiText-2 cannot be downloaded: the hub does not answer. Give a text file, or use the default text."
    )
    try:
        from datasets import load_dataset
        from huggingface_hub import HfApi
    except ImportError as error:
        raise UnavailableError(
            "WikiText-2 is read with the library `datasets`, which is not installed. Give a text file "
            "instead."
        ) from error
    try:
        # one request; load_dataset would retry for half a minute
        watched(lambda moving: HfApi().dataset_info(_WIKITEXT_ID, timeout=_PATIENCE), seconds=3 * _PATIENCE)
        return watched(
            lambda moving: load_dataset(_WIKITEXT_ID, "wikitext-2-raw-v1", split="test")["text"],
            seconds=_WIKITEXT_SECONDS,
        )
    except Exception as error:  # the library raises errors of its own, of the hub and of the network
        raise UnavailableError(failed) from error
