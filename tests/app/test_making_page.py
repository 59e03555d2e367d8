"""The page Train & prune in Streamlit's test runner: empty, running, finished, failed; requests of its
forms."""

import os
import time
from pathlib import Path

import pytest
from opened import calm, open_page, plots, words

from qcore.base.files import read_json, write_json
from qcore.base.home import home as home_folder
from qcore.base.process import identity
from qcore.jobs import jobs
from qcore.jobs.kind import JobRequest
from qcore.jobs.kind_make import DistillRequest, PruneRequest, QatRequest
from qcore.jobs.kinds import KINDS
from qcore.recipes import parse
from qcore.training.distill import Distill
from qcore.training.loop import Schedule
from qcore.training.qat import Qat
from qcore.verbs.prune import Prune
from ui import making_charts

pytestmark = pytest.mark.usefixtures("home")

HISTORY = {
    "step": 40,
    "tokens": 10240,
    "seconds": 61.0,
    "best_step": 40,
    "ended": "time",
    "curve": [[step, 256 * step, 1.5 * step, 2.0 / step] for step in range(1, 41)],
    "validations": [[0, 2.0, 90.0], [20, 0.5, 50.0], [40, 0.4, 45.0]],
}
FIGURES = {
    "before": {"stored_bytes": 538_000_000, "perplexity": 40.0, "kl_mean": 0.0, "decode_tok_s": 12.0},
    "rounded": {"stored_bytes": 160_000_000, "perplexity": 90.0, "kl_mean": 1.2, "decode_tok_s": 60.0},
    "after": {"stored_bytes": 160_000_000, "perplexity": 44.0, "kl_mean": 0.3, "decode_tok_s": 61.0},
}
CONDITIONS = {"text": "a text", "tokens": 2048, "window": 256, "prompt_tokens": 64, "new_tokens": 16}


def job(
    request: JobRequest, state: str = "done", result: dict | None = None, second: int = 0, **more
) -> Path:
    """Write a job with invented figures as a worker does, and return its folder."""
    place = home_folder() / "runs" / f"20261125-1000{second:02d}-aaaaaa"
    write_json(place / "spec.json", request.to_dict())
    write_json(
        place / "status.json",
        {"state": state, "phase": state, "started_at": time.time() - 5, "finished_at": time.time(), **more},
    )
    if result is not None:
        write_json(
            place / "outcome.json", {"model": "a/model", "folder": "/made/it", "seconds": 70.0, **result}
        )
    return place


def training(**schedule) -> QatRequest:
    return QatRequest(model="a/model", recipe=parse("int3-g64"), options=Qat(schedule=Schedule(**schedule)))


def trained() -> None:
    found = {
        "compared": FIGURES | CONDITIONS,
        "history": HISTORY,
        "recipe": "int3-g64",
        "stored_bytes": 160_000_000,
    }
    job(training(), result=found)


def test_empty():
    at = open_page("train")
    assert (
        "Nothing has been made yet" in words(at)
        and plots(at) == 0
        and not at.button(key="making.start").disabled
    )


def test_a_trained_model():
    trained()
    at = open_page("train")
    assert (
        plots(at) == 2
        and "recovered 92.0 % of the perplexity" in words(at)
        and "40 steps over 10,240 tokens" in words(at)
    )
    assert list(at.dataframe[0].value["stored"]) == ["538 MB", "160 MB", "160 MB"]


def test_it_is_handed_over_to_the_comparison():
    trained()
    at = calm(open_page("train").button(key="making.beside").click().run())
    assert at.title[0].value == "Quantize" and at.text_input(key="quantize.hub").value == "a/model"
    assert at.text_input(key="quantize.more").value == "saved:/made/it"


@pytest.mark.parametrize(
    ("arguments", "extra", "sentence"),
    [
        (
            {"method": "wanda", "amount": 0.5, "recipe": parse("int4-g64")},
            {"sparsity": 0.5, "recipe": "int4-g64"},
            "of linear layers are 0",
        ),
        ({"method": "layers", "amount": 0.25}, {"removed": 0.21, "parameters": 10}, "of all weights removed"),
    ],
    ids=["weights", "layers"],
)
def test_a_pruned_model(arguments, extra, sentence):
    compared = {name: value for name, value in FIGURES.items() if name != "rounded"} | CONDITIONS
    asked = PruneRequest(model="a/model", options=Prune(**arguments))
    job(asked, result={"compared": compared, "stored_bytes": 1, **extra})
    at = open_page("train")
    assert plots(at) == 1 and sentence in words(at) and "recovered" not in words(at)


def test_half_filled_and_old_records_are_shown_as_far_as_they_go():
    job(DistillRequest(model="a/model", options=Distill(layers=15)), result={"history": HISTORY})
    job(DistillRequest(model="a/model", options=Distill(layers=3)), second=1)
    at = open_page("train")
    assert "The record of this job has been deleted" in words(at)
    calm(at.selectbox(key="making.job").select_index(1).run())
    assert plots(at) == 1 and "Distill" in words(at)


def test_under_way_and_how_it_can_end():
    place = job(training(minutes=10), "running", total=100, done=25)
    write_json(place / "process.json", identity(os.getpid()))
    write_json(place / "history.json", HISTORY)
    at = open_page("train")
    shown = words(at).replace("\\", "")
    assert plots(at) == 1 and "Training: about 8 min 59 s left" in shown and "int3-g64 trained" in shown
    assert not at.button(key="making.start").disabled  # another job is queued
    write_json(place / "process.json", {"pid": 1, "process_started": 0.0})
    assert "killed from outside" in words(open_page("train"))
    for state, sentence in (("failed", "It broke"), ("cancelled", "Run it again to resume")):
        error = "It broke." if state == "failed" else None
        write_json(place / "status.json", read_json(place / "status.json") | {"state": state, "error": error})
        assert sentence in words(open_page("train"))


@pytest.mark.parametrize("kind", ["qat", "prune", "distill"])
def test_the_form_asks_for_what_it_says(kind, monkeypatch):
    asked = []
    monkeypatch.setattr(jobs, "submit", lambda request, **_: asked.append(request) or "job")
    at = open_page("train")
    calm(at.segmented_control(key="making.kind").set_value(kind).run())
    calm(at.button(key="making.start").click().run())
    (submitted,) = asked
    request = KINDS[kind].request.from_dict(submitted.to_dict())
    assert submitted.kind == kind and request.model == "smollm2-135m"
    assert request.name.startswith("smollm2-135m-")


def test_choices_that_fit_the_method():
    at = open_page("train")
    calm(at.segmented_control(key="making.kind").set_value("prune").run())
    calm(at.selectbox(key="making.method").set_value("2:4").run())
    assert at.text_input(key="making.half").disabled
    calm(at.selectbox(key="making.method").set_value("heads").run())
    assert not [box for box in at.selectbox if box.key == "making.then"]


def test_the_loss_curve_shows_every_step_and_look():
    figure = making_charts.loss(HISTORY)
    assert [len(trace.x) for trace in figure.data] == [40, 40, 3] and figure.data[1].y[0] == 2.0
    assert making_charts.loss({"curve": [], "validations": [], "best_step": 0}).data


def test_a_stranger_may_name_no_paths(monkeypatch):
    monkeypatch.setenv("QCORE_PUBLIC", "1")
    at = open_page("train")
    assert not [box for box in at.text_input if box.key == "making.text"]
    assert at.number_input(key="making.minutes").max == 10
