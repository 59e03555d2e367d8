"""Predict the memory and speed of each recipe before a download, and recommend one."""

import streamlit as st

from qcore.jobs import answers
from ui import engine, plan_view, state
from ui.forms import model
from ui.text import shielded

PREFIX = "plan"

state.page(
    "Plan",
    "Predict the memory and speed of a model on this machine, and choose a recipe, from its headers alone.",
)

with st.container(horizontal=True, vertical_alignment="center"):
    with st.popover("Model", icon=":material/deployed_code:"):
        chosen = model.choose(PREFIX)
    st.markdown(f"**{shielded(chosen[0])}**" if chosen else ":gray[no model yet]", width="content")
outline = plan_view.outlined(*chosen) if chosen else None
if outline is None:
    first = "Choose a model in the menu above. For a hub model, only a few kilobytes are read."
    then = "The memory and speed of each recipe appear here once the headers are read."
    st.info(then if chosen else first, icon=":material/straighten:")
    st.stop()

plan, needs = None, {}
with state.shown_errors():
    limits = state.remember(
        ("limits of plan", outline.key), lambda: engine.ask(answers.limits_of_plan, outline)
    )
    needs = plan_view.needs(PREFIX, *limits)
    plan = plan_view.planned(outline, needs)
if plan is None:
    st.stop()

kv = needs["kv"][0]
plan_view.recommendation(PREFIX, plan, chosen)
plan_view.pictures(PREFIX, plan, kv)
st.subheader("Speed on this machine", anchor=False)
if not outline.is_quantized:
    plan_view.probing(PREFIX, chosen, plan_view.public_names(needs["recipes"]), plan.probed)
plan_view.speeds(PREFIX, plan, kv)
st.subheader("All figures", anchor=False)
plan_view.table(plan_view.shown(plan, kv))
with st.expander("What fits on well-known accelerators", icon=":material/memory:"):
    plan_view.accelerators(plan)
with st.expander("Accuracy of the plan on this machine", icon=":material/rule:"):
    plan_view.error_band()
