"""Entries of the data files that people bring: JSON lines, a JSON list, or a table (CSV, TSV).

    read      the entries of a file, each with its place for messages

JSON is read strictly: NaN, a key that occurs twice, and half a surrogate pair are refused with their line.
A list may also stand under a single key (`{"data": [...]}`), as rows of a data set (`{"row": {...}}`), or
as one list per key. The delimiter of a table is that of its heading.
"""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path
from typing import Any, Protocol

from qcore.base.errors import InputError
from qcore.base.strict_json import distinct, is_deep, repeated

TABLES = (".csv", ".tsv")
JSONS = (".json", ".jsonl", ".ndjson")
_DELIMITERS = {".csv": ",;\t", ".tsv": "\t,;"}
_EXCEL = re.compile(r"sep=(.)\n")  # a first line that some spreadsheets write
_SURROGATE = re.compile(r"[\ud800-\udfff]")
_SHOWN = 40
_OF_AN_ENTRY = {"question", "text", "prompt", "id"}  # a file with one of them beside lists is one entry
_LISTS_OF_AN_ENTRY = {"messages", "conversations", "conversation", "turns"}


class Heading(Protocol):
    """The columns that a table must have; `needed` names them in messages."""

    needed: str

    def fits(self, columns: Sequence[str]) -> bool:
        """Return whether these lower-case names of columns are enough."""


@dataclass(frozen=True)
class Entry:
    """The `value` of one entry; `where` is its place ("Line 3 of p.jsonl"), `number` counts from 1: lines
    of JSON lines and tables, entries of a list."""

    where: str
    number: int
    value: Any


def read(text: str, path: Path, looks: str, heading: Heading) -> list[Entry]:
    """Return the entries in `text`, the content of the file `path`: a table of dictionaries for a name that
    ends in .csv or .tsv, JSON otherwise. `looks` shows an entry in messages; `heading` describes a table.

    Raise `InputError` naming the line that cannot be read, and what it holds.
    """
    if path.suffix.lower() in TABLES:
        return list(_table(text, path, heading))
    return _json(text, path.name, looks)


def shown(value: object) -> str:
    """Return `value` for a message: as in Python, shortened."""
    text = str(value) if isinstance(value, Decimal) else repr(value)
    return text if len(text) <= _SHOWN else text[:_SHOWN] + "…"


def keys_of(value: object) -> str:
    """Return what an entry holds, in words: its keys, or its type."""
    if isinstance(value, dict):
        names = ", ".join(str(key) for key in value) or "none"
        return f"it has the keys {names if len(names) <= 200 else names[:200] + '…'}"
    kinds = {list: "a list", str: "a text", bool: "a truth value", type(None): "null"}
    return f"it is {kinds.get(type(value), 'a number')}"


def name_of(value: object, where: str, key: str, default: str) -> str:
    """Return an id as text: a text, a whole number, or the `default` for an entry without the key (`value`
    is then the default itself). Raise `InputError` for any other value."""
    if isinstance(value, str) and value.strip():
        return value
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    if value is _ABSENT:
        return default
    raise InputError(
        f"{where} has {key} = {shown(value)}. An id must be a text or a whole number; leave it out to count."
    )


_ABSENT = object()


def first_key(entry: dict, keys: Sequence[str]) -> tuple[str, Any]:
    """Return the first of `keys` that `entry` has, and its value; for none of them a value that `name_of`
    takes as absent."""
    return next(((key, entry[key]) for key in keys if key in entry), (keys[0], _ABSENT))


# -- JSON ----------------------------------------------------------------------------------------------------


def _json(text: str, name: str, looks: str) -> list[Entry]:
    lines = [(number, line) for number, line in enumerate(text.split("\n"), 1) if line.strip()]
    if not lines:
        return []
    whole = text.lstrip()[:1] in "[{" and len(lines) > 1 or text.lstrip().startswith("[")
    if whole and (parsed := _parsed(text)) is not None:
        values = _members(_load(text, name))
        return [Entry(f"Entry {number} of {name}", number, value) for number, value in enumerate(values, 1)]
    if len(lines) == 1 and isinstance(parsed := _parsed(lines[0][1]), dict) and _members(parsed) != [parsed]:
        values = _members(_load(lines[0][1], name))
        return [Entry(f"Entry {number} of {name}", number, value) for number, value in enumerate(values, 1)]
    if text.lstrip().startswith("[") and _parsed(lines[0][1]) is None:
        _load(text, name)  # a list over several lines: the error is that of the whole
    return [
        Entry(f"Line {number} of {name}", number, _load(line, f"Line {number} of {name}", looks))
        for number, line in lines
    ]


def _parsed(text: str) -> Any:
    """Return the JSON value in `text`, None if it is not JSON."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return None


def _load(text: str, where: str, looks: str | None = None) -> Any:
    """Return the JSON value in `text`; numbers with a fraction as `Decimal`, so that they can be written as
    they were. Raise `InputError` with the place and the reason."""
    example = f" Each line should look like {looks}." if looks else ""
    try:
        value = json.loads(
            text, parse_float=Decimal, parse_constant=_refuse_constant, object_pairs_hook=distinct
        )
    except json.JSONDecodeError as error:
        raise InputError(f"{where} is not JSON: {_why(text, error)}.{example}") from error
    except RecursionError as error:
        raise InputError(f"{where} is not JSON: it is nested too deeply.{example}") from error
    except ValueError as error:
        raise InputError(f"{where} cannot be used: {error}.") from error
    if is_deep(value):
        raise InputError(f"{where} is not JSON: it is nested too deeply.{example}")
    if "\\u" in text and (half := _half_pair(value)) is not None:
        raise InputError(
            f"{where} holds half of a surrogate pair ({half!a}), which is not a character. Write the "
            "character itself, or both halves."
        )
    return value


def _why(text: str, error: json.JSONDecodeError) -> str:
    if error.msg == "Extra data" and text[error.pos :].strip() == ",":
        return "it ends with a comma, which only belongs between the entries of a list"
    if (
        error.msg.startswith(("Illegal trailing comma", "Expecting property name"))
        and "," in text[: error.pos]
    ):
        return f"there is a comma too many, or a key without quotation marks, before {_at(text, error)}"
    return f"{error.msg[0].lower()}{error.msg[1:]} at {_at(text, error)}"


def _at(text: str, error: json.JSONDecodeError) -> str:
    rest = text[error.pos : error.pos + _SHOWN + 1]
    if not rest.strip():
        return "its end"
    place = f"line {error.lineno}, " if "\n" in text.strip() else ""
    return f"{place}character {error.colno} ({shown(rest)})"


def _refuse_constant(name: str) -> None:
    raise ValueError(f"it holds {name}, which is not a number and not JSON")


def _half_pair(value: Any) -> str | None:
    """Return half a surrogate pair in the texts of `value`; None if there is none."""
    stack = [value]
    while stack:
        part = stack.pop()
        if isinstance(part, str):
            if match := _SURROGATE.search(part):
                return match[0]
        elif isinstance(part, dict):
            stack += [*part, *part.values()]
        elif isinstance(part, list):
            stack += part
    return None


def _members(value: Any) -> list[Any]:
    """Return the entries of a whole JSON file: those of a list, of a list under a key, or of columns."""
    if isinstance(value, list):
        return [_row(member) for member in value]
    if not isinstance(value, dict) or not value:
        return [value]
    if _LISTS_OF_AN_ENTRY & set(value) or any(isinstance(value.get(key), str) for key in _OF_AN_ENTRY):
        return [value]
    columns = [_column(part) for part in value.values()]
    if all(column is not None for column in columns) and len({len(column or ()) for column in columns}) == 1:
        listed = [column or [] for column in columns]
        if len(listed) == 1 and all(isinstance(member, dict) for member in listed[0]):
            return _members(listed[0])
        return [dict(zip(value, members, strict=True)) for members in zip(*listed, strict=True)]
    holders = [
        part
        for part in value.values()
        if isinstance(part, list) and part and all(isinstance(member, dict) for member in part)
    ]
    return _members(holders[0]) if len(holders) == 1 else [value]


def _column(part: Any) -> list[Any] | None:
    """Return the values of a column: a list, or an object with the numbers of lines as keys."""
    if isinstance(part, dict) and part and all(key.isdigit() for key in part):
        return list(part.values())
    return part if isinstance(part, list) else None


def _row(member: Any) -> Any:
    """Return an entry without the frame that the hub's viewer puts around rows."""
    if isinstance(member, dict) and isinstance(member.get("row"), dict) and "row_idx" in member:
        return member["row"]
    return member


# -- tables --------------------------------------------------------------------------------------------------


def _table(text: str, path: Path, heading: Heading) -> Iterator[Entry]:
    """Yield the lines of a table as dictionaries by lower-case column; the number is that of the entry."""
    name, delimiters, skipped = path.name, _DELIMITERS[path.suffix.lower()], 0
    if match := _EXCEL.match(text):
        delimiters, text, skipped = match[1], text[match.end() :], 1
    first = text.split("\n", 1)[0]
    headings = {each: _cells(first, each) for each in delimiters}
    delimiter = next(
        (each for each, cells in headings.items() if heading.fits(cells)),
        max(headings, key=lambda each: len(headings[each])),
    )
    columns = headings[delimiter]
    if not heading.fits(columns):
        raise InputError(f"{name} needs {heading.needed}; its first line has {', '.join(columns) or 'none'}.")
    if len(set(columns)) < len(columns):
        raise InputError(
            f"{name} has two columns called {shown(repeated(columns))}, so its cells are ambiguous."
        )
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    try:
        next(reader)
        for number, cells in enumerate((cells for cells in reader if any(map(str.strip, cells))), 1):
            where = f"Line {reader.line_num + skipped} of {name}"
            if any(cell.strip() for cell in cells[len(columns) :]):
                raise InputError(
                    f"{where} has {len(cells)} cells, but the heading has {len(columns)}. Put texts that "
                    f"hold {delimiter!r} into quotation marks."
                )
            padded = cells[: len(columns)] + [""] * (len(columns) - len(cells))
            yield Entry(where, number, dict(zip(columns, padded, strict=True)))
    except csv.Error as error:
        raise InputError(f"Line {reader.line_num + skipped} of {name} is not CSV ({error}).") from error


def _cells(line: str, delimiter: str) -> list[str]:
    try:
        return [cell.strip().lower() for cell in next(csv.reader([line], delimiter=delimiter), [])]
    except csv.Error:
        return []
