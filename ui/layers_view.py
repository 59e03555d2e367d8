"""The parts of the layers page: the summary, the error of each layer, one weight before and after."""

from collections.abc import Sequence

import streamlit as st

from qcore.recipes import Recipe
from qcore.verbs import layer_errors
from ui import layer_charts, state
from ui.glossary import explain
from ui.text import digits, percent

BINS = 240


def draw(checkpoint, recipe: Recipe, errors: Sequence[layer_errors.LayerError]) -> None:
    """Everything that the `errors` of `recipe` on the model of `checkpoint` show."""
    worst = max(errors, key=lambda error: error.relative_error)
    _summary(errors, worst)
    st.subheader("Error of each layer", anchor=False, help=explain("relative error"))
    state.plot(
        layer_charts.error_map(errors, recipe.name),
        key="layers.map",
        alt="Relative error by block and kind of module",
    )
    st.caption("Each weight matrix by itself: the loss of the whole model is on the page Compare.")
    st.subheader("One weight before and after", anchor=False)
    names = [error.name for error in errors]
    # another model or recipe starts again at its worst layer
    key = f"layers.tensor.{checkpoint.digest[:8]}.{recipe.name}"
    tensor = st.selectbox(
        "Weight", names, index=names.index(worst.name), key=key, help="The worst one first."
    )
    with state.shown_errors(), st.spinner("Reading the weight…"):
        remembered = ("histogram", checkpoint.digest, recipe.name, tensor)
        found = state.remember(remembered, lambda: layer_errors.histogram(checkpoint, tensor, recipe, BINS))
        state.plot(
            layer_charts.histogram(found, recipe.name),
            key="layers.histogram",
            alt="Values of the weight before and after",
        )
        st.caption(
            "The grid belongs to the group with the median scale. Every group has its own, which is why values fall between its ticks."
        )


def _summary(errors: Sequence[layer_errors.LayerError], worst: layer_errors.LayerError) -> None:
    median = sorted(error.relative_error for error in errors)[len(errors) // 2]
    bits = sum(error.bits_per_weight for error in errors) / len(errors)
    figures = (
        ("Layers quantized", str(len(errors)), None, None),
        ("Median relative error", percent(median), None, explain("relative error")),
        ("Bits per weight, mean of layers", digits(bits), None, explain("bits per weight")),
        (
            "Worst layer",
            percent(worst.relative_error),
            worst.name.removesuffix(".weight"),
            explain("relative error"),
        ),
    )
    with st.container(horizontal=True):
        for label, value, note, help_text in figures:
            st.metric(
                label,
                value,
                note,
                delta_color="off",
                delta_arrow="off",
                border=True,
                height="stretch",
                help=help_text,
            )
