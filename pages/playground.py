"""Run one prompt through the original and quantized models: text as it is generated, differences marked,
speed below."""

import streamlit as st

from ui import playground_view, state
from ui.forms import KEEP, model
from ui.playground_session import LONGEST_PROMPT

PREFIX = "playground"
START = "The three most important things to know about the Moon are"

measuring = state.page(
    "Playground",
    "One prompt, several versions of the same model. Words that differ from the first answer are marked.",
)

left, right = st.columns([3, 2], gap="large")
with left:
    prompt = st.text_area(
        "Prompt", START, height=132, max_chars=LONGEST_PROMPT, key=f"{PREFIX}.prompt", **KEEP
    )
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
            help="Wrap the prompt in the model's chat template, as a user message.",
            **KEEP,
        )
    st.caption(playground_view.summary(chosen, sampling))
    if measuring:
        st.caption(
            ":material/warning: A run is being measured. Generating text now lowers its measured speeds."
        )
with buttons:
    playground_view.controls(PREFIX, chosen, picked, prompt, {**sampling, "chat": chat})
playground_view.stage(PREFIX)
