"""The form of the sensitivity page, and the computation in progress."""

import streamlit as st

from qcore.base.home import is_public
from qcore.jobs.kind_sensitivity import SensitivityRequest
from qcore.verbs.sensitivity import FORMATS
from ui import jobs, state
from ui.forms import KEEP, model
from ui.glossary import explain

METHODS = {"rtn": "round to nearest", "hqq": "HQQ", "gptq": "GPTQ"}
METHOD_HELP = (
    "The method that quantizes the weights. Sensitivity depends on it, so each method has its own table."
)
TEXT_HELP = (
    "A UTF-8 file on the machine that runs this dashboard. Leave empty for the packaged calibration text."
)
MEASURED = 512  # tokens
MEASURE_HELP = (
    "Runs the rest of the model once per layer and format: many minutes, hours for a larger model. Results "
    "are saved per block, so a cancelled measurement can be resumed."
)


def form(prefix: str, title: str) -> None:
    """Draw the form under `title`: model, method, text, measurement, start button."""
    with st.container(border=True):
        st.markdown(f"**{title}**")
        chosen = model.choose(prefix)
        with st.container(horizontal=True, vertical_alignment="bottom", gap="large"):
            method = st.segmented_control(
                "Method",
                list(METHODS),
                default="rtn",
                required=True,
                format_func=METHODS.get,
                key=f"{prefix}.method",
                help=METHOD_HELP,
                **KEEP,
            )
            measure = not is_public() and st.toggle(
                "Also measure", key=f"{prefix}.measure", help=MEASURE_HELP, **KEEP
            )
        text = None
        if not is_public():
            text = (
                st.text_input(
                    "Text",
                    placeholder="packaged calibration text",
                    key=f"{prefix}.text",
                    help=TEXT_HELP,
                    **KEEP,
                ).strip()
                or None
            )
        st.caption(f"Formats tried on each layer: {', '.join(FORMATS)}. {explain('predicted loss')}")
        if st.button(
            "Compute",
            type="primary",
            icon=":material/query_stats:",
            key=f"{prefix}.compute",
            disabled=chosen is None,
        ):
            with state.shown_errors():
                name, revision = chosen
                jobs.submit(
                    SensitivityRequest(
                        model=name,
                        method=method,
                        text=text,
                        revision=revision,
                        measure_tokens=MEASURED if measure else 0,
                    )
                )
                st.rerun()
