"""One prompt through the original and quantized models: texts as they are written, what differs marked, speed below each."""

import streamlit as st

from ui import playground_view, state
from ui.forms import model
from ui.forms import recipes as recipe_form
from ui.glossary import explain

PREFIX = "playground"
MOST = 4

state.page("Playground", "One prompt, several forms of the same model. Words that differ from the first answer are marked.")

with st.expander("Model and recipes", icon=":material/tune:"):
    chosen = model.choose(PREFIX)
    own, _ = recipe_form.groups()
    names = [name for members, _ in own.values() for name in members]
    picked = st.multiselect(
        "Recipes",
        names,
        default=["fp32", "int8", "int4-g64"],
        max_selections=MOST,
        key=f"{PREFIX}.recipes",
        help=explain("recipe"),
        persist_state="session",
    )
left, right = st.columns([5, 2], gap="large", vertical_alignment="bottom")
with left:
    prompt = st.text_area(
        "Prompt", "The three most important things to know about the Moon are", height=100, key=f"{PREFIX}.prompt", persist_state="session"
    )
with right:
    chat = st.toggle(
        "As a chat message", key=f"{PREFIX}.chat", help="Wraps the prompt in the model's own chat template.", persist_state="session"
    )
    with st.popover("Sampling", icon=":material/casino:", width="stretch"):
        sampling = playground_view.sampling(PREFIX)

playground_view.controls(PREFIX, chosen, picked, prompt, {**sampling, "chat": chat})
playground_view.stage(PREFIX)
