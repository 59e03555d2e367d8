"""Results as text: numbers with units, a table for terminals, CSV and JSON. The only place where numbers
become text.

Sizes are decimal (1 MB = 10^6 bytes), as on disks and model pages. CSV cells that a spreadsheet could take
for a formula are escaped; JSON holds unformatted values.
"""

import csv
import io
import json
import re
import unicodedata
from collections.abc import Sequence
from typing import Any, cast

from qcore.base.files import finite
from qcore.base.other_work import is_disturbed, share_of
from qcore.evaluation.phrases import answers_phrase
from qcore.evaluation.verdict import details
from qcore.formats.kv import NONE
from qcore.results.rows import FIGURES, ROW_KEYS, Figure, ResultRow, RunRecord
from qcore.results.verdicts import kv_of

NOTHING = "–"
_UNSEEN = ("Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp")  # categories of characters
_FORMULA = ("=", "+", "-", "@", "\t", "\r", "\n", "＝", "＋", "－", "＠")
_LONE = re.compile("[\ud800-\udfff]")


def human_bytes(count: float | None) -> str:
    """ "538 MB": three significant digits and a decimal unit."""
    if count is None:
        return NOTHING
    value, unit = float(count), "B"
    for bigger in ("kB", "MB", "GB", "TB"):
        if abs(value) < 999.5:
            break
        value, unit = value / 1000, bigger
    return f"{int(value)} B" if unit == "B" else f"{human_number(value)} {unit}"


def human_number(value: float | None, digits: int = 3) -> str:
    """`digits` significant digits, but never fewer than the integer part has, with thousands separators:
    0.00123, 12.3, 1,234."""
    if value is None:
        return NOTHING
    if value == 0:
        return "0"
    rounded = f"{value:.{digits}g}"
    if "e" not in rounded:
        exponent = int(f"{value:.{digits - 1}e}".partition("e")[2])
        return f"{value:,.{max(0, digits - 1 - exponent)}f}"
    return f"{value:,.0f}" if 1 <= abs(value) < 1e9 else rounded


def human_seconds(seconds: float | None) -> str:
    """ "12 ms", "3.4 s", "2 min 05 s" or "1 h 02 min"."""
    if seconds is None:
        return NOTHING
    if seconds < 0.9995:
        return f"{human_number(seconds * 1000)} ms"
    if seconds < 59.95:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"


def human_percent(share: float | None) -> str:
    """ "96.1 %" for 0.961."""
    return NOTHING if share is None else f"{100 * share:.1f} %"


def human_perplexity(value: float | None) -> str:
    """Four digits: perplexities of good recipes differ in the third."""
    return human_number(value, 4)


_BY_UNIT = {"MB": human_bytes, "%": human_percent, "s": human_seconds, "ms": human_seconds}


def human_figure(figure: Figure, value: float | None) -> str:
    """Format a figure of a row as text, with its unit if the unit depends on the size."""
    by_unit = _BY_UNIT.get(figure.unit)
    return by_unit(value) if by_unit else human_number(value, figure.digits)


def title(figure: Figure) -> str:
    """Return the title of a column of `human_figure`s, with the unit if the cells have none."""
    return figure.title if figure.unit in _BY_UNIT else f"{figure.title} {figure.unit}".rstrip()


VERDICT_CELLS = ("verdict", "ratio", "ratio_low", "ratio_high", "margin")
RECORD_CELLS = (
    "model",
    "revision",
    "text",
    "tokens_scored",
    "window",
    "stride",
    "seed",
    "threads",
    "compute_dtype",
    "command",
)


def unfinished_row(
    spec: dict[str, Any],
    position: int,
    status: str,
    error: str,
    kind: str | None,
    *,
    phase: str | None,
    started_at: float | None,
    run_id: str | None = None,
) -> ResultRow:
    """Return the row of a recipe without a result: `status` "failed" or "cancelled", every figure None, and
    the reason."""
    recipe = spec["recipes"][position]
    record = RunRecord(
        model=spec["model"],
        revision=spec.get("revision"),
        recipe=recipe,
        spec=spec,
        run_id=run_id,
        error_kind=kind,
        failed_while=phase,
        started_at=started_at,
    )
    nothing = cast(ResultRow, dict.fromkeys(ROW_KEYS))
    return {**nothing, "recipe": recipe["name"], "status": status, "error": error, "record": record}


def table(rows: Sequence[ResultRow]) -> str:
    """Return the rows as aligned text for a terminal, followed by verdicts, task answers and failures, one
    sentence each."""
    shown = [figure for figure in FIGURES if any(figure.of(row) is not None for row in rows)]
    judged, asked = (any(row.get(key) for row in rows) for key in ("verdict", "choices"))
    lines = [["recipe", *map(title, shown), *["questions"] * asked, *["verdict"] * judged]]
    for row in rows:
        cells = [row["status"]]
        if row["status"] == "ok":
            verdict, choices = row.get("verdict"), row.get("choices")
            cells = [human_figure(figure, figure.of(row)) for figure in shown]
            cells += [human_percent(choices["accuracy"]["estimate"]) if choices else NOTHING] * asked
            cells += [verdict["outcome"] if verdict else NOTHING] * judged
        lines.append([visible(row["recipe"]), *cells])
    widths = [max(len(line[i]) for line in lines if i < len(line)) for i in range(len(lines[0]))]
    text = [_align(line, widths) for line in lines]
    text.insert(1, "  ".join("-" * width for width in widths))
    text += [
        f"{visible(row['recipe'])}: {verdict['sentence']}{_behind(verdict)}"
        for row in rows
        if (verdict := row.get("verdict"))
    ]
    text += [
        f"{visible(row['recipe'])}: {cache_phrase(row['record']['kv'])}."
        for row in rows
        if kv_of(row) != NONE
    ]
    text += [
        f"{visible(row['recipe'])}: {phrase}."
        for row in rows
        if (phrase := beside_other_work(share_of(row.get("record"))))
    ]
    text += [
        f"{visible(row['recipe'])}: {answers_phrase(choices)}."
        for row in rows
        if (choices := row.get("choices"))
    ]
    text += [
        f"{visible(row['recipe'])} {row['status']}: {visible(row['error'])}"
        for row in rows
        if row.get("error")
    ]
    return "\n".join(text)


def _behind(verdict: dict) -> str:
    more = "; ".join(details(verdict))
    return f" {more}." if more else ""


def cache_phrase(kv: dict) -> str:
    """Describe the key-value cache of a record for the user: "KV cache in int8: 2.6 MB for 160 tokens, 16.4
    kB per token"."""
    taken = (
        f"{human_bytes(kv['bytes'])} for {kv['tokens']:,} tokens, "
        f"{human_bytes(kv['bytes_a_token'])} per token"
        if kv.get("bytes")
        else ""
    )
    return f"KV cache in {kv['name']}" + (f": {taken}" if taken else "")


def beside_other_work(share: float | None) -> str | None:
    """Return the mark of a speed during whose measurement other processes took `share` of the processor; None
    if that is too little to matter, or unknown."""
    if not is_disturbed(share):
        return None
    return f"measured beside other work: other processes took {human_percent(share)} of the processor"


def to_json(value) -> str:
    """Return rows or records as JSON text; NaN and infinity become null, lone surrogates are escaped."""
    text = json.dumps(finite(value), indent=2, ensure_ascii=False, allow_nan=False) + "\n"
    return _LONE.sub(lambda found: f"\\u{ord(found[0]):04x}", text)  # UTF-8 cannot hold them


def to_csv(rows: Sequence[ResultRow]) -> str:
    """Return CSV for spreadsheets, one line per row: the figures unrounded, then their conditions. Formulas
    are escaped."""
    file = io.StringIO()
    writer = csv.writer(file)
    writer.writerow([*ROW_KEYS[:-1], *VERDICT_CELLS, *RECORD_CELLS, "others_share"])
    for row in rows:
        record = row.get("record") or {}
        cells = [
            *(row.get(key) for key in ROW_KEYS[:-1]),
            *_verdict_cells(row.get("verdict")),
            *(record.get(key) for key in RECORD_CELLS),
            share_of(record),
        ]
        writer.writerow([escape_cell(cell) for cell in cells])
    return file.getvalue()


def _verdict_cells(verdict: dict | None) -> list:
    if not verdict:
        return [None] * len(VERDICT_CELLS)
    ratio = verdict["ratio"]
    return [verdict["outcome"], ratio["estimate"], ratio["low"], ratio["high"], verdict["margin"]]


def escape_cell(cell):
    """Prefix `cell` with an apostrophe if it is text that a spreadsheet would take for a formula; numbers are
    unchanged."""
    if isinstance(cell, dict):
        cell = cell["accuracy"]["estimate"] if "accuracy" in cell else cell.get("name", "")
    if not isinstance(cell, str):
        return cell
    cell = _LONE.sub(lambda found: _escape(found[0]), cell)
    return "'" + cell if cell.startswith(_FORMULA) else cell


def visible(text: str | None) -> str:
    """Escape control characters of `text` (ANSI sequences, right-to-left overrides, NUL), so that a terminal
    only displays it."""
    return "".join(
        _escape(c) if unicodedata.category(c) in ("Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp") else c
        for c in text or ""
    )


def visible_text(text: str) -> str:
    """Apply `visible` to a text of several lines, keeping line breaks and tabs."""
    return "\n".join("\t".join(visible(part) for part in line.split("\t")) for line in text.split("\n"))


def _escape(character: str) -> str:
    return character.encode("unicode_escape", "surrogatepass").decode("ascii")


def _align(line: list[str], widths: list[int]) -> str:
    return "  ".join(
        [
            line[0].ljust(widths[0]),
            *(cell.rjust(width) for cell, width in zip(line[1:], widths[1:], strict=False)),
        ]
    ).rstrip()
