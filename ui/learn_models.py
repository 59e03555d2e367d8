"""Two lessons of the page Learn that need more than one weight: distillation, and the user's own runs."""

import streamlit as st
from streamlit.delta_generator import DeltaGenerator

from qcore.jobs import answers
from qcore.models.checkpoint import Checkpoint
from qcore.results.scales import frontier
from qcore.verbs.lesson_types import Predicted
from ui import engine, jobs, learn_charts, learn_lessons, learn_view, pareto, results, start, state
from ui.text import digits, drawn, one_line, percent

PREFIX = "learn"
PROMPT, LONGEST = "The capital of France is", 400
NEWEST = 100  # runs that are drawn, at most
TEMPERATURES = (1.0, 1.5, 2.0, 3.0, 4.0, 6.0)


def distillation(lesson: learn_lessons.Lesson, checkpoint: Checkpoint | None) -> None:
    """Draw the next-token distributions of the model with all layers and with every second layer."""
    st.subheader(lesson.title, anchor=False)
    left, right = st.columns([0.34, 0.66], gap="large")
    with left:
        st.markdown(lesson.text)
        prompt = st.text_input("Text", PROMPT, key=f"{PREFIX}.distillation.prompt", max_chars=LONGEST)
        prompt = prompt[:LONGEST]  # a browser may send anything
        temperature = st.select_slider(
            "Temperature", TEMPERATURES, value=1.0, key=f"{PREFIX}.distillation.temperature"
        )
    if checkpoint is None:
        right.info("Fetch the model above to predict the next token.", icon=":material/school:")
    else:
        key = ("taught", checkpoint.key, prompt)
        with state.shown_errors():
            predictions = state.recall(key)
            if predictions is None and left.button(
                "Predict the next token", type="primary", icon=":material/school:", key=f"{PREFIX}.ask"
            ):
                with right, st.spinner("Running the model…"):
                    state.remember(
                        key, lambda: engine.ask(answers.lesson_predictions, checkpoint, prompt, TEMPERATURES)
                    )
                st.rerun()
            if predictions is not None:
                _show(predictions, temperature, left, right)
            else:
                right.info(
                    "This takes a few seconds for a small model, because its weights are loaded.",
                    icon=":material/school:",
                )
    learn_view.links(lesson)


def _show(predictions: Predicted, temperature: float, left: DeltaGenerator, right: DeltaGenerator) -> None:
    found = predictions.taught[temperature]
    with left, st.container(horizontal=True):
        st.metric(
            "Distillation loss",
            f"{digits(found.loss)} nats",
            "T² · KL, teacher to student",
            delta_color="off",
            delta_arrow="off",
            border=True,
        )
        st.metric(
            "Teacher's entropy",
            f"{digits(found.entropy)} nats",
            f"{percent(found.others)} on other tokens",
            delta_color="off",
            delta_arrow="off",
            border=True,
        )
    with right:
        words = [drawn(predictions.words[token]).strip() or "(blank)" for token in found.tokens]
        state.plot(
            learn_charts.taught(found, words),
            key=f"{PREFIX}.distillation.bars",
            alt="Next-token probabilities of teacher and student",
        )
        st.caption(
            f"The student has {predictions.layers[1]} of the teacher's {predictions.layers[0]} layers and "
            "was not trained."
        )


def runs(lesson: learn_lessons.Lesson) -> None:
    """Draw cost against quality of all finished recipes of a model."""
    st.subheader(lesson.title, anchor=False)
    st.markdown(lesson.text)
    by_model: dict[str, list] = {}
    for status in jobs.list_runs("compare")[:NEWEST]:
        if status.recipes and results.measured(results.joined([status])):
            by_model.setdefault(state.model_of(status), []).append(status)
    if not by_model:
        with st.container(border=True):
            st.markdown("**No finished runs yet**")
            start.first_comparison(f"{PREFIX}.first", None)
        learn_view.links(lesson)
        return
    places = st.columns(3)
    model = places[0].selectbox("Model", list(by_model), format_func=one_line, key=f"{PREFIX}.runs.model")
    cost = places[1].selectbox("Cost", list(pareto.COSTS), key=f"{PREFIX}.runs.cost")
    quality = places[2].selectbox("Quality", list(pareto.QUALITIES), key=f"{PREFIX}.runs.quality")
    newest: dict[str, dict] = {}
    for status in by_model[model]:  # newest first
        for row in results.measured(results.joined([status])):
            newest.setdefault(row["recipe"], row | {"label": row["recipe"]})
    rows = list(newest.values())
    figure = pareto.pareto(rows, pareto.COSTS[cost], pareto.QUALITIES[quality])
    state.plot(figure, key=f"{PREFIX}.runs.pareto", alt=f"{cost} against {quality} of all recipes")
    axes = pareto.COSTS[cost], pareto.QUALITIES[quality]
    points = [
        tuple(axis.value(row) for axis in axes)
        for row in rows
        if all(axis.value(row) is not None for axis in axes)
    ]
    front = len(frontier(points, axes[0].figure.smaller, axes[1].figure.smaller))
    st.caption(
        f"{len(points)} recipes, the newest run of each; {front} of them are on the frontier. Runs may "
        "differ in text and length."
    )
    learn_view.links(lesson)
