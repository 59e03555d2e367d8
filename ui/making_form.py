"""What to make from a model: the three forms of the page Train & prune, and the work while it runs."""

import time

import streamlit as st

from qcore.base.home import is_public
from qcore.jobs import making_jobs
from qcore.jobs.making_jobs import Request
from ui import making_charts, state
from ui.forms import KEEP, model
from ui.glossary import explain
from ui.text import rough, shielded, verbatim

KINDS = {"qat": "Train in quantized form", "prune": "Prune", "distill": "Distill"}
LEADS = {
    "qat": "The model is quantized, then learns to predict what it did before. It keeps the recipe's size and speed; quality comes back.",
    "prune": "What matters least goes: weights, neurons, heads or layers. Parts cut out make it smaller and faster; zeros alone do not.",
    "distill": "A student with fewer layers learns to predict what the whole model predicts. It can be quantized afterwards.",
}
RECIPES = ("int3-g64", "int4-g64", "int2-g64", "nf4-g64", "int3-g64-gptq", "int4-g64-gptq")
METHODS = {
    "wanda": "weights, by their inputs (Wanda)",
    "magnitude": "weights, by their size",
    "2:4": "two of every four weights",
    "neurons": "neurons of the MLPs",
    "heads": "attention heads",
    "layers": "whole layers",
}
STRUCTURED = ("neurons", "heads", "layers")
MINUTES_HELP = "Training ends after this time, or earlier when the validation text no longer gains. A run that was stopped goes on."
TEXT_HELP = "A UTF-8 file on the machine that runs this dashboard. Empty: the packaged calibration text."
MOST_MINUTES, PUBLIC_MINUTES = 600, 10


def form(prefix: str) -> None:
    """Kind, model, its options, and the button that starts."""
    with st.container(border=True):
        kind = st.segmented_control(
            "What to do",
            list(KINDS),
            default="qat",
            required=True,
            format_func=KINDS.get,
            key=f"{prefix}.kind",
            label_visibility="collapsed",
            **KEEP,
        )
        st.caption(LEADS[kind])
        chosen = model.choose(prefix)
        arguments = {"qat": _qat, "prune": _prune, "distill": _distill}[kind](prefix)
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
        arguments |= {"calibration" if kind == "prune" else "text": text}
        with state.shown_errors():
            busy = any(each.active for each in making_jobs.jobs())
            if st.button(
                "Start",
                type="primary",
                icon=":material/play_arrow:",
                key=f"{prefix}.start",
                disabled=chosen is None or busy,
            ):
                name, revision = chosen
                making_jobs.submit(Request(kind, name, arguments, revision))
                st.rerun()


def _qat(prefix: str) -> dict:
    left, middle, right = st.columns(3)
    recipe = left.selectbox(
        "Recipe",
        RECIPES,
        key=f"{prefix}.recipe",
        help="Its method chooses the codes that training begins with.",
        **KEEP,
    )
    form = middle.selectbox(
        "What is trained",
        ["light", "full"],
        format_func={"light": "scales and norms", "full": "weights, scales and norms"}.get,
        key=f"{prefix}.form",
        help=explain("quantization-aware training"),
        **KEEP,
    )
    minutes = _minutes(right, prefix)
    return {
        "recipe": recipe,
        "form": {"name": form, "learn_scales": form == "full"},
        "schedule": {"minutes": minutes},
    }


def _prune(prefix: str) -> dict:
    left, middle, right = st.columns(3)
    method = left.selectbox(
        "What goes",
        list(METHODS),
        format_func=METHODS.get,
        key=f"{prefix}.method",
        help=explain("pruning"),
        **KEEP,
    )
    if method == "2:4":
        amount = 0.5
        middle.text_input(
            "Share",
            "a half",
            disabled=True,
            key=f"{prefix}.half",
            help="Two of every four inputs go, by definition.",
        )
    else:
        amount = (
            middle.slider(
                "Share",
                5,
                90,
                25 if method in STRUCTURED else 50,
                5,
                "%d %%",
                key=f"{prefix}.amount.{method in STRUCTURED}",
            )
            / 100
        )
    recipe = None
    if method not in STRUCTURED:
        choices = ["none", "int4-g64", "int3-g64", "int8", "nf4-g64"]
        picked = right.selectbox(
            "Quantize it, too", choices, key=f"{prefix}.then", help=explain("sparse storage"), **KEEP
        )
        recipe = None if picked == "none" else picked
    return {"method": method, "amount": amount, "recipe": recipe}


def _distill(prefix: str) -> dict:
    left, middle, right = st.columns(3)
    layers = left.number_input(
        "Layers of the student", 1, 500, 15, key=f"{prefix}.layers", help=explain("distillation"), **KEEP
    )
    temperature = middle.number_input(
        "Temperature",
        0.5,
        20.0,
        1.0,
        0.5,
        key=f"{prefix}.temperature",
        help="Softens both distributions.",
        **KEEP,
    )
    return {
        "layers": layers,
        "temperature": temperature,
        "schedule": {"minutes": _minutes(right, prefix), "batch": 2},
    }


def _minutes(place, prefix: str) -> float:
    most = PUBLIC_MINUTES if is_public() else MOST_MINUTES
    return float(
        place.number_input(
            "Minutes", 1, most, min(10, most), key=f"{prefix}.minutes", help=MINUTES_HELP, **KEEP
        )
    )


def progress() -> None:
    """The work under way, or how the last one ended if it did not end well."""
    with state.shown_errors():
        known = making_jobs.jobs()
        if not known:
            return
        now = known[0]
        if now.active:
            _live(now.job)
        elif now.state in ("failed", "interrupted"):
            st.error(verbatim(now.error or "It failed."), icon=":material/error:")
        elif now.state == "cancelled":
            st.info(
                "Cancelled. Training that had begun is kept; ask for the same again and it goes on.",
                icon=":material/cancel:",
            )


@st.fragment(run_every=1.0)
def _live(job: str) -> None:
    now = making_jobs.status(job)
    if not now.active:
        st.rerun()
    request = now.request or {}
    with st.container(border=True):
        st.markdown(f"**{KINDS.get(request.get('kind'), '')}** · {shielded(request.get('model', ''))}")
        steps = f" · {now.done} of {now.total}" if now.total else ""
        st.progress(now.fraction, text=f"{shielded(now.words)}{steps}")
        elapsed = max(1.0, time.time() - (now.started_at or time.time()))
        history = now.history
        left = _left(request, history)
        st.caption(
            f"{rough(elapsed)} elapsed{f', about {rough(left)} left' if left else ''}. It goes on if this page is closed."
        )
        if history and history["curve"]:
            state.plot(
                making_charts.loss(history), key="making.live", alt="The loss of the training under way"
            )
        if st.button("Cancel", icon=":material/stop_circle:", key="making.cancel"):
            with st.spinner("Ending it…"):
                making_jobs.cancel(job)
            st.rerun()


def _left(request: dict, history: dict | None) -> float | None:
    """Seconds of training that are left, as the time limit says."""
    minutes = request.get("arguments", {}).get("schedule", {}).get("minutes")
    return max(0.0, 60 * minutes - history["seconds"]) if minutes and history and history["curve"] else None
