"""Before anything is downloaded or quantized: what each recipe will take, how fast it will be, and which to
choose."""

import streamlit as st

from qcore import planning
from qcore.models import meta_model
from qcore.planning.cache import formats_for
from qcore.planning.summary import LARGEST_CONTEXT
from ui import plan_view, state
from ui.forms import model
from ui.text import shielded

PREFIX = "plan"

state.page(
    "Plan",
    "What a model will take, how fast it will be here and which recipe to choose, from its headers alone.",
)

with st.container(horizontal=True, vertical_alignment="center"):
    with st.popover("Model", icon=":material/deployed_code:"):
        chosen = model.choose(PREFIX)
    st.markdown(f"**{shielded(chosen[0])}**" if chosen else ":gray[no model yet]", width="content")
outline = plan_view.outlined(*chosen) if chosen else None
if outline is None:
    what = "Choose a model in the menu above. Of one on the hub, only some kilobytes are read."
    here = "What it takes in each recipe, what fits and how fast it will be appear here once its headers are known."
    st.info(here if chosen else what, icon=":material/straighten:")
    st.stop()

plan, needs = None, {}
with state.shown_errors():
    config = meta_model(outline).config.get_text_config()
    positions = getattr(config, "max_position_embeddings", None) or LARGEST_CONTEXT
    needs = plan_view.needs(PREFIX, positions, formats_for(config))
    plan = planning.plan(outline, runs=plan_view.rows_of(outline.name), **needs)
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
with st.expander("How far off the plan was on this machine", icon=":material/rule:"):
    plan_view.error_band()
