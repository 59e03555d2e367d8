"""Choose a model, recipes and a text; see the memory required; start the run and follow it."""

import streamlit as st

from qcore.base.errors import InputError
from ui import run_panel, start, state
from ui.forms import model, recipes, text
from ui.glossary import explain

PREFIX = "quantize"

state.page(
    "Quantize",
    "Choose a model and the recipes to compare. Each recipe runs in its own process and is measured in the "
    "same way.",
)

run_id = st.query_params.get("run")
if run_id:
    run_panel.panel(run_id)

left, right = st.columns([3, 2], gap="large")
problem, source, checkpoint = None, None, None
with left:
    st.subheader("1. Model", anchor=False)
    chosen = model.choose(PREFIX)
    checkpoint = (
        model.resolve(*chosen, "The run will fetch it. Fetch it now to see the memory estimate first.")
        if chosen
        else None
    )
    st.subheader("2. Recipes", anchor=False, help=explain("recipe"))
    recipes.presets(PREFIX)
    names = recipes.choose(PREFIX)
    with st.expander("Advanced", icon=":material/tune:"):
        more, skip, head = recipes.advanced(PREFIX)
        kv = recipes.cache(PREFIX)
    st.subheader("3. Measurement", anchor=False)
    try:
        source = text.choose(PREFIX)
    except InputError as error:
        problem = error
    conditions = text.conditions(PREFIX)
with right:
    st.subheader("Before you start", anchor=False)
    start.review(
        PREFIX,
        chosen,
        checkpoint,
        [*names, *more],
        skip,
        head,
        {"text": source, "kv": kv, **conditions},
        problem,
    )

run_panel.listing(run_id)
