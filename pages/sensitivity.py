"""The sensitivity of each layer, and the best format per layer within a bit budget."""

import streamlit as st

from qcore.quantization.sensitivity.store import tables
from ui import jobs, run_panel, sensitivity_form, sensitivity_view, state

PREFIX = "sensitivity"
HOW = (
    "Nothing has been computed yet. Choose a model above. Each layer is quantized alone, and gradients "
    "predict how much the output changes. This takes minutes for a small model. Recipes such as "
    "auto-4.25bpw also save their tables here."
)

state.page(
    "Sensitivity",
    "A few layers cause most of the loss. See which ones, and how to distribute a bit budget across layers.",
)

run_panel.in_progress("sensitivity")
kept = jobs.visible_tables(dict(tables()))
if not kept:
    sensitivity_form.form(PREFIX, "Start here")
    st.info(HOW, icon=":material/grid_on:")
    st.stop()
models = sensitivity_view.models_of_runs()
with st.container(horizontal=True, vertical_alignment="bottom"):
    key = st.selectbox(
        "Table",
        list(kept),
        format_func=lambda key: sensitivity_view.title(kept[key], models),
        key=f"{PREFIX}.table",
        width="stretch",
    )
    with st.popover("Compute", icon=":material/query_stats:", width=200):
        sensitivity_form.form(PREFIX, "Compute another table")
sensitivity_view.draw(key, kept[key], models)
