"""Parts of the layers page: summary, error per layer, one weight before and after."""

from collections.abc import Sequence

import streamlit as st

from qcore.jobs import answers
from qcore.models.checkpoint import Checkpoint
from qcore.recipes import Recipe
from qcore.verbs.layer_types import LayerError
from ui import engine, layer_charts, state
from ui.glossary import explain
from ui.text import digits, one_line, percent, shielded

BINS = 240


def draw(checkpoint: Checkpoint, recipe: Recipe, errors: Sequence[LayerError]) -> None:
    """Draw the `errors` of `recipe` on the model of `checkpoint`."""
    worst = max(errors, key=lambda error: error.relative_error)
    _summary(errors, worst)
    st.subheader("Error of each layer", anchor=False, help=explain("relative error"))
    state.plot(
        layer_charts.error_map(errors, recipe.name),
        key="layers.map",
        alt="Relative error by block and kind of module",
    )
    st.caption("Errors of single weight matrices. The loss of the whole model is on the page Compare.")
    st.subheader("One weight before and after", anchor=False)
    names = [error.name for error in errors]
    # for another model or recipe, start at its worst layer
    key = f"layers.tensor.{checkpoint.digest[:8]}.{recipe.name}"
    tensor = st.selectbox(
        "Weight",
        names,
        index=names.index(worst.name),
        format_func=one_line,
        key=key,
        help="Starts at the layer with the largest error.",
    )
    with state.shown_errors(), st.spinner("Reading the weight…"):
        remembered = ("histogram", checkpoint.key, recipe.name, tensor)
        found = state.remember(
            remembered, lambda: engine.ask(answers.histogram, checkpoint, tensor, recipe, BINS)
        )
        state.plot(
            layer_charts.histogram(found, recipe.name),
            key="layers.histogram",
            alt="Values of the weight before and after",
        )
        st.caption(
            "The ticks are the grid of the group with the median scale. Each group has its own grid, so "
            "values fall between the ticks."
        )


def _summary(errors: Sequence[LayerError], worst: LayerError) -> None:
    median = sorted(error.relative_error for error in errors)[len(errors) // 2]
    bits = sum(error.bits_per_weight for error in errors) / len(errors)
    figures = (
        ("Layers quantized", str(len(errors)), None, None),
        ("Median relative error", percent(median), None, explain("relative error")),
        ("Bits per weight, mean of layers", digits(bits), None, explain("bits per weight")),
        (
            "Worst layer",
            percent(worst.relative_error),
            shielded(worst.name.removesuffix(".weight")),
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
