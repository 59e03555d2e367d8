"""The review before a run: memory required and available, the recipes explained, the start button."""

import streamlit as st

from qcore import planning
from qcore.base.errors import InputError, QcoreError
from qcore.base.home import is_public
from qcore.models.checkpoint import Checkpoint
from qcore.recipes.spec import RunSpec
from qcore.verbs import checks
from qcore.verbs.prepare import Finder
from ui import charts, families, jobs, state
from ui.forms import recipes
from ui.text import digits, size, verbatim

FIRST_MODEL = "smollm2-135m"


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
    finder = Finder()
    if checkpoint is not None:
        finder.know(*model, checkpoint)
        with state.shown_errors():
            _memory(spec, finder)
    else:
        st.caption("The memory estimate appears here once the model is on this machine.")
    if st.button(
        "Start", type="primary", icon=":material/play_arrow:", width="stretch", key=f"{prefix}.start"
    ):
        submit(spec, finder)
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


def submit(spec: RunSpec, finder: Finder | None = None) -> None:
    """Start the run and open its panel. The checks are those of the Python API and the command line; an error
    is shown instead."""
    with state.shown_errors(), st.spinner("Checking model and text…"):
        checked, _ = checks.check_run(spec, finder)
        run_id = jobs.submit(checked)
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


def _memory(spec: RunSpec, finder: Finder) -> None:
    rows, sentences = [], []
    spec = checks.beside_original(spec, finder)
    checkpoint = finder.headers(spec.model, spec.revision)
    if checkpoint is None or checkpoint.is_quantized:
        return  # Start shows the reason
    checks.check_kv(checkpoint, spec.kv_format)
    for recipe in spec.recipes:
        try:
            loaded = checks.loaded_from(checkpoint, recipe, finder)
            estimate = planning.estimate(
                *loaded, tokens=spec.prompt_tokens + spec.new_tokens, window=spec.window
            )
        except QcoreError as error:
            sentences.append(f"{families.badge(recipe.name)} {verbatim(str(error))}")
            continue
        peak = max(estimate.peak_load_bytes, estimate.peak_run_bytes)
        rows.append(
            {
                "recipe": recipe.name,
                "label": recipe.name,
                "stored_bytes": estimate.stored_bytes,
                "peak_bytes": peak,
                "fits": estimate.fits,
            }
        )
        if not estimate.fits:
            sentences.append(f"{families.badge(recipe.name)} does not fit: {verbatim(estimate.arithmetic)}")
        available = estimate.available_bytes
    if rows:
        st.caption(
            f"{digits(checkpoint.parameters / 1e6)} million weights, {size(checkpoint.nbytes)} on disk. "
            "Estimated from the file headers: stored size (solid) and peak memory of the process (pale)."
        )
        state.plot(
            charts.estimate(rows, available), key="quantize.estimate", alt="Estimated memory of each recipe"
        )
    for sentence in sentences:
        st.warning(sentence, icon=":material/memory:")
