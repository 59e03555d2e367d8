"""The verdict on each recipe of a run, from its recorded row. See `qcore.evaluation.verdict`.

Verdicts are computed when rows are read, not when they are measured, so that another margin needs no new run.
"""

from collections.abc import Sequence
from typing import cast

from qcore.base.errors import InputError
from qcore.evaluation.verdict import MARGIN, Verdict, judge
from qcore.formats.kv import NONE
from qcore.recipes.spec import BASELINE
from qcore.results.rows import ResultRow


def with_verdicts(rows: Sequence[ResultRow], margin: float | None = None) -> list[ResultRow]:
    """Return the rows of one run, each with its "verdict" (a dictionary or None) before its record. Without
    a `margin`, the run's margin applies."""
    baseline = next((row for row in rows if is_baseline(row) and row.get("status") == "ok"), None)
    return [_with_verdict(row, of_row(row, baseline, margin)) for row in rows]


def of_row(row: ResultRow, baseline: ResultRow | None = None, margin: float | None = None) -> Verdict | None:
    """Return the verdict on `row`, within the run's margin or another `margin`; None for the baseline itself,
    for a failed row, and without a recorded comparison. `baseline` is the fp32 row of the same run, which
    rows of earlier versions need."""
    evaluation = _evaluation(row)
    if evaluation is None or is_baseline(row):
        return None
    if margin is None:
        margin = (row["record"].get("spec") or {}).get("margin", MARGIN)
    try:
        return judge(evaluation, baseline and _evaluation(baseline), margin)
    except InputError:
        return None  # no baseline, other windows, or numbers that are not finite: a row without a verdict


def is_baseline(row: ResultRow) -> bool:
    """Return whether the row is the one that others are compared with. With a quantized key-value cache, fp32
    is an ordinary row."""
    return row.get("recipe") == BASELINE and kv_of(row) == NONE


def kv_of(row: ResultRow) -> str:
    """Return the format of the key-value cache that the row was measured with."""
    return ((row.get("record") or {}).get("kv") or {}).get("name", NONE)


def _with_verdict(row: ResultRow, verdict: Verdict | None) -> ResultRow:
    """Return a copy of `row` with the `verdict` before its record."""
    judged = {key: value for key, value in row.items() if key not in ("verdict", "record")}
    judged["verdict"] = verdict and verdict.to_dict()
    if "record" in row:
        judged["record"] = row["record"]
    return cast(ResultRow, judged)


def _evaluation(row: ResultRow) -> dict | None:
    """Return the recorded sums per window, or None."""
    evaluation = (row.get("record") or {}).get("evaluation") or {}
    return (
        evaluation
        if row.get("status") == "ok" and "window_nll" in evaluation and "window_tokens" in evaluation
        else None
    )
