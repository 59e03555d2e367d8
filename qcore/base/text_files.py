"""Files of text that people bring: size, encoding and line ends.

    read_text     the text of a file, its line ends as line feeds, and how many were something else
    line_end_note a sentence on the line ends that were changed

Line ends of Windows (CR LF) and of old systems (CR) are read as line feeds: a tokenizer makes tokens of a
carriage return, so the same text would get another perplexity. Nothing else ends a line: form feeds, NEL,
U+2028 and U+2029 are characters.
"""

from __future__ import annotations

import codecs
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from qcore.base.errors import InputError

_FOREIGN_ENDS = re.compile(r"\r\n?")
_NAMES = {"\r\n": "CR LF", "\r": "CR"}
_CHANGED = "line_ends_read_as_line_feeds"  # in records
_POINTER = "version https://git-lfs.github.com/spec/"
_LOOKED_AT = 4096  # bytes in which UTF-16 without a mark is recognized
_SIGNATURES = (  # of files that are not text
    (b"\x1f\x8b", "compressed with gzip. Unpack it first"),
    (b"BZh", "compressed with bzip2. Unpack it first"),
    (b"\xfd7zXZ\0", "compressed with xz. Unpack it first"),
    (b"(\xb5/\xfd", "compressed with zstd. Unpack it first"),
    (b"PK\3\4", "a zip archive or an office document. Unpack it, or save its content as text"),
    (b"PAR1", "a Parquet table. Save it as JSON lines"),
    (b"ARROW1", "an Arrow table. Save it as JSON lines"),
    (b"%PDF", "a PDF document. Save its content as text"),
    (b"SQLite format 3", "a database. Save its content as text"),
    (codecs.BOM_UTF32_LE, "UTF-32 text. Save it as UTF-8"),
    (codecs.BOM_UTF16_LE, "UTF-16 text. Save it as UTF-8"),
    (codecs.BOM_UTF16_BE, "UTF-16 text. Save it as UTF-8"),
)


@dataclass(frozen=True)
class TextFile:
    """The `content` of a text with line feeds as line ends; `line_ends` counts those that were something
    else, such as {"CR LF": 812}."""

    content: str
    line_ends: Mapping[str, int] = field(default_factory=dict)


def read_text(path: Path, largest: int, what: str) -> TextFile:
    """Return the content of a UTF-8 file of at most `largest` bytes, without a byte order mark; `what` names
    the content in the `InputError` that is raised if it cannot be read."""
    return decode(read_bytes(path, largest, what), path.name)


def read_bytes(path: Path, largest: int, what: str) -> bytes:
    """Return the bytes of a file. Raise `InputError` as `read_text`."""
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


def decode(content: bytes, name: str) -> TextFile:
    """Return the text in the bytes of the file `name`. Raise `InputError` if it is not UTF-8, saying what it
    is as far as that is recognized, or if it only points to a file in Git LFS."""
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        found = next((words for start, words in _SIGNATURES if content.startswith(start)), None)
        if found:
            raise InputError(f"{name} is not UTF-8 text but {found}.") from error
        raise InputError(
            f"{name} is not UTF-8 text (byte {error.start} is not). Save it as UTF-8, or choose another file."
        ) from error
    if _looks_like_utf16(content):
        raise InputError(f"{name} is not UTF-8 text but UTF-16 text. Save it as UTF-8.")
    if text.startswith(_POINTER):
        raise InputError(
            f"{name} only points to a file in Git LFS, which was not downloaded with the rest. Download the "
            "file itself."
        )
    return with_line_feeds(text)


def with_line_feeds(text: str) -> TextFile:
    """Return `text` with line feeds as line ends."""
    if "\r" not in text:
        return TextFile(text)
    counts: dict[str, int] = {}
    for end in _FOREIGN_ENDS.findall(text):
        counts[_NAMES[end]] = counts.get(_NAMES[end], 0) + 1
    return TextFile(_FOREIGN_ENDS.sub("\n", text), counts)


def line_end_note(name: str, line_ends: Mapping[str, int]) -> str | None:
    """Return a sentence on the line ends of the file `name` that were changed; None if none were."""
    if not line_ends:
        return None
    counts = " and ".join(f"{count:,} {kind}" for kind, count in line_ends.items())
    return f"Line ends of {name} were read as line feeds ({counts})."


def digest_record(name: str, sha256: str, line_ends: Mapping[str, int]) -> dict:
    """Return the JSON-ready identity of a text in records: its name, the SHA-256 of what was read, and
    the line ends that were changed for it."""
    return {"name": name, "sha256": sha256, **({_CHANGED: dict(line_ends)} if line_ends else {})}


def line_end_notes(record: Mapping[str, Any]) -> list[str]:
    """Return the sentences of `line_end_note` for an identity that `digest_record` made."""
    note = line_end_note(record["name"], record.get(_CHANGED, {}))
    return [note] if note else []


def _looks_like_utf16(content: bytes) -> bool:
    """Return whether every other byte is mostly zero, as in UTF-16 text of a Latin script without a mark."""
    part = content[:_LOOKED_AT]
    halves = (part[::2], part[1::2])
    return len(part) >= 4 and any(
        half.count(0) > 0.8 * len(half) > 10 * other.count(0) for half, other in (halves, halves[::-1])
    )
