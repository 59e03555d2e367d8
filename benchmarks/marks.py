"""Generated sections of documents: a table between two HTML comments, replaced as a whole when generated
again."""

import json
import re
import sys
import time
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))  # tables run as files, from anywhere

from qcore.base.other_work import DISTURBED  # noqa: E402

BUSY = 2 * DISTURBED  # cores, of two: from there on a figure counts as disturbed by other programs
RESULTS = ROOT / "benchmarks" / "results"
README, PAGE = ROOT / "README.md", ROOT / "docs" / "benchmarks.md"


def put(document: str, name: str, section: str) -> str:
    """Return `document` with `section` between `<!-- name: … -->` and `<!-- /name -->`.

    Raise `ValueError` if `document` does not hold both comments.
    """
    before, begin, rest = document.partition(f"<!-- {name}:")
    comment, closed, rest = rest.partition("-->")
    _, end, after = rest.partition(f"<!-- /{name} -->")
    if not (begin and closed and end):
        raise ValueError(f"the document has no section <!-- {name}: … --> … <!-- /{name} -->")
    return f"{before}{begin}{comment}{closed}\n\n{section}\n\n{end}{after}"


def written(name: str, readme: str, page: str) -> dict[Path, str]:
    """Return the README and docs/benchmarks.md with their sections called `name` replaced."""
    return {README: put(README.read_text(), name, readme), PAGE: put(PAGE.read_text(), name, page)}


def results(belongs: Callable[[str], bool]) -> list[dict]:
    """Return the saved results whose file name `belongs`, oldest first, each with its "file" name."""
    files = [file for file in RESULTS.glob("*.json") if belongs(file.name)]
    found = [json.loads(file.read_text()) | {"file": file.name} for file in files]
    return sorted(found, key=lambda result: result["started_at"])


def day(result: dict) -> str:
    """Return the local date on which the run began, as 2025-01-31."""
    return time.strftime("%Y-%m-%d", time.localtime(result["started_at"]))


def slug(name: str) -> str:
    """Return a processor's name for a file name, such as "some-processor"."""
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")


def columns(lines: list[tuple[str, ...]]) -> list[str]:
    """Align `lines` of cells for a terminal: the first column to the left, the others to the right."""
    widths = [max(len(line[i]) for line in lines) for i in range(len(lines[0]))]
    return [
        "  ".join(
            [
                line[0].ljust(widths[0]),
                *(cell.rjust(width) for cell, width in zip(line[1:], widths[1:], strict=True)),
            ]
        ).rstrip()
        for line in lines
    ]
