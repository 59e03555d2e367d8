"""What this is, the latest results, and where to start."""

import streamlit as st

from qcore.jobs import jobs
from ui import charts, compare_view, results, start, state
from ui.text import clock, shielded

state.page(
    "qcore",
    "Language models take a lot of memory, and most of it can be saved by storing their weights in 8, 4 or fewer bits. "
    "qcore quantizes a model in many ways and measures what each one costs in memory, speed and quality, on this machine. "
    "Every number says how it was taken and can be repeated with one command.",
)

state.notices()

runs = jobs.list_runs("compare")
latest = next((status for status in runs if status.state == "done"), None)
active = next((status for status in runs if status.active), None)

if latest is None:
    with st.container(border=True):
        st.subheader("Start here", anchor=False)
        start.first_comparison("home.first", active)
else:
    st.subheader("Latest results", anchor=False)
    rows = results.joined([latest])
    with st.container(border=True):
        st.markdown(f"**{shielded(state.model_of(latest))}**, {clock(latest.created_at)}")
        state.plot(
            charts.overview(rows), key="home.latest", alt="Size, speed and perplexity of the latest run"
        )
        compare_view.conditions(results.measured(rows))
        st.page_link(
            "pages/compare.py",
            label="See the whole comparison",
            icon=":material/bar_chart:",
            query_params={"run": latest.run_id},
        )

st.subheader("Three ways to go on" if latest else "Or choose yourself", anchor=False)
ways = (
    (
        "pages/quantize.py",
        "Quantize",
        ":material/compress:",
        "Choose a model, recipes and a text, see what memory that needs, and watch it happen.",
    ),
    (
        "pages/playground.py",
        "Playground",
        ":material/forum:",
        "Give one prompt to the original and to quantized models, and see where their answers part.",
    ),
    (
        "pages/layers.py",
        "Layers",
        ":material/layers:",
        "Look inside: the error of each layer, and a weight's values before and after.",
    ),
)
for column, (page, title, icon, text) in zip(st.columns(3), ways, strict=True):
    with column.container(border=True, height="stretch"):
        st.page_link(page, label=f"**{title}**", icon=icon)
        st.markdown(text)
