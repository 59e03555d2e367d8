"""Models made in a process of their own: a real worker on a tiny model, the end that it can come to, and what
is refused at once."""

import os
import time

import pytest
import tiny

from qcore.base.errors import InputError
from qcore.base.files import write_json
from qcore.base.home import home
from qcore.base.process import identity
from qcore.jobs import making_jobs
from qcore.jobs.making_jobs import Request
from qcore.library import resolve


@pytest.fixture
def model(tmp_path):
    return str(tiny.checkpoint("llama", tmp_path / "llama"))


@pytest.fixture
def text(tmp_path):
    path = tmp_path / "text.txt"
    path.write_text("It was the best of tokens, it was the worst of tokens. " * 200)
    return str(path)


def test_a_model_is_made_watched_and_found_again(model, text, wait_for):
    asked = Request("prune", model, {"method": "layers", "amount": 0.5, "calibration": text, "tokens": 256})
    job = making_jobs.submit(asked)
    with pytest.raises(InputError, match="being made already"):
        making_jobs.submit(asked)
    ended = wait_for(lambda: (now := making_jobs.status(job)) and not now.active and now, 120)
    assert ended.state == "done" and ended.error is None, ended
    assert set(ended.result["compared"]) >= {"before", "after"} and ended.result["removed"] > 0
    assert resolve(str(home() / "made" / asked.name)).config["num_hidden_layers"] == 1
    assert [each.job for each in making_jobs.jobs()] == [job]


def test_training_is_cancelled_and_goes_on_when_asked_again(model, text, wait_for):
    about = {
        "recipe": "int3-g64",
        "text": text,
        "window": 64,
        "tokens": 2048,
        "schedule": {"steps": 100_000, "validations": 1},
    }
    job = making_jobs.submit(Request("qat", model, about))
    wait_for(lambda: (making_jobs.status(job).history or {}).get("curve"), 120)
    making_jobs.cancel(job)
    now = making_jobs.status(job)
    assert now.state == "cancelled" and not now.active and now.history["curve"] and now.result is None
    making_jobs.cancel(job)  # twice is once


def test_a_worker_that_was_killed_is_told_from_one_that_works():
    place = making_jobs.folder("20261125-100000-aaaaaa")
    write_json(place / "request.json", {"kind": "prune", "model": "a", "arguments": {}, "revision": None})
    write_json(place / "status.json", {"state": "running", "started_at": time.time()})
    write_json(place / "process.json", identity(os.getpid()))
    assert making_jobs.status("20261125-100000-aaaaaa").active
    write_json(place / "process.json", {"pid": os.getpid(), "process_started": 0.0})
    assert making_jobs.status("20261125-100000-aaaaaa").state == "interrupted"
    assert making_jobs.status("none") is None


@pytest.mark.parametrize(
    ("kind", "arguments", "sentence"),
    [
        ("grow", {}, "must be one of"),
        ("qat", {"recipe": "fp32"}, "keeps floating point"),
        ("qat", {"recipe": "int3", "schedule": {"minutes": -1}}, "minutes is -1"),
        ("prune", {"method": "2:4", "amount": 0.3}, "two of every four"),
        ("distill", {"layers": 0}, "layers is 0"),
    ],
    ids=["kind", "recipe", "schedule", "pruning", "layers"],
)
def test_what_cannot_be_made_is_refused_before_anything_starts(kind, arguments, sentence):
    with pytest.raises(InputError, match=sentence):
        Request(kind, "model", arguments)
    with pytest.raises(InputError, match="No model was given"):
        Request("qat", " ", {"recipe": "int3"})
    assert making_jobs.jobs() == []
