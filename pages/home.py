"""The start page: what qcore does, the latest results, the next steps."""

import streamlit as st

from ui import charts, compare_view, jobs, results, start, state
from ui.text import clock, shielded

state.page(
    "qcore",
    "Storing the weights of a language model in 8, 4 or fewer bits saves most of its memory. qcore "
    "quantizes a model in many ways and measures the memory, speed and quality of each on this machine. "
    "Every number comes with its conditions and with the command that reproduces it.",
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
        compare_view.shared(results.measured(rows))
        st.page_link(
            "pages/compare.py",
            label="See the whole comparison",
            icon=":material/bar_chart:",
            query_params={"run": latest.run_id},
        )

st.subheader("Next steps" if latest else "Or set up your own run", anchor=False)
ways = (
    (
        "pages/quantize.py",
        "Quantize",
        ":material/compress:",
        "Choose a model, recipes and a text. See the memory required, start the run and follow it.",
    ),
    (
        "pages/playground.py",
        "Playground",
        ":material/forum:",
        "Run one prompt through the original and the quantized models, and see where their answers diverge.",
    ),
    (
        "pages/layers.py",
        "Layers",
        ":material/layers:",
        "See the quantization error of each layer, and the values of a weight before and after.",
    ),
)
for column, (page, title, icon, text) in zip(st.columns(3), ways, strict=True):
    with column.container(border=True, height="stretch"):
        st.page_link(page, label=f"**{title}**", icon=icon)
        st.markdown(text)
