"""Parts of the audit page: the start of an audit, its progress, the findings, what is in the file."""

import streamlit as st

from qcore.base.errors import InputError
from qcore.base.home import is_public
from qcore.jobs.kind_audit import AuditRequest
from qcore.models.names import classify
from qcore.results.report import to_json
from qcore.verbs.audit_types import BROKEN, KNOW, LOSES, Audit, Finding
from ui import charts, jobs, run_panel, state
from ui.forms import KEEP
from ui.glossary import explain
from ui.text import cell, digits, shielded, size, verbatim

LOOKS = {BROKEN: ("red", "error"), LOSES: ("orange", "warning"), KNOW: ("blue", "info")}
NAMED = 3  # places named per finding before the list is folded
DRAWN = 12  # forms in the picture
VALUES_HELP = (
    "Look for NaN, absurd scales and zero points in the wrong convention. Every byte of the file is read "
    "once. Values of models on the hub are never read."
)


def options(prefix: str) -> bool:
    """Return whether values are to be read; on a public server, which reads the hub alone, they never are."""
    return not is_public() and st.toggle(
        "Read the values too", value=True, key=f"{prefix}.values", help=VALUES_HELP, **KEEP
    )


def start(chosen: tuple[str, str | None], values: bool) -> None:
    """Start the audit of the chosen model, and follow it."""
    name, revision = chosen
    classify(name, revision)
    st.query_params["run"] = jobs.submit(AuditRequest(model=name, revision=revision, values=values))
    st.rerun()


def finished(run_id: str) -> Audit | None:
    """Return the result of the audit `run_id`. Otherwise draw its progress or its error, and return None."""
    with state.shown_errors():
        status = jobs.status(run_id)
        if status.kind != "audit":
            raise InputError(f"The run {run_id} is not an audit. Start one above.")
        outcome = jobs.outcome(run_id) if status.state == "done" else None
        if outcome is not None:
            return Audit.from_dict(outcome)
        run_panel.panel(run_id)
    return None


def draw(prefix: str, found: Audit) -> None:
    """Draw the answer, the findings, and what is in the file."""
    answer(found)
    for finding in found.findings:
        _finding(finding)
    st.subheader("What is in the file", anchor=False)
    _picture(prefix, found)
    _ledger(prefix, found)


def answer(found: Audit) -> None:
    """Draw the outcome in one box, and what was not looked at."""
    name = found.model.rstrip("/").rpartition("/")[2] if found.kind != "hub" else found.model
    text = f"**{shielded(name)}** {shielded(found.sentence)}"
    if found.broken:
        st.error(text, icon=":material/error:")
    elif found.findings:
        st.warning(text, icon=":material/warning:")
    else:
        st.success(text, icon=":material/check_circle:")
    for sentence in found.not_looked_at:
        st.caption(f":material/visibility_off: {shielded(sentence)}")


def _finding(finding: Finding) -> None:
    color, icon = LOOKS[finding.severity]
    with st.container(border=True):
        st.markdown(f":{color}-badge[:material/{icon}: {finding.severity}] **{shielded(finding.title)}**")
        for spot in finding.spots[:NAMED]:
            st.markdown(f"{verbatim(spot.where)}: {verbatim(spot.what)}")
        if len(finding.spots) > NAMED:
            with st.expander(f"All {len(finding.spots)} places"):
                st.dataframe(
                    {
                        "where": [cell(spot.where) for spot in finding.spots],
                        "what": [cell(spot.what) for spot in finding.spots],
                    },
                    hide_index=True,
                )
        st.markdown(f":gray[What it does:] {shielded(finding.effect)}")
        st.markdown(f":gray[What to do:] {shielded(finding.remedy)}")


def _picture(prefix: str, found: Audit) -> None:
    totals = found.by_form()
    rows = [
        {
            "recipe": "int4" if total.quantized else "fp32",  # for the color of its family
            "label": total.form,
            "stored": total.nbytes,
            "bits": total.bits,
        }
        for total in totals[:DRAWN]
    ]
    panels = [
        charts.Panel("Stored", "", lambda row: row["stored"], size),
        charts.Panel("Bits per weight", "", lambda row: row["bits"], digits),
    ]
    state.plot(
        charts.bars(rows, panels),
        key=f"{prefix}.forms",
        alt="Stored bytes and bits per weight of each form in the file",
    )
    st.caption(shielded(found.contents))


def _ledger(prefix: str, found: Audit) -> None:
    with st.container(horizontal=True, vertical_alignment="center", horizontal_alignment="distribute"):
        only = st.toggle("Only what is in floating point", key=f"{prefix}.plain")
        st.download_button(
            "Report as JSON",
            to_json(found.to_dict()),
            file_name="audit.json",
            mime="application/json",
            icon=":material/download:",
            type="tertiary",
        )
    lines = [line for line in found.ledger if not (only and line.quantized)]
    number = st.column_config.NumberColumn
    st.dataframe(
        [
            {
                "tensor": cell(line.name),
                "form": cell(line.form),
                "shape": " × ".join(map(str, line.shape)),
                "weights": line.weights,
                "stored, MB": line.nbytes / 1e6,
                "bits/weight": line.bits_per_weight,
            }
            for line in sorted(lines, key=lambda line: -line.nbytes)
        ],
        hide_index=True,
        height=360,
        column_config={
            "weights": number(format="localized"),
            "stored, MB": number(format="%.3f"),
            "bits/weight": number(format="%.2f", help=explain("bits per weight")),
        },
    )
