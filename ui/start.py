"""The review before a run: memory required and available, the recipes explained, the start button."""

import json
from functools import partial

import streamlit as st

from qcore.base.errors import InputError
from qcore.base.home import is_public
from qcore.jobs import answers
from qcore.measurement.memory import available_bytes
from qcore.models.checkpoint import Checkpoint
from qcore.recipes import Saved
from qcore.recipes.spec import RunSpec
from ui import charts, engine, families, jobs, state
from ui.forms import recipes
from ui.text import digits, size, verbatim

FIRST_MODEL = "smollm2-135m"
ROUGHLY = 100_000_000  # bytes of free memory by which an estimate is made again


def review(
    prefix: str,
    model: tuple[str, str | None] | None,
    checkpoint: Checkpoint | None,
    names: list[str],
    skip: tuple[str, ...],
    head: str,
    options: dict,
    problem: InputError | None,
) -> None:
    """Show the memory estimate and the start button. `problem` is the form's error, if any."""
    try:
        if problem:
            raise problem
        spec = _spec(model, names, skip, head, options)
    except InputError as error:
        st.info(verbatim(str(error)), icon=":material/edit:")
        st.button(
            "Start",
            type="primary",
            icon=":material/play_arrow:",
            disabled=True,
            width="stretch",
            key=f"{prefix}.start",
        )
        return
    if checkpoint is not None:
        with state.shown_errors():
            _memory(spec, checkpoint)
    else:
        st.caption("The memory estimate appears here once the model is on this machine.")
    if st.button(
        "Start", type="primary", icon=":material/play_arrow:", width="stretch", key=f"{prefix}.start"
    ):
        submit(spec, checkpoint)
    if is_public() and (waiting := jobs.waiting()):
        runs = "One run is" if waiting == 1 else f"{waiting} runs are"
        st.caption(f":material/groups: {runs} in the queue of this server. Runs take turns.")
    with st.expander(
        f"The {len(spec.recipes)} recipes explained",
        icon=":material/menu_book:",
        expanded=len(spec.recipes) <= 4,
    ):
        st.markdown(recipes.explained(spec.recipes))


def first_comparison(key: str, active: jobs.JobStatus | None) -> None:
    """Draw one button that compares the default model in three recipes, or a link to the run in progress."""
    st.markdown(
        f"One click compares three versions of **{FIRST_MODEL}**, a small language model: unquantized "
        "(fp32), in 8 bits (int8) and in 4 bits (int4-g64). This takes a few minutes on two cores. The "
        "first time, it also downloads the model (about 100 MB)."
    )
    if active:
        icon = ":material/progress_activity:"
        st.page_link(
            "pages/quantize.py",
            label="A run is in progress: follow it",
            icon=icon,
            query_params={"run": active.run_id},
        )
    elif st.button("Run the first comparison", type="primary", icon=":material/play_arrow:", key=key):
        submit(RunSpec(FIRST_MODEL, recipes.START))


def submit(spec: RunSpec, known: Checkpoint | None = None) -> None:
    """Start the run and open its panel. The checks are those of the Python API and the command line; an error
    is shown instead."""
    with state.shown_errors(), st.spinner("Checking model and text…"):
        run_id = jobs.submit(engine.ask(answers.check_run, spec, known))
        st.switch_page("pages/quantize.py", query_params={"run": run_id})


def _spec(
    model: tuple[str, str | None] | None, names: list[str], skip: tuple[str, ...], head: str, options: dict
) -> RunSpec:
    if model is None:
        raise InputError("Choose a model first.")
    if not names:
        raise InputError("Choose at least one recipe.")
    if is_public() and len(names) > state.PUBLIC_RECIPES:
        raise InputError(
            f"This server allows {state.PUBLIC_RECIPES} recipes per run; {len(names)} are chosen."
        )
    if is_public():
        from qcore.models.names import classify

        classify(*model, public=True)
        options = {**options, "generate_tokens": state.PUBLIC_LIMITS["generate_tokens"]}
    return RunSpec(model[0], tuple(recipes.build(names, skip, head)), revision=model[1], **options)


def _memory(spec: RunSpec, checkpoint: Checkpoint) -> None:
    rows, sentences = [], []
    free = available_bytes() // ROUGHLY
    key = ("estimates", checkpoint.key, checkpoint.name, json.dumps(spec.to_dict()), free)
    stays = not any(isinstance(recipe.weights, Saved) for recipe in spec.recipes)  # its folder may change
    ask = partial(engine.ask, answers.estimates, spec, checkpoint)
    parameters, found = state.remember(key, ask) if stays else ask()
    for name, estimate in found:
        if isinstance(estimate, str):
            sentences.append(f"{families.badge(name)} {verbatim(estimate)}")
            continue
        peak = max(estimate.peak_load_bytes, estimate.peak_run_bytes)
        rows.append(
            {
                "recipe": name,
                "label": name,
                "stored_bytes": estimate.stored_bytes,
                "peak_bytes": peak,
                "fits": estimate.fits,
            }
        )
        if not estimate.fits:
            sentences.append(f"{families.badge(name)} does not fit: {verbatim(estimate.arithmetic)}")
        available = estimate.available_bytes
    if rows:
        st.caption(
            f"{digits(parameters / 1e6)} million weights, {size(checkpoint.nbytes)} on disk. "
            "Estimated from the file headers: stored size (solid) and peak memory of the process (pale)."
        )
        state.plot(
            charts.estimate(rows, available), key="quantize.estimate", alt="Estimated memory of each recipe"
        )
    for sentence in sentences:
        st.warning(sentence, icon=":material/memory:")
