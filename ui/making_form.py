"""The forms of the page Train & prune (training, pruning, distillation), and the jobs in progress."""

import streamlit as st
from streamlit.delta_generator import DeltaGenerator

from qcore.base.home import is_public
from qcore.jobs import answers
from qcore.jobs.kind import Checked
from qcore.jobs.kinds import KINDS, MAKING
from qcore.recipes import parse
from ui import engine, jobs, making_charts, state
from ui.forms import KEEP, model
from ui.glossary import explain
from ui.text import rough

TITLES = {name: KINDS[name].title for name in MAKING}
LEADS = {
    "qat": "The model is quantized, then trained to reproduce its original predictions. Training recovers "
    "quality; size and speed stay those of the recipe.",
    "prune": "The least important weights, neurons, heads or layers are removed. Removing neurons, "
    "heads or layers makes the model smaller and faster; zeroed weights alone do not make it faster.",
    "distill": "A student with fewer layers learns to reproduce the predictions of the full model. It can be "
    "quantized afterwards.",
}
RECIPES = ("int3-g64", "int4-g64", "int2-g64", "nf4-g64", "int3-g64-gptq", "int4-g64-gptq")
METHODS = {
    "wanda": "weights, by magnitude × input norm (Wanda)",
    "magnitude": "weights, by magnitude",
    "2:4": "2 of every 4 weights (2:4)",
    "neurons": "neurons of the MLPs",
    "heads": "attention heads",
    "layers": "whole layers",
}
STRUCTURED = ("neurons", "heads", "layers")
MINUTES_HELP = (
    "Training ends after this time, or earlier once the validation loss stops improving. A stopped run can "
    "be resumed."
)
TEXT_HELP = (
    "A UTF-8 file on the machine that runs this dashboard. Leave empty for the packaged calibration text."
)
MOST_MINUTES, PUBLIC_MINUTES = 600, 10


def form(prefix: str) -> None:
    """Draw the form: task, model, options, start button."""
    with st.container(border=True):
        kind = st.segmented_control(
            "Task",
            list(TITLES),
            default="qat",
            required=True,
            format_func=TITLES.get,
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
        with state.shown_errors():
            if st.button(
                "Start",
                type="primary",
                icon=":material/play_arrow:",
                key=f"{prefix}.start",
                disabled=chosen is None,
            ):
                name, revision = chosen
                record = _record(kind, name, revision, arguments, text)
                jobs.submit(Checked(engine.ask(answers.job_record, record)))
                st.rerun()


def _record(kind: str, name: str, revision: str | None, chosen: dict, text: str | None) -> dict:
    """Return the record of the job request for the chosen task and its options."""
    record = {"kind": kind, "model": name, "revision": revision, "compare": True}
    if kind == "prune":
        return record | {"options": chosen | {"calibration": text}}
    if kind == "qat":
        record["recipe"] = chosen.pop("recipe")
    return record | {"options": chosen | {"text": text}}


def _qat(prefix: str) -> dict:
    left, middle, right = st.columns(3)
    recipe = left.selectbox(
        "Recipe",
        RECIPES,
        key=f"{prefix}.recipe",
        help="The method of the recipe chooses the initial codes.",
        **KEEP,
    )
    form = middle.selectbox(
        "Trainable parameters",
        ["light", "full"],
        format_func={"light": "scales and norms", "full": "weights, scales and norms"}.get,
        key=f"{prefix}.form",
        help=explain("quantization-aware training"),
        **KEEP,
    )
    minutes = _minutes(right, prefix)
    return {
        "recipe": parse(recipe).to_dict(),
        "form": {"name": form, "learn_scales": form == "full"},
        "schedule": {"minutes": minutes},
    }


def _prune(prefix: str) -> dict:
    left, middle, right = st.columns(3)
    method = left.selectbox(
        "Prune",
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
            "50 %",
            disabled=True,
            key=f"{prefix}.half",
            help="2:4 sparsity zeroes two of every four inputs.",
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
            "Also quantize", choices, key=f"{prefix}.then", help=explain("sparse storage"), **KEEP
        )
        recipe = None if picked == "none" else parse(picked).to_dict()
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
        help="Divides the logits of teacher and student: higher values soften both distributions.",
        **KEEP,
    )
    return {
        "layers": layers,
        "temperature": temperature,
        "schedule": {"minutes": _minutes(right, prefix), "batch": 2},
    }


def _minutes(place: DeltaGenerator, prefix: str) -> float:
    most = PUBLIC_MINUTES if is_public() else MOST_MINUTES
    return float(
        place.number_input(
            "Minutes", 1, most, min(10, most), key=f"{prefix}.minutes", help=MINUTES_HELP, **KEEP
        )
    )


def curve(status: jobs.JobStatus) -> None:
    """Draw the loss curve so far and the time left."""
    history = jobs.history(status.run_id)
    if not history or not history["curve"]:
        return
    minutes = status.request.get("options", {}).get("schedule", {}).get("minutes")
    if minutes:
        st.caption(f"Training: about {rough(max(0.0, 60 * minutes - history['seconds']))} left.")
    state.plot(making_charts.loss(history), key=f"making.live.{status.run_id}", alt="Training loss so far")
