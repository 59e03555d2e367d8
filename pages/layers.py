"""The error per layer, one weight before and after quantization, and the ledger of all tensors."""

import streamlit as st

from qcore import recipes
from qcore.jobs import answers
from ui import engine, layers_view, ledger_view, state
from ui.forms import model
from ui.forms import recipes as recipe_form
from ui.text import shielded

PREFIX = "layers"
HOW = "This takes seconds for a small model. Its weights are read from disk one at a time."

state.page(
    "Layers",
    "See where a recipe loses precision: each weight matrix is quantized by itself and compared with the "
    "original.",
)

with st.container(horizontal=True, vertical_alignment="bottom"):
    name = recipe_form.choose_one(PREFIX, "Recipe", "int4-g64")
    with st.popover("Model", icon=":material/deployed_code:"):
        chosen = model.choose(PREFIX)
    button = st.container()
recipe = recipes.parse(name)
st.caption(f"{shielded(chosen[0]) if chosen else 'no model'} · {name}: {shielded(recipes.describe(recipe))}")
checkpoint = model.resolve(*chosen, "Fetch it to inspect its layers.") if chosen else None
if checkpoint is None:
    if not chosen:
        st.info(
            "Choose a model in the menu above. Its layers are read directly from its files.",
            icon=":material/layers:",
        )
    st.stop()

key = ("errors", checkpoint.key, name)
errors = state.recall(key)
if errors is None and button.button(
    "Measure the layers", type="primary", icon=":material/query_stats:", key=f"{PREFIX}.measure"
):
    with state.shown_errors(), model.ProgressBar("Quantizing layer by layer") as report:
        state.remember(key, lambda: engine.ask(answers.layer_errors, checkpoint, recipe, progress=report))
        st.rerun()
if errors is not None:
    layers_view.draw(checkpoint, recipe, errors)
else:
    st.info(HOW, icon=":material/layers:")
ledger_view.draw(checkpoint, name)
