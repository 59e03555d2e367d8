"""`python -m qcore audit MODEL`: the findings and the ledger of a checkpoint as text."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from qcore.cli import options
from qcore.cli.output import check_output, write_output
from qcore.cli.progress import Show

if TYPE_CHECKING:
    from qcore.verbs.audit import Audit, Finding, LedgerLine

NAMED = 3  # places that are named per finding

Headers = Annotated[bool, typer.Option("--headers", help="Read headers and settings only, no values")]
Ledger = Annotated[bool, typer.Option("--ledger", help="List every tensor instead of one line per form")]


def audit(
    model: options.Model,
    headers: Headers = False,
    ledger: Ledger = False,
    json: options.Json = None,
    revision: options.Revision = None,
) -> int:
    """Report what is in MODEL, quantized by any project, and what is broken in it: damaged files, NaN, lost
    names, zero points in the wrong convention, …

    Exit status 1 if the model is broken. Of a hub id, only headers are read.
    """
    from qcore.verbs import audit as verb

    check_output(json)
    with Show() as show:
        found = verb.run(model, revision, values=not headers, progress=show)
    write_output(found.to_dict(), json, text(found, every=ledger))
    return 1 if found.broken else 0


def text(found: Audit, *, every: bool = False) -> str:
    """Return the audit as text; with `every`, the ledger lists each tensor."""
    lines = [f"{found.model}: {found.sentence}", found.contents, ""]
    for finding in found.findings:
        lines += [*_finding(finding), ""]
    lines += _table([_of_tensor(line) for line in found.ledger] if every else _by_form(found))
    return "\n".join([*lines, *(["", *found.not_looked_at] if found.not_looked_at else [])])


def _finding(finding: Finding) -> list[str]:
    from qcore.results.report import visible

    spots = [f"    {visible(spot.where)}: {visible(spot.what)}" for spot in finding.spots[:NAMED]]
    if len(finding.spots) > NAMED:
        spots.append(f"    and {len(finding.spots) - NAMED} more")
    return [
        f"{finding.severity.upper()}  {finding.title} ({finding.check})",
        *spots,
        f"    Effect: {finding.effect}",
        f"    To do: {finding.remedy}",
    ]


def _by_form(found: Audit) -> list[tuple[str, ...]]:
    from qcore.results.report import human_bytes, human_number

    rows: list[tuple[str, ...]] = [("form", "tensors", "weights", "stored", "bits per weight")]
    for total in found.by_form():
        stored, bits = human_bytes(total.nbytes), human_number(total.bits)
        rows.append((total.form, str(total.tensors), f"{total.weights:,}", stored, bits))
    return rows


def _of_tensor(line: LedgerLine) -> tuple[str, ...]:
    from qcore.results.report import human_bytes, human_number, visible

    shape = " x ".join(map(str, line.shape))
    return visible(line.name), line.form, shape, human_bytes(line.nbytes), human_number(line.bits_per_weight)


def _table(rows: list[tuple[str, ...]]) -> list[str]:
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))] if rows else []
    return ["  ".join(c.ljust(w) for c, w in zip(row, widths, strict=True)).rstrip() for row in rows]
