"""One prompt through the original and quantized models: texts as they are written, what differs marked, speed
below each."""

import streamlit as st

from ui import playground_view, state
from ui.forms import KEEP, model

PREFIX = "playground"
START = "The three most important things to know about the Moon are"

measuring = state.page(
    "Playground",
    "One prompt, several forms of the same model. Words that differ from the first answer are marked.",
)

left, right = st.columns([3, 2], gap="large")
with left:
    prompt = st.text_area("Prompt", START, height=132, max_chars=20_000, key=f"{PREFIX}.prompt", **KEEP)
    buttons = st.container()
with right:
    picked = playground_view.recipes_wanted(PREFIX)
    with st.container(horizontal=True, vertical_alignment="center"):
        with st.popover("Model", icon=":material/deployed_code:"):
            chosen = model.choose(PREFIX)
        with st.popover("Sampling", icon=":material/casino:"):
            sampling = playground_view.sampling(PREFIX)
        chat = st.toggle(
            "Chat",
            key=f"{PREFIX}.chat",
            help="Wraps the prompt in the model's own chat template, as a question to it.",
            **KEEP,
        )
    st.caption(playground_view.summary(chosen, sampling))
    if measuring:
        st.caption(":material/warning: A run is being measured. Writing now makes its speeds look worse.")
with buttons:
    playground_view.controls(PREFIX, chosen, picked, prompt, {**sampling, "chat": chat})
playground_view.stage(PREFIX)
