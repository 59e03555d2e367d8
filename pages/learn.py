"""Lessons on quantization with real weights: each control changes a plot and a number."""

import streamlit as st

from qcore.base.home import home
from qcore.jobs import answers
from ui import engine, learn_models, learn_view, state
from ui.forms import model
from ui.learn_lessons import LESSONS
from ui.text import one_line, shielded

PREFIX, DITHERED = "learn", "smollm2-135m-dithered"
TITLES = {lesson.title: lesson for lesson in LESSONS}

state.page(
    "Learn", "Each concept, shown on a real weight of a real model. Move a control and watch the effect."
)

if f"{PREFIX}.default" not in st.session_state and (home() / "models" / DITHERED).is_dir():
    st.session_state[f"{PREFIX}.default"] = DITHERED  # its weights do not lie on a 4-bit grid
with st.container(horizontal=True, vertical_alignment="bottom"):
    place = st.container()
    with st.popover("Model", icon=":material/deployed_code:"):
        chosen = model.choose(PREFIX)
checkpoint = model.resolve(*chosen, "Fetch it to run the lessons on its weights.") if chosen else None
sample = None
if checkpoint is not None:
    with state.shown_errors():
        names = state.remember(
            ("lesson names", checkpoint.key), lambda: engine.ask(answers.lesson_weights, checkpoint)
        )
        usual = next((i for i, name in enumerate(names) if name.endswith("mlp.down_proj.weight")), 0)
        name = place.selectbox(
            "Weight",
            names,
            index=usual,
            format_func=one_line,
            key=f"{PREFIX}.weight.{checkpoint.digest[:8]}",
            width=420,
        )
        sample = state.remember(
            ("lesson weight", checkpoint.key, name),
            lambda: engine.ask(answers.lesson_weight, checkpoint, name),
        )
        rows, columns = sample.shape
        part = "" if sample.is_whole else f", the first of {sample.rows:,}"
        st.caption(f"{shielded(chosen[0])} · {columns:,} inputs, {rows:,} outputs{part}")

title = st.pills(
    "Lesson",
    list(TITLES),
    default=LESSONS[0].title,
    required=True,
    key=f"{PREFIX}.lesson",
    label_visibility="collapsed",
    wrap=True,
)
lesson = TITLES[title]
if lesson.key == "runs":
    learn_models.runs(lesson)
elif lesson.key == "distillation":
    learn_models.distillation(lesson, checkpoint)
else:
    learn_view.draw(lesson, sample, checkpoint)
