"""What is in a model file, quantized by any project, and what is broken in it."""

import streamlit as st

from ui import audit_view, state
from ui.forms import model
from ui.text import shielded

PREFIX = "audit"
HOW = (
    "Choose a model above: a folder or a GGUF file, or a model on the hub. The audit looks for damaged "
    "files, NaN, lost names, a missing head or expert, zero points in the wrong convention and much more. "
    "Nothing in the file is executed."
)

state.page("Audit", "See what is in a model file, and what is broken in it, before anything is loaded.")

with st.container(horizontal=True, vertical_alignment="center"):
    with st.popover("Model", icon=":material/deployed_code:"):
        chosen = model.choose(PREFIX)
    st.markdown(f"**{shielded(chosen[0])}**" if chosen else ":gray[no model yet]", width="content")
    values = audit_view.options(PREFIX)
    begin = st.button(
        "Audit", type="primary", icon=":material/fact_check:", key=f"{PREFIX}.start", disabled=chosen is None
    )
if begin and chosen:
    with state.shown_errors():
        audit_view.start(chosen, values)

run_id = st.query_params.get("run")
if not run_id:
    st.info(HOW, icon=":material/fact_check:")
    st.stop()
found = audit_view.finished(run_id)
if found is not None:
    audit_view.draw(PREFIX, found)
