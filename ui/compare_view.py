"""Parts of the compare page: table, failures, verdicts, questions, answers, record, downloads."""

from functools import partial

import pandas as pd
import streamlit as st

from qcore.base.other_work import share_of
from qcore.evaluation.phrases import answers_phrase
from qcore.evaluation.phrases import percent as percent_of
from qcore.evaluation.verdict import details
from qcore.results import conditions, html_report, report
from qcore.results.rows import FIGURES
from qcore.results.verdicts import with_verdicts
from ui import diff, divergence, families, forest, questions_chart, results, state
from ui.glossary import explain
from ui.text import cell, clock, one_line, shielded, verbatim, visible

FEW = 300  # with fewer questions a difference of 5 % is within the noise
MARGINS = (0.005, 0.01, 0.02, 0.05)
BADGES = {"equivalent": "green", "worse": "red", "better": "blue", "undecided": "orange"}


def table(rows: list[dict]) -> None:
    """Draw all figures. The line of a failed recipe is red."""
    lines = [
        {"recipe": cell(row["label"]), "state": row["status"]}
        | {each.heading: None if row[each.key] is None else row[each.key] * each.scale for each in FIGURES}
        for row in rows
    ]
    frame = pd.DataFrame(lines)
    if frame["state"].eq("ok").all():
        frame = frame.drop(columns="state")
    styled = frame.style.apply(
        lambda line: [f"color: {families.FAILED}" if line.get("state") == "failed" else ""] * len(line),
        axis=1,
    )
    config = {
        each.heading: st.column_config.NumberColumn(
            format=f"%.{each.decimals}f", help=explain(each.term) if each.term else None
        )
        for each in FIGURES
    }
    st.dataframe(
        styled,
        hide_index=True,
        height="content",
        placeholder="–",
        column_config=config | {"recipe": st.column_config.TextColumn(pinned=True, width=150)},
        key="compare.table",
    )


def disturbed(rows: list[dict]) -> None:
    """Mark the recipes whose speed was measured beside other work."""
    marks = {row["label"]: report.beside_other_work(share_of(row["record"])) for row in rows}
    if lines := [f"**{shielded(label)}** {mark}." for label, mark in marks.items() if mark]:
        st.caption(":material/warning: " + " ".join(lines), help=explain("other work"))


def failures(rows: list[dict]) -> None:
    """Draw a red box per failed recipe, and a yellow one per cancelled recipe, with the error."""
    for row in rows:
        if row["status"] == "failed":
            st.error(
                f"**{shielded(row['label'])}** failed: {verbatim(row['error'] or 'no reason reported')}",
                icon=":material/error:",
            )
        elif row["status"] != "ok":
            st.warning(
                f"**{shielded(row['label'])}**: {row['status']}. {verbatim(row['error'] or '')}",
                icon=":material/warning:",
            )


def verdicts(rows: list[dict]) -> None:
    """Draw the verdict per recipe: a forest plot of the intervals, and a sentence each. The user chooses the
    margin."""
    if not any(row.get("verdict") for row in rows):
        if any(row["recipe"] != "fp32" for row in rows):
            st.caption("There are no verdicts, because no baseline was recorded.")
        return
    st.subheader("Verdicts", anchor=False, help=explain("verdict"))
    given = {row["verdict"]["margin"] for row in rows if row.get("verdict")}
    margin = st.segmented_control(
        "Margin",
        sorted({*MARGINS, *given}),
        default=max(given),
        required=True,
        format_func=percent_of,
        key="compare.margin",
        help=explain("margin"),
    )
    runs = [
        [row for row in rows if row["run_id"] == run_id]
        for run_id in dict.fromkeys(row["run_id"] for row in rows)
    ]
    rows = [row for run in runs for row in with_verdicts(run, margin)]
    state.plot(
        forest.picture(rows, margin),
        key="compare.forest",
        alt="Interval of each recipe's perplexity against the baseline's",
    )
    for row in rows:
        if row["verdict"]:
            _sentence(row)


def _sentence(row: dict) -> None:
    found = row["verdict"]
    badge = f":{BADGES[found['outcome']]}-badge[{found['outcome']}]"
    words = found["finding"][:1].upper() + found["finding"][1:]
    words += f" ({found['interval']})." if found["interval"] else "."
    words += f" {found['advice']}" if found["advice"] else ""
    more = "; ".join(details(found))
    small = f"  \n:small[:gray[{shielded(more)}]]" if more else ""
    st.markdown(f"**{shielded(row['label'])}** {badge} {shielded(words)}{small}")


def questions(rows: list[dict]) -> None:
    """Draw the multiple-choice accuracy per recipe; nothing if no questions were scored."""
    scored = [row for row in rows if row.get("choices")]
    if not scored:
        return
    st.subheader("Questions", anchor=False, help=explain("multiple choice"))
    state.plot(
        questions_chart.picture(scored),
        key="compare.questions",
        alt="Accuracy of each recipe on the questions",
    )
    about = scored[0]["choices"]
    few = (
        " So few questions only separate a broken model from a working one."
        if about["questions"] < FEW
        else ""
    )
    st.caption(
        f"{about['questions']:,} questions ({shielded(about['name'])}); the dotted line is the accuracy of "
        f"guessing.{few}"
    )
    st.markdown(
        "\n".join(
            f"- **{shielded(row['label'])}**: {shielded(answers_phrase(row['choices']))}" for row in scored
        )
    )


def answers(rows: list[dict]) -> None:
    """Draw where each recipe's answers diverge from the baseline's, and the answers to one prompt."""
    written = [row for row in rows if row["record"].get("generations")]
    if not written:
        st.caption("No answers were generated in this run.")
        return
    state.plot(
        divergence.picture(written),
        key="compare.divergence",
        alt="Tokens before each answer diverges from the baseline's",
    )
    prompts = {answer["id"]: answer for answer in written[0]["record"]["generations"]}
    chosen = st.selectbox(
        "Prompt",
        list(prompts),
        format_func=lambda name: one_line(f"{prompts[name]['kind']}: {name}"),
        key="compare.prompt",
    )
    st.caption(verbatim(prompts[chosen]["prompt"]))
    texts = {
        row["label"]: next((a for a in row["record"]["generations"] if a["id"] == chosen), None)
        for row in written
    }
    base = next((texts[row["label"]] for row in written if row["recipe"] == "fp32"), None)
    for row in written:
        answer = texts[row["label"]]
        if answer is not None:
            _answer(row, answer, base)


def _answer(row: dict, answer: dict, base: dict | None) -> None:
    at = answer["first_divergence"]
    if base is None:
        about = "no baseline to compare with"
    elif answer is base:
        about = "the baseline"
    else:
        about = (
            "identical"
            if at is None
            else f"identical for {at} tokens"
            if at
            else "differs from the first token"
        )
    left, right = st.columns([1, 4])
    left.markdown(f"{families.badge(row['recipe'])}  \n:small[:gray[{about}]]")
    right.markdown(
        diff.marked(base["text"], answer["text"]) if base and answer is not base else verbatim(answer["text"])
    )


def record(rows: list[dict]) -> None:
    """Draw the conditions of each run, and the command that reproduces it."""
    for run_id in dict.fromkeys(row["run_id"] for row in rows):
        found = next(row["record"] for row in rows if row["run_id"] == run_id)
        st.markdown(f"**Run {run_id}**, {clock(found.get('started_at'))}")
        lines = conditions.settings(found) | conditions.machine(found)
        st.table(
            [{"": name, "value": shielded(value)} for name, value in lines.items()],
            hide_header=True,
            hide_index=True,
        )
        st.caption("Command to reproduce the run:")
        st.code(visible(found.get("command") or ""), language="bash", wrap_lines=True)


def downloads(rows: list[dict], margin: float | None) -> None:
    """Draw the download buttons: CSV for spreadsheets, JSON with everything, and per run a report, whose
    verdicts are taken within `margin`."""
    plain = [{key: value for key, value in row.items() if key != "label"} for row in rows]
    with st.container(horizontal=True):
        st.download_button(
            "CSV",
            lambda: report.to_csv(plain),
            "qcore.csv",
            "text/csv",
            icon=":material/table:",
            on_click="ignore",
            help="The figures and their conditions.",
        )
        st.download_button(
            "JSON",
            lambda: report.to_json(plain),
            "qcore.json",
            "application/json",
            icon=":material/data_object:",
            on_click="ignore",
            help="Everything, including the raw samples.",
        )
        runs = list(dict.fromkeys(row["run_id"] for row in rows))
        for run_id in runs:
            st.download_button(
                "Report" if len(runs) == 1 else f"Report of {run_id}",
                partial(_report, [row for row in plain if row["run_id"] == run_id], margin),
                f"qcore-{run_id}.html",
                "text/html",
                key=f"compare.report.{run_id}",
                icon=":material/article:",
                on_click="ignore",
                help="One page to keep, send or print: verdicts, pictures, settings, ledger, machine.",
            )


def _report(rows: list[dict], margin: float | None) -> str:
    return html_report.page(with_verdicts(rows, margin))


def shared(rows: list[dict]) -> None:
    """Draw the conditions in one line, and a warning if the rows were measured under different conditions."""
    phrases, differing = results.shared_conditions(rows)
    if differing:
        st.warning(
            f"These runs differ in {', '.join(differing)}. Only rows measured under the same conditions are "
            "comparable.",
            icon=":material/balance:",
        )
    st.caption(" · ".join(shielded(phrase) for phrase in phrases))
