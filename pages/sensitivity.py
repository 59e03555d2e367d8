"""Which layer pays for fewer bits, and the best format for each within a budget."""

import streamlit as st

from qcore.quantization.sensitivity.store import tables
from ui import sensitivity_form, sensitivity_view, state

PREFIX = "sensitivity"
HOW = (
    "Nothing has been computed yet. Choose a model above: its layers are rounded one by one, and gradients tell how much the predictions "
    "mind. That takes minutes for a small model. Recipes such as auto-4.25bpw leave their tables here, too."
)

state.page(
    "Sensitivity",
    "A few layers pay most of the price of quantization. See which, and what each should get if the bits are yours to spend.",
)

sensitivity_form.progress()
kept = dict(tables())
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
