"""Fill in the form of the page Quantize from another page."""

import streamlit as st

from qcore.models.names import classify
from ui.forms import model, recipes

PAGE = "pages/quantize.py"


def hand_over(chosen: tuple[str, str | None], name: str) -> None:
    """Fill in the model (name, revision), the recipe `name` and the baseline. For a button's `on_click`."""
    text, revision = chosen
    kind = classify(text, revision).kind
    source, field = {"default": (model.BUILT_IN, "default"), "hub": (model.HUB, "hub")}.get(
        kind, (model.LOCAL, "path")
    )
    values = {"source": source, field: text, "revision": revision or ""}
    names = [each for members, _ in recipes.groups()[0].values() for each in members]
    recipes.set_chosen("quantize", tuple(each for each in ("fp32", name) if each in names))
    values["more"] = "" if name in names else name
    for key, value in values.items():
        st.session_state[f"quantize.{key}"] = value
