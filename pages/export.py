"""Write a model for another project's code, prove it beside the original, and download it."""

import streamlit as st

from qcore.jobs import jobs
from ui import export_form, export_view, state

PREFIX = "export"
HOW = (
    "Nothing has been exported yet. Start above: the default model as a GGUF file takes some seconds. It is "
    "then listed here with its size, a download and the command that runs it."
)

state.page(
    "Export",
    "Write a model in the form that your runtime reads: the same codes that qcore measured, in other bytes.",
)

export_form.progress()
finished = {status.run_id: status for status in jobs.list_runs("export") if status.state == "done"}
if not finished:
    export_form.form(PREFIX)
    st.info(HOW, icon=":material/ios_share:")
    st.stop()
with st.expander("Export another", icon=":material/add:"):
    export_form.form(PREFIX)
linked = st.query_params.get("run")
if linked in finished and linked != st.session_state.get(f"{PREFIX}.linked"):
    st.session_state[f"{PREFIX}.job"] = st.session_state[f"{PREFIX}.linked"] = linked
run_id = st.selectbox(
    "Finished exports",
    list(finished),
    format_func=lambda run_id: export_view.title(finished[run_id]),
    key=f"{PREFIX}.job",
)
export_view.draw(finished[run_id])
