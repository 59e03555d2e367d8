"""Models made from others: trained in quantized form, pruned, distilled."""

import streamlit as st

from qcore.jobs import jobs
from qcore.jobs.kinds import MAKING
from ui import making_form, making_view, state

PREFIX = "making"
HOW = "Nothing has been made yet. Choose above: training a small model in 3 bits for ten minutes wins back most of what rounding lost."

state.page(
    "Train & prune",
    "Win back what quantization lost, or take away what the model can do without, and see what each costs.",
)

making_form.progress()
finished = {status.run_id: status for status in jobs.list_runs(*MAKING) if status.state == "done"}
if not finished:
    making_form.form(PREFIX)
    st.info(HOW, icon=":material/model_training:")
    st.stop()
with st.expander("Make another", icon=":material/add:"):
    making_form.form(PREFIX)
asked = st.query_params.get("run")
if asked in finished and asked != st.session_state.get(f"{PREFIX}.asked"):
    st.session_state[f"{PREFIX}.job"] = st.session_state[f"{PREFIX}.asked"] = asked
run_id = st.selectbox(
    "Made so far",
    list(finished),
    format_func=lambda run_id: making_view.title(finished[run_id]),
    key=f"{PREFIX}.job",
)
making_view.draw(finished[run_id])
