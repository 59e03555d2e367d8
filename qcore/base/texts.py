"""Evaluation texts, and prompts for generation.

The default text needs no network: it is the prose of the Python language reference, which the standard
library contains in `pydoc_data.topics`. It differs slightly between versions of Python, so every record holds
its SHA-256.
"""

from __future__ import annotations

import hashlib
import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from qcore.base.errors import InputError, UnavailableError
from qcore.base.files import asset
from qcore.base.home import build_folder, home

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedTokenizerBase

DEFAULT, WIKITEXT = "default", "wikitext-2"
_WIKITEXT_ID = "Salesforce/wikitext"
_PATIENCE = 10  # seconds for the hub to answer
LARGEST_TEXT = 200_000_000  # bytes
LARGEST_PROMPTS = 1_000_000  # bytes
MOST_PROMPTS = 1000
_PACKAGED = asset("prompts.jsonl")


@dataclass(frozen=True)
class Text:
    """A text called `name` in records; `sha256` is that of its content in UTF-8."""

    name: str
    content: str
    sha256: str

    @property
    def nbytes(self) -> int:
        """Length in UTF-8, for bits per byte."""
        return len(self.content.encode("utf-8"))


@dataclass(frozen=True)
class Prompt:
    """`kind` is the skill that the prompt tests ("facts", "arithmetic", "code", "summary", "language"; "own"
    in a user's file)."""

    id: str
    kind: str
    text: str


def load_text(source: str | Path | None = None) -> Text:
    """Return the text called `source`: None or "default" (packaged), "wikitext-2" (from the hub), or a UTF-8
    file.

    Line ends and all characters stay unchanged; a byte order mark is dropped. Raise `InputError` for a file
    that is missing, too large or not text, `UnavailableError` if the hub cannot be reached.
    """
    if source is None or source == DEFAULT:
        return _text("the Python language reference", language_reference())
    if source == WIKITEXT:
        return _text("WikiText-2 raw, test", _wikitext())
    path = Path(source).expanduser()
    content = _read(path, LARGEST_TEXT, "a text")
    return text_from_bytes(path.name, content)


def text_from_bytes(name: str, content: bytes) -> Text:
    """Return the text of an upload. Raise `InputError` if it is too large, not UTF-8, or blank."""
    if len(content) > LARGEST_TEXT:
        raise InputError(
            f"{name} has {len(content) / 1e6:.0f} MB, more than the {LARGEST_TEXT / 1e6:.0f} MB that a text "
            "may have. Shorten it."
        )
    text = _decode(content, name)
    if not text.strip():
        raise InputError(f"{name} is empty. A text needs at least 2 tokens.")
    return _text(name, text)


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


def load_prompts(path: str | Path | None = None) -> list[Prompt]:
    """Return the packaged evaluation prompts, or those in a user's file: JSON lines with "text" (and "id",
    "kind"), or one prompt per line.

    Raise `InputError` naming the line that cannot be used.
    """
    source = _PACKAGED if path is None else Path(path).expanduser()
    lines = read_text_file(source, LARGEST_PROMPTS, "prompts").splitlines()
    prompts = [_prompt(line, number, source) for number, line in enumerate(lines, 1) if line.strip()]
    if not prompts:
        raise InputError(f"{source.name} holds no prompts. Write one per line.")
    if len(prompts) > MOST_PROMPTS:
        raise InputError(
            f"{source.name} holds {len(prompts)} prompts, but at most {MOST_PROMPTS} are allowed."
        )
    ids = [prompt.id for prompt in prompts]
    if len(set(ids)) < len(ids):
        raise InputError(f"{source.name} uses the id {next(i for i in ids if ids.count(i) > 1)!r} twice.")
    return prompts


def _prompt(line: str, number: int, source: Path) -> Prompt:
    if not source.suffix.lower().startswith(".json"):
        return Prompt(str(number), "own", line)
    try:
        entry = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise InputError(
            f'Line {number} of {source.name} is not JSON. Each line should look like {{"text": "…"}}.'
        ) from error
    if not isinstance(entry, dict) or not isinstance(entry.get("text"), str) or not entry["text"].strip():
        raise InputError(
            f'Line {number} of {source.name} has no "text". Each line should look like {{"text": "…"}}.'
        )
    return Prompt(str(entry.get("id", number)), str(entry.get("kind", "own")), entry["text"])


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


def _text(name: str, content: str) -> Text:
    return Text(name, content, hashlib.sha256(content.encode("utf-8")).hexdigest())


def read_text_file(path: Path, largest: int, what: str) -> str:
    """Return the content of a UTF-8 file of at most `largest` bytes, without a byte order mark; `what` names
    the content in the `InputError` that is raised if it cannot be read."""
    return _decode(_read(path, largest, what), path.name)


def _read(path: Path, largest: int, what: str) -> bytes:
    shown = repr(str(path) if len(str(path)) < 200 else str(path)[:200] + "…")
    try:
        with path.open("rb") as file:
            content = file.read(largest + 1)
    except FileNotFoundError as error:
        raise InputError(f"There is no file {shown} to read {what} from. Check the path.") from error
    except IsADirectoryError as error:
        raise InputError(f"{shown} is a folder, but {what} must be a file.") from error
    except (OSError, ValueError) as error:
        raise InputError(f"{shown} cannot be read: {getattr(error, 'strerror', None) or error}.") from error
    if len(content) > largest:
        raise InputError(
            f"{path.name} is larger than the {largest / 1e6:.0f} MB that {what} may have. Shorten it."
        )
    return content


def _decode(content: bytes, name: str) -> str:
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise InputError(
            f"{name} is not UTF-8 text (byte {error.start} is not). Save it as UTF-8, or choose another file."
        ) from error


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
        HfApi().dataset_info(
            _WIKITEXT_ID, timeout=_PATIENCE
        )  # one request; load_dataset would retry for half a minute
        return load_dataset(_WIKITEXT_ID, "wikitext-2-raw-v1", split="test")["text"]
    except Exception as error:  # the library raises errors of its own, of the hub and of the network
        raise UnavailableError(failed) from error
