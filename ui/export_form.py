"""The form of the page Export, and the exports in progress."""

from itertools import count
from pathlib import Path

import streamlit as st

from qcore import recipes
from qcore.base.home import home, is_public
from qcore.jobs import answers
from qcore.jobs.kind_folder import ExportRequest
from qcore.library.exports import TARGETS, TargetInfo
from qcore.models.checkpoint import Checkpoint
from qcore.models.names import classify
from qcore.verbs.record import safe_name
from ui import engine, jobs, state
from ui.forms import KEEP, model
from ui.text import shielded

AS_IT_IS = "as it is stored"
OTHER_HELP = (
    "Any recipe that the form can express, such as gguf-q5_k-gptq for GGUF or int4-g128-gptq for "
    "compressed-tensors. One that it cannot is refused with the nearest one that fits."
)
STORED_HELP = "For a model that is quantized already: its own codes are written. Otherwise floating point."


def form(prefix: str) -> None:
    """Draw the form: model, target, recipe, start button."""
    with st.container(border=True):
        chosen = model.choose(prefix)
        why = "The export will fetch it. Fetch it now to have the recipe checked against it before the start."
        checkpoint = model.resolve(*chosen, why) if chosen else None
        left, middle, right = st.columns([2, 2, 2])
        target = TARGETS[
            left.selectbox(
                "For",
                list(TARGETS),
                index=list(TARGETS).index("gguf"),
                format_func=lambda name: f"{TARGETS[name].title}: {TARGETS[name].words}",
                key=f"{prefix}.to",
                **KEEP,
            )
        ]
        offered = middle.selectbox(
            "Recipe",
            [*target.recipes, AS_IT_IS],
            key=f"{prefix}.recipe.{target.name}",
            help=STORED_HELP,
            **KEEP,
        )
        other = right.text_input(
            "Or another recipe", placeholder="gguf-q5_k-gptq", key=f"{prefix}.other", help=OTHER_HELP, **KEEP
        ).strip()
        with state.shown_errors():
            name = other or (None if offered == AS_IT_IS else offered)
            recipe = None if name is None else recipes.parse(name)
            if recipe is not None:
                st.caption(_words(recipe))
            if st.button(
                "Export",
                type="primary",
                icon=":material/play_arrow:",
                key=f"{prefix}.start",
                disabled=chosen is None,
            ):
                with st.spinner("Checking model and recipe…"):
                    request = _request(chosen, checkpoint, target, recipe)
                st.query_params["run"] = jobs.submit(request)
                st.rerun()


def _words(recipe: recipes.Recipe) -> str:
    text = f"{shielded(recipe.name)}: {recipes.describe(recipe)}."
    return text + " It reads calibration text, which takes minutes." if recipe.calibrated else text


def _request(
    chosen: tuple[str, str | None],
    checkpoint: Checkpoint | None,
    target: TargetInfo,
    recipe: recipes.Recipe | None,
) -> ExportRequest:
    """Return the request, which writes into a new folder of the cache folder. Raise `InputError` if the
    target cannot express the model, as far as its `checkpoint` is on this machine."""
    name, revision = chosen
    classify(name, revision, public=is_public())
    label = Path(safe_name(name, recipe.name if recipe else target.name)).name
    places = (home() / "made" / f"{label}-{target.name}{f'-{i}' if i else ''}" for i in count())
    out = next(place for place in places if not place.exists())
    if checkpoint is not None:
        engine.ask(answers.check_export, checkpoint, recipe, out, target.name)
    return ExportRequest(model=name, revision=revision, recipe=recipe, to=target.name, out=str(out))
