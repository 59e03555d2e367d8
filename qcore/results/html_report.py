"""The report of a run as one HTML file that opens without a network and prints well: settings, verdicts,
figures, pictures, answers, ledger, machine, and the command that repeats the run.

The file holds no script and names no other file; a policy in its head forbids both. Names, prompts and texts
are data: the template escapes all of them, control characters included.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from importlib import resources
from typing import Any

import jinja2

import qcore
from qcore.base.errors import InputError
from qcore.base.other_work import share_of
from qcore.evaluation.phrases import answers_phrase
from qcore.evaluation.verdict import details
from qcore.formats.kv import NONE
from qcore.recipes import Recipe
from qcore.recipes.names import describe
from qcore.results import conditions, pictures, report
from qcore.results.rows import FIGURES, ResultRow
from qcore.results.scales import OUTCOMES
from qcore.results.verdicts import kv_of

_TEMPLATE = "html_report.html.jinja"


@dataclass(frozen=True)
class Group:
    """The tensors of a ledger in one format: how many, their weights, and stored bytes before and after."""

    format: str
    tensors: int
    weights: int
    before: int
    after: int


def page(rows: Sequence[ResultRow]) -> str:
    """Return the report of the `rows` of one run, with their verdicts (see `with_verdicts`), as HTML. Raise
    `InputError` without rows."""
    if not rows:
        raise InputError("A report needs at least one finished recipe, and this run has none.")
    record = next((row["record"] for row in rows if row["status"] == "ok"), rows[0]["record"])
    shown = [figure for figure in FIGURES if any(figure.of(row) is not None for row in rows)]
    return (
        _environment()
        .get_template(_TEMPLATE)
        .render(
            version=qcore.__version__,
            run_id=record.get("run_id") or "",
            model=record.get("model") or "",
            started=_clock(record.get("started_at")),
            rows=rows,
            figures=shown,
            picture=pictures.verdicts(rows),
            pictures=pictures.pictures(rows),
            notes=list(_notes(rows)),
            about={row["recipe"]: list(_about(row)) for row in rows},
            answers=list(_answers(rows)),
            ledgers=[
                (row["recipe"], tensors, _groups(tensors)) for row in rows if (tensors := _tensors(row))
            ],
            settings=conditions.settings(record),
            machine=conditions.machine(record),
            command=record.get("command") or f"python -m qcore runs repeat {record.get('run_id')}",
            colors=OUTCOMES,
            width=pictures.WIDTH,
            details=details,
            human=report,
        )
    )


def _environment() -> jinja2.Environment:
    def load(name: str) -> str:
        return resources.files(__package__).joinpath(name).read_text("utf-8")

    def seen(value: Any) -> Any:
        data = isinstance(value, str) and not hasattr(value, "__html__")  # what macros drew has it
        return report.visible_text(value) if data else value

    return jinja2.Environment(
        loader=jinja2.FunctionLoader(load),
        autoescape=True,
        finalize=seen,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )


def _clock(moment: float | None) -> str:
    return "" if moment is None else f"{datetime.fromtimestamp(moment).astimezone():%Y-%m-%d %H:%M %Z}"


def _notes(rows: Sequence[ResultRow]) -> Iterator[tuple[str, str]]:
    """Yield (recipe, sentence): other work, key-value caches, answers to questions, and notes of the
    measurement."""
    for row in rows:
        if mark := report.beside_other_work(share_of(row["record"])):
            yield row["recipe"], f"Speed {mark}."
        if kv_of(row) != NONE:
            yield row["recipe"], f"{report.cache_phrase(row['record']['kv'])}."
        if choices := row.get("choices"):
            yield row["recipe"], f"{answers_phrase(choices)}."
        for note in row["record"].get("notes") or ():
            yield row["recipe"], note


def _about(row: ResultRow) -> Iterator[str]:
    """Yield phrases on the recipe of a row: its description, skipped modules, calibration, execution."""
    record = row["record"]
    stored = record.get("recipe") or {}
    with suppress(InputError, KeyError, TypeError, ValueError):  # a recipe of another version
        yield describe(Recipe.from_dict(stored))
    if skipped := (stored.get("modules") or {}).get("skip"):
        yield f"without {', '.join(skipped)}"
    if calibration := (record.get("ledger") or {}).get("calibration"):
        text = (calibration.get("text") or {}).get("name", "")
        yield f"calibrated on {calibration.get('tokens', 0):,} tokens of {text}"
    if execution := record.get("execution"):
        yield f"executed by {', '.join(execution)}"


def _answers(rows: Sequence[ResultRow]) -> Iterator[tuple[str, list[tuple[str, str, str]]]]:
    """Yield (prompt, [(recipe, continuation, where it differs from the baseline's)])."""
    written = [(row, row["record"]["generations"]) for row in rows if row["record"].get("generations")]
    for first in written[0][1] if written else ():
        found = [
            (row["recipe"], answer["text"], _divergence(row, answer))
            for row, answers in written
            for answer in answers
            if answer["id"] == first["id"]
        ]
        yield first["prompt"], found


def _divergence(row: ResultRow, answer: dict[str, Any]) -> str:
    at = answer.get("first_divergence")
    if row["recipe"] == "fp32":
        return "the baseline"
    if at is None:
        return "identical"
    return f"identical for {at} tokens" if at else "differs from the first token"


def _tensors(row: ResultRow) -> list[dict[str, Any]]:
    tensors = (row["record"].get("ledger") or {}).get("rows") or []
    return sorted(tensors, key=lambda tensor: -tensor["bytes_before"])


def _groups(tensors: Sequence[dict[str, Any]]) -> list[Group]:
    """Return the tensors by format, the largest group first."""
    counts: dict[str, Counter[str]] = {}
    for tensor in tensors:
        name = tensor["format"] or f"kept in {tensor['dtype']}"
        sums = {name: tensor[name] for name in ("weights", "bytes_before", "bytes_after")}
        counts.setdefault(name, Counter()).update(sums | {"tensors": 1})
    groups = [
        Group(name, found["tensors"], found["weights"], found["bytes_before"], found["bytes_after"])
        for name, found in counts.items()
    ]
    return sorted(groups, key=lambda group: -group.before)
