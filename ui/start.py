"""The last look before a run: what it needs against what there is, what the recipes mean, and the button that
starts it."""

import streamlit as st

from qcore import planning
from qcore.base.errors import InputError, QcoreError
from qcore.base.home import is_public
from qcore.jobs import jobs
from qcore.recipes.spec import RunSpec
from qcore.verbs import checks
from qcore.verbs.prepare import Finder
from ui import charts, families, state
from ui.forms import recipes
from ui.text import digits, size, verbatim

FIRST_MODEL = "smollm2-135m"


def review(
    prefix: str,
    model: tuple[str, str | None] | None,
    checkpoint,
    names: list[str],
    skip: tuple[str, ...],
    head: str,
    options: dict,
    problem: InputError | None,
) -> None:
    """Show the estimate and the start button; `problem` is what is wrong with the form so far."""
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
    with st.expander(
        f"What the {len(spec.recipes)} recipes mean",
        icon=":material/menu_book:",
        expanded=len(spec.recipes) <= 4,
    ):
        st.markdown(recipes.explained(spec.recipes))


def first_comparison(key: str, active: jobs.JobStatus | None) -> None:
    """What a newcomer needs: one button that compares the default model in three forms, or the way to that
    run if it is under way."""
    st.markdown(
        f"One click compares three forms of **{FIRST_MODEL}**, a small language model: as it is (fp32), in 8 bits (int8) and in 4 bits "
        "(int4-g64). It takes a few minutes on two cores, and fetches the model (about 100 MB) the first time."
    )
    if active:
        icon = ":material/progress_activity:"
        st.page_link(
            "pages/quantize.py",
            label="A run is under way: watch it",
            icon=icon,
            query_params={"run": active.run_id},
        )
    elif st.button("Run the first comparison", type="primary", icon=":material/play_arrow:", key=key):
        submit(RunSpec(FIRST_MODEL, recipes.START))


def submit(spec: RunSpec, finder: Finder | None = None) -> None:
    """Start the run, checked as the Python API and the command line check it, and go to its panel; show what
    is wrong with it instead if it cannot be run."""
    with state.shown_errors(), st.spinner("Checking model and text…"):
        checked, _ = checks.check_run(spec, finder)
        run_id = jobs.submit(checked)
        st.switch_page("pages/quantize.py", query_params={"run": run_id})


def _spec(
    model: tuple[str, str | None] | None, names: list[str], skip: tuple[str, ...], head: str, options: dict
) -> RunSpec:
    if model is None:
        raise InputError("Name a model first.")
    if not names:
        raise InputError("Choose at least one recipe.")
    if is_public() and len(names) > state.PUBLIC_RECIPES:
        raise InputError(
            f"This server takes at most {state.PUBLIC_RECIPES} recipes a run; {len(names)} are chosen."
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
        return  # a click on Start says why
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
            f"{digits(checkpoint.parameters / 1e6)} million weights, {size(checkpoint.nbytes)} on disk. Estimated from the files' headers: "
            "what is stored (solid) and the peak of the process (pale)."
        )
        state.plot(
            charts.estimate(rows, available), key="quantize.estimate", alt="Estimated memory of each recipe"
        )
    for sentence in sentences:
        st.warning(sentence, icon=":material/memory:")
