"""What a recipe does inside a model: error per layer, one weight before and after, the ledger of all tensors."""

import streamlit as st

from qcore import layers, recipes
from ui import layer_charts, ledger_view, state
from ui.forms import model
from ui.forms import recipes as recipe_form
from ui.glossary import explain
from ui.text import digits, percent

PREFIX = "layers"

state.page("Layers", "See where a recipe loses precision: each weight matrix is quantized by itself and compared with the original.")

left, right = st.columns([3, 2], gap="large")
with left:
    chosen = model.choose(PREFIX)
    checkpoint = model.resolve(*chosen) if chosen else None
with right:
    name = recipe_form.choose_one(PREFIX, "Recipe", "int4-g64")
    recipe = recipes.parse(name)
    st.caption(recipes.describe(recipe))
if checkpoint is None:
    st.info("Choose a model that is on this machine: its layers are read straight from its files.", icon=":material/layers:")
    st.stop()

key = ("errors", checkpoint.digest, name)
if not state.known(key):
    right.caption("Takes seconds for a small model; no model is loaded for it.")
    if not right.button("Measure the layers", type="primary", icon=":material/query_stats:", key=f"{PREFIX}.measure"):
        ledger_view.draw(checkpoint, name)
        st.stop()
    with state.shown_errors(), model.Progress("Quantizing layer by layer") as report:
        state.remember(key, lambda: layers.errors(checkpoint, recipe, report))
if state.known(key):
    errors = state.remember(key, list)
    worst = max(errors, key=lambda error: error.relative_error)
    total = sum(error.bits_per_weight for error in errors) / len(errors)
    with st.container(horizontal=True):
        st.metric("Layers quantized", len(errors), border=True)
        st.metric(
            "Median relative error",
            percent(sorted(error.relative_error for error in errors)[len(errors) // 2]),
            border=True,
            help=explain("relative error"),
        )
        st.metric("Bits per weight, mean", digits(total), border=True, help=explain("bits per weight"))
        st.metric(
            "Worst", percent(worst.relative_error), worst.name.removesuffix(".weight"), delta_color="off", delta_arrow="off", border=True
        )
    st.subheader("Error of each layer", anchor=False, help=explain("relative error"))
    state.plot(layer_charts.error_map(errors, name), key=f"{PREFIX}.map", alt="Relative error by block and module")

    st.subheader("One weight before and after", anchor=False)
    names = [error.name for error in errors]
    tensor = st.selectbox(
        "Weight", names, index=names.index(worst.name), key=f"{PREFIX}.tensor.{checkpoint.digest[:8]}.{name}", help="The worst one first."
    )
    with state.shown_errors(), st.spinner("Reading the weight…"):
        found = state.remember(("histogram", checkpoint.digest, name, tensor), lambda: layers.histogram(checkpoint, tensor, recipe))
        state.plot(layer_charts.histogram(found, name), key=f"{PREFIX}.histogram", alt="Weight values before and after")
        st.caption(
            "The grid belongs to the group with the median scale; every group has its own, which is why values fall between its ticks."
        )
ledger_view.draw(checkpoint, name)
