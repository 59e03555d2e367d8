"""The results on docs/reliability.md: bad inputs and faults, the answer that each gets, and the tests of it.

Rows, inputs and answers are written by hand on the page. A test that feeds the input or injects the fault of
a row, and asserts its answer, is marked with the row's number:

    @pytest.mark.row("F3", "31")

`make reliability` runs the marked tests, collects their outcomes in the file that QCORE_ROWS names, one JSON
object per line, and then runs this file, which writes the columns of tests and results.
"""

from __future__ import annotations

import ast
import json
import os
import re
import sys
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path

TESTS = Path(__file__).parent
PAGE = TESTS.parent / "docs" / "reliability.md"
ROW = re.compile(r"\| (F?\d+) \| ([^|]+) \| ([^|]+) \| ([^|]*) \| ([^|]+) \|")
SUMMARY = re.compile(r"\d+ of \d+ rows hold, in \d+ tests")
HOLDS, FAILS, MISSING = "holds", "**fails**", "not run"


def rows() -> list[str]:
    """Return the numbers of the rows, in the page's order."""
    return [match[1] for line in PAGE.read_text(encoding="utf-8").splitlines() if (match := ROW.match(line))]


def marked(folder: Path = TESTS) -> dict[str, list[str]]:
    """Return the tests per row, "file.py::name" relative to `folder`, from the marks in their sources."""
    found: dict[str, list[str]] = defaultdict(list)
    for path in sorted(folder.rglob("test_*.py")):
        text = path.read_text(encoding="utf-8")
        if "mark.row(" not in text:
            continue
        tree = ast.parse(text)
        of_all = {number for node in tree.body if _marks_all(node) for number in _numbers(node)}
        for node in tree.body:
            if isinstance(node, ast.FunctionDef) and node.name.startswith("test_"):
                own = {number for each in node.decorator_list for number in _numbers(each)}
                for number in sorted(of_all | own):
                    found[number].append(f"{path.relative_to(folder).as_posix()}::{node.name}")
    return found


def _marks_all(node: ast.stmt) -> bool:
    """Return whether a statement marks all tests of its file."""
    return isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "pytestmark"


def _numbers(part: ast.AST) -> set[str]:
    """Return the rows of the marks in a decorator, those of its parameters included, or in a statement."""
    calls = (node for node in ast.walk(part) if isinstance(node, ast.Call))
    marks = (call for call in calls if ast.unparse(call.func) == "pytest.mark.row")
    return {ast.literal_eval(argument) for mark in marks for argument in mark.args}


def remember(report) -> None:
    """Append the outcome of a marked test to the file that QCORE_ROWS names, if it is set."""
    path, numbers = os.environ.get("QCORE_ROWS"), dict(report.user_properties).get("rows")
    if path and numbers and (report.when == "call" or report.outcome != "passed"):
        with open(path, "a", encoding="utf-8") as file:
            line = {"case": report.nodeid, "rows": numbers, "outcome": report.outcome}
            file.write(json.dumps(line) + "\n")


def outcomes(path: Path) -> dict[tuple[str, str], list[str]]:
    """Return the outcomes per (row, test), of the last run of each case."""
    cases = {}
    for line in path.read_text(encoding="utf-8").splitlines():
        about = json.loads(line)
        cases[about["case"]] = about
    found = defaultdict(list)
    for case, about in cases.items():
        for number in about["rows"]:
            found[number, case.partition("[")[0].removeprefix("tests/")].append(about["outcome"])
    return found


def result(number: str, tests: list[str], found: Mapping[tuple[str, str], list[str]]) -> str:
    """Return the result of a row: the row holds if each of its tests ran and no case failed."""
    cases = [outcome for test in tests for outcome in found.get((number, test), [])]
    if "failed" in cases:
        return FAILS
    if not tests or any("passed" not in found.get((number, test), []) for test in tests):
        return MISSING
    return f"{HOLDS} ({cases.count('passed')})"


def page(text: str, tests: Mapping[str, list[str]], results: Mapping[str, str]) -> str:
    """Return the `text` of the page with other tests and results per row."""

    def fill(row: re.Match) -> str:
        links = "<br>".join(map(_link, tests.get(row[1], ())))
        return f"| {row[1]} | {row[2]} | {row[3]} | {links} | {results.get(row[1], MISSING)} |"

    held = sum(each.startswith(HOLDS) for each in results.values())
    number = len({test for each in tests.values() for test in each})
    return ROW.sub(fill, SUMMARY.sub(f"{held} of {len(rows())} rows hold, in {number} tests", text))


def results_of(text: str) -> dict[str, str]:
    """Return the result per row on the page `text`."""
    return {match[1]: match[5] for match in ROW.finditer(text)}


def _link(test: str) -> str:
    file, _, name = test.partition("::")
    return f"[{name.removeprefix('test_').replace('_', ' ')}](../tests/{file})"


def main(arguments: list[str]) -> int:
    """Write the page, with the results in a file of outcomes if one is given; return 1 unless every row
    holds."""
    text, tests = PAGE.read_text(encoding="utf-8"), marked()
    results = results_of(text)
    if arguments:
        found = outcomes(Path(arguments[0]))
        results = {number: result(number, tests[number], found) for number in rows()}
    PAGE.write_text(page(text, tests, results), encoding="utf-8")
    open_rows = [number for number, each in results.items() if not each.startswith(HOLDS)]
    for number in open_rows:
        print(f"row {number}: {results[number]}", *tests[number], sep="\n    ")
    return bool(open_rows)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
