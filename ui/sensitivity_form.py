"""What to compute on the sensitivity page, and the computation while it runs."""

import time

import streamlit as st

from qcore.base.home import is_public
from qcore.jobs import sensitivity
from qcore.verbs.sensitivity import FORMATS, Request
from ui import state
from ui.forms import KEEP, model
from ui.glossary import explain
from ui.text import rough, shielded, verbatim

METHODS = {"rtn": "rounding", "hqq": "HQQ", "gptq": "GPTQ"}
METHOD_HELP = "How the weights would be rounded: methods lose different layers. Each has its own table."
TEXT_HELP = "A UTF-8 file on the machine that runs this dashboard. Empty: the packaged calibration text."
MEASURED = 512  # tokens
MEASURE_HELP = (
    "Runs the rest of the model once for each layer and format: many minutes, on a larger model hours. It is kept block by block, so it "
    "can be cancelled and taken up again."
)


def form(prefix: str, title: str) -> None:
    """Under `title`: model, method, text, whether to measure; and the button that starts."""
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
                "Measure it, too", key=f"{prefix}.measure", help=MEASURE_HELP, **KEEP
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
        st.caption(f"{', '.join(FORMATS)} are tried on each layer. {explain('predicted loss')}")
        busy = (now := sensitivity.status()) is not None and now.active
        if st.button(
            "Compute",
            type="primary",
            icon=":material/query_stats:",
            key=f"{prefix}.compute",
            disabled=chosen is None or busy,
        ):
            with state.shown_errors():
                name, revision = chosen
                sensitivity.submit(
                    Request(
                        model=name,
                        method=method,
                        text=text,
                        revision=revision,
                        measure_tokens=MEASURED if measure else 0,
                    )
                )
                st.rerun()


def progress() -> None:
    """The computation under way, or how the last one ended if it did not end well."""
    with state.shown_errors():
        now = sensitivity.status()
        if now is None:
            return
        if now.active:
            _live()
        elif now.state in ("failed", "interrupted"):
            st.error(verbatim(now.error or "It failed."), icon=":material/error:")
        elif now.state == "cancelled":
            st.info(
                "Cancelled. What had been measured is kept, and the next measurement goes on from there.",
                icon=":material/cancel:",
            )


@st.fragment(run_every=1.0)
def _live() -> None:
    now = sensitivity.status()
    if not now.active:
        st.rerun()
    request = now.request or {}
    with st.container(border=True):
        st.markdown(f"**{shielded(request.get('model', ''))}** · {shielded(request.get('method', ''))}")
        steps = f" · {now.done} of {now.total}" if now.total else ""
        st.progress(now.fraction, text=f"{shielded(now.words)}{steps}")
        st.caption(
            f"{rough(max(1.0, time.time() - (now.started_at or time.time())))} elapsed. It goes on if this page is closed."
        )
        if st.button("Cancel", icon=":material/stop_circle:", key="sensitivity.cancel"):
            with st.spinner("Ending it…"):
                sensitivity.cancel()
            st.rerun()
