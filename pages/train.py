"""Make models from others: quantization-aware training, pruning, distillation."""

import streamlit as st

from qcore.jobs import jobs
from qcore.jobs.kinds import MAKING
from ui import making_form, making_view, state

PREFIX = "making"
HOW = (
    "Nothing has been made yet. Start above: ten minutes of training recover most of the quality that a "
    "small model loses at 3 bits."
)

state.page(
    "Train & prune",
    "Recover quality lost to quantization, or make a model smaller by pruning or distillation. Measure both.",
)

making_form.progress()
finished = {status.run_id: status for status in jobs.list_runs(*MAKING) if status.state == "done"}
if not finished:
    making_form.form(PREFIX)
    st.info(HOW, icon=":material/model_training:")
    st.stop()
with st.expander("Make another", icon=":material/add:"):
    making_form.form(PREFIX)
linked = st.query_params.get("run")
if linked in finished and linked != st.session_state.get(f"{PREFIX}.linked"):
    st.session_state[f"{PREFIX}.job"] = st.session_state[f"{PREFIX}.linked"] = linked
run_id = st.selectbox(
    "Finished models",
    list(finished),
    format_func=lambda run_id: making_view.title(finished[run_id]),
    key=f"{PREFIX}.job",
)
making_view.draw(finished[run_id])
