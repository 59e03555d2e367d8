"""Compare finished recipes: memory, throughput, quality, trade-off, table, answers, record."""

import streamlit as st

from ui import allocation_view, charts, compare_view, families, jobs, pareto, results, start, state
from ui.glossary import explain
from ui.text import clock, one_line, shielded

WORDS = (
    "stored bytes",
    "peak memory",
    "decode",
    "prefill",
    "memory limit",
    "other work",
    "perplexity",
    "KL divergence",
    "top-1 agreement",
    "flips",
    "verdict",
    "margin",
)

state.page(
    "Compare", "Memory, speed and quality of each recipe, measured in the same way on the same machine."
)

runs = {status.run_id: status for status in jobs.list_runs("compare") if status.recipes}
if not runs:
    with st.container(border=True):
        st.subheader("Nothing to compare yet", anchor=False)
        start.first_comparison("compare.first", None)
    st.stop()

linked = [run_id for run_id in st.query_params.get_all("run") if run_id in runs]
finished = [run_id for run_id, status in runs.items() if status.state == "done"]
if "compare.runs" not in st.session_state or (linked and linked != st.session_state.get("compare.linked")):
    st.session_state["compare.runs"] = linked or finished[:1] or list(runs)[:1]
    st.session_state["compare.linked"] = linked


def name(run_id: str) -> str:
    status = runs[run_id]
    ended = "" if status.state == "done" else f" · {status.state}"
    model = one_line(state.model_of(status))
    return f"{model} · {len(status.recipes)} recipes · {clock(status.created_at)}{ended}"


st.session_state["compare.runs"] = [run_id for run_id in st.session_state["compare.runs"] if run_id in runs]
chosen = st.multiselect(
    "Runs",
    list(runs),
    key="compare.runs",
    format_func=name,
    label_visibility="collapsed",
    placeholder="Choose one run or several",
)
chosen = list(dict.fromkeys(chosen))  # a browser may send one many times
rows = results.joined([runs[run_id] for run_id in chosen])
good = results.measured(rows)
if not rows:
    st.info(
        "No recipe of this run has finished yet." if chosen else "Choose a run.",
        icon=":material/hourglass_empty:",
    )
    st.stop()
unfinished = sum(len(runs[run_id].recipes) for run_id in chosen) - len(rows)
if unfinished:
    recipes = "recipe has" if unfinished == 1 else "recipes have"
    st.caption(f":material/hourglass_top: {unfinished} {recipes} not finished.")
if not good:
    compare_view.failures(rows)
    st.stop()

with st.container(horizontal=True):
    for best in results.best(good):
        st.metric(
            f"{best.title} · {shielded(best.recipe)}",
            best.value,
            best.against,
            delta_color="off",
            delta_arrow="off",
            border=True,
        )

present = dict.fromkeys(families.family(row["recipe"]) for row in rows)
with st.container(horizontal=True, horizontal_alignment="distribute", vertical_alignment="center"):
    st.markdown(
        " &emsp; ".join(f':color[●]{{foreground="{family.color}"}} {family.name}' for family in present),
        width="content",
    )
    with st.popover("Glossary", icon=":material/menu_book:", type="tertiary"):
        for term in WORDS:
            st.markdown(f"**{term.capitalize() if term != 'KL divergence' else term}**: {explain(term)}")

st.subheader("Memory", anchor=False, help=explain("stored bytes"))
state.plot(charts.memory(rows), key="compare.memory", alt="Stored bytes and peak memory of each recipe")
st.subheader("Throughput", anchor=False, help=explain("decode"))
state.plot(charts.throughput(rows), key="compare.throughput", alt="Decode and prefill speed of each recipe")
compare_view.disturbed(good)
st.subheader("Quality", anchor=False, help=explain("perplexity"))
state.plot(charts.quality(rows), key="compare.quality", alt="Perplexity and divergence of each recipe")
compare_view.shared(good)
compare_view.failures(rows)
compare_view.verdicts(rows)
compare_view.questions(good)

if len(good) > 1:
    st.subheader("The trade-off", anchor=False, help=explain("frontier"))
    with st.container(horizontal=True, gap="large"):
        cost = st.segmented_control(
            "Cost",
            list(pareto.COSTS),
            default="Stored size",
            required=True,
            key="compare.cost",
            persist_state="session",
        )
        quality = st.segmented_control(
            "Quality",
            list(pareto.QUALITIES),
            default="KL divergence",
            required=True,
            key="compare.quality_axis",
            persist_state="session",
        )
    figure = pareto.pareto(good, pareto.COSTS[cost], pareto.QUALITIES[quality])
    state.plot(figure, key="compare.pareto", alt=f"{cost} against {quality}, with the frontier")
    st.caption(
        "Large points joined by the gray line are on the frontier: no other recipe is better on both axes."
    )

allocation_view.draw(good)

st.subheader("All figures", anchor=False)
compare_view.table(rows)
compare_view.downloads(rows, st.session_state.get("compare.margin"))

st.subheader("Answers", anchor=False, help=explain("first divergence") + " " + explain("greedy"))
compare_view.answers(good)

with st.expander(
    "Record: conditions, machine, and the command to reproduce the run", icon=":material/receipt_long:"
):
    compare_view.record(rows)
