"""Jobs other than comparisons: real workers on tiny models, in the common list, with the common cancel."""

import json
import os
import signal
from pathlib import Path

import psutil
import pytest
import tiny

from qcore import library, models
from qcore.base.errors import InputError
from qcore.jobs import jobs
from qcore.jobs.kind_audit import AuditRequest
from qcore.jobs.kind_folder import ExportRequest, QuantizeRequest
from qcore.jobs.kind_make import DistillRequest, PruneRequest, QatRequest
from qcore.jobs.kind_probe import ProbeRequest
from qcore.jobs.kind_sensitivity import SensitivityRequest
from qcore.jobs.kinds import KINDS, describe, kind_of
from qcore.planning import probe
from qcore.recipes import parse
from qcore.recipes.spec import RunSpec
from qcore.results.folder import RunFolder
from qcore.results.store import Store
from qcore.training.distill import Distill
from qcore.training.loop import Schedule
from qcore.training.qat import Qat
from qcore.verbs.prune import Prune

PATIENCE = 180  # seconds; shared machines are slow


@pytest.fixture
def model(tmp_path):
    return str(tiny.checkpoint("llama", tmp_path / "llama"))


@pytest.fixture
def text(tmp_path):
    path = tmp_path / "text.txt"
    path.write_text("It was the best of tokens, it was the worst of tokens. " * 200)
    return str(path)


@pytest.fixture
def ended(wait_for):
    def end(run_id):
        return wait_for(lambda: (now := jobs.status(run_id)) and not now.active and now, PATIENCE)

    return end


def requests(model: str = "a/model", out: str = "out") -> list:
    """One request of each kind."""
    recipe = parse("int4-g64").with_modules(skip=("layers.0",))
    return [
        RunSpec(model, "fp32,int8"),
        QatRequest(model=model, recipe=recipe, options=Qat(schedule=Schedule(minutes=2))),
        PruneRequest(model=model, options=Prune(method="wanda", recipe=parse("int8"), sparse=True)),
        DistillRequest(model=model, options=Distill(layers=2)),
        ExportRequest(model=model, out=out, recipe=parse("int4-g64")),
        QuantizeRequest(model=model, out=out, recipe=recipe),
        SensitivityRequest(model=model, formats=("int8", "int4-g64")),
        ProbeRequest(model=model, recipes=("fp32", "int8")),
        AuditRequest(model=model, values=False),
    ]


@pytest.mark.parametrize("request_", requests(), ids=lambda each: each.kind)
def test_a_request_comes_back_from_its_record(request_):
    record = json.loads(json.dumps(request_.to_dict()))
    assert kind_of(record).name == request_.kind and kind_of(record).request.from_dict(record) == request_
    assert describe(record) and describe({"kind": "of tomorrow"}) == "of tomorrow"
    with pytest.raises(InputError, match="cannot be read"):
        kind_of(record).request.from_dict(record | {"unknown": 1})


def test_there_is_a_request_for_each_kind():
    assert {each.kind for each in requests()} == set(KINDS)


def test_paths_of_a_request_are_made_absolute(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "model").mkdir()
    (tmp_path / "t.txt").write_text("text")
    made = QatRequest(
        model="./model", recipe=parse("int3-g64"), options=Qat(text="t.txt"), out="out"
    ).absolute()
    assert (made.model, made.options.text, made.out) == (
        str(tmp_path / "model"),
        str(tmp_path / "t.txt"),
        str(tmp_path / "out"),
    )


def test_what_cannot_be_made_is_refused_before_anything_starts():
    for wrong, sentence in (
        (lambda: QatRequest(model="m", recipe=parse("fp32"), options=Qat()), "keeps floating point"),
        (lambda: Prune(method="2:4", amount=0.3), "two of every four"),
        (lambda: Prune(method="burn"), "Unknown pruning method"),
        (lambda: ExportRequest(model="m", out="x", to="gguf2"), "Unknown export format 'gguf2'"),
        (
            lambda: QuantizeRequest(model="m", out="x", recipe=parse("int8"), address="auto"),
            "Choose the engine ray",
        ),
        (lambda: SensitivityRequest(model="m", tokens=3), "tokens is 3"),
        (lambda: ProbeRequest(model="m", recipes=("int5",)), "Unknown recipe"),
        (lambda: ProbeRequest(model=" ", recipes=("int8",)), "No model was given"),
    ):
        with pytest.raises(InputError, match=sentence):
            wrong()
    assert jobs.list_runs() == []


@pytest.mark.slow
def test_a_model_is_made_and_found_in_the_one_list(model, text, ended, said):
    options = Prune(method="layers", amount=0.5, calibration=text, tokens=256)
    asked = PruneRequest(model=model, options=options, compare=True)
    run_id = jobs.submit(asked)
    now = ended(run_id)
    assert (now.state, now.error, now.kind) == ("done", None, "prune"), now
    found = jobs.outcome(run_id)
    assert set(found["compared"]) >= {"before", "after"} and found["removed"] > 0
    assert library.resolve(found["folder"]).config["num_hidden_layers"] == 1
    assert [each["run_id"] for each in Store().runs()] == [run_id]
    assert json.loads((RunFolder(run_id).path / "result.json").read_text())["state"] == "done"
    listed = said("runs")[1]
    assert run_id in listed and "layers 50% pruned" in listed and model in listed
    shown = said("runs", "show", run_id)[1]
    assert "of the weights removed" in shown and f"runs repeat {run_id}" in shown


@pytest.mark.slow
def test_a_later_job_does_not_overwrite_an_earlier_ones_model(model, text, ended):
    """The folder was named after model and recipe alone."""
    folders = []
    for steps in (1, 2):
        options = Qat(text=text, window=64, tokens=512, schedule=Schedule(steps=steps, validations=1))
        run_id = jobs.submit(QatRequest(model=model, recipe=parse("int3-g64"), options=options))
        assert ended(run_id).state == "done", jobs.status(run_id).error
        assert len(jobs.outcome(run_id)["history"]["curve"]) == steps
        folders.append(jobs.outcome(run_id)["folder"])
    assert len(set(folders)) == 2 and all(Path(folder, "qcore.json").exists() for folder in folders)


@pytest.mark.slow
def test_training_is_cancelled_and_goes_on_when_it_is_repeated(model, text, wait_for, ended):
    options = Qat(text=text, window=64, tokens=2048, schedule=Schedule(steps=100_000, validations=1))
    run_id = jobs.submit(QatRequest(model=model, recipe=parse("int3-g64"), options=options))
    wait_for(lambda: (jobs.history(run_id) or {}).get("curve"), PATIENCE)
    now = jobs.cancel(run_id)
    assert now.state == "cancelled" and jobs.outcome(run_id) is None
    before = len(jobs.history(run_id)["curve"])
    again = jobs.repeat(run_id)
    wait_for(lambda: len((jobs.history(again) or {"curve": ()})["curve"]) > before, PATIENCE)
    jobs.cancel(again)


def tasks(folder: RunFolder) -> list[psutil.Process]:
    """Return the processes of the tasks under way: the worker starts the server that forks them."""
    worker = folder.process()
    below = worker.children(recursive=True) if worker else []
    return [process for process in below if process.ppid() != worker.pid]


@pytest.mark.row("31")
@pytest.mark.slow
def test_a_killed_task_that_can_be_resumed_is_started_again_once(model, text, wait_for, ended):
    options = Qat(text=text, window=64, tokens=2048, schedule=Schedule(steps=100_000, validations=1))
    run_id = jobs.submit(QatRequest(model=model, recipe=parse("int3-g64"), options=options))
    killed = []

    def kill():
        folder = RunFolder(run_id)
        wait_for(lambda: tasks(folder), PATIENCE)
        (child,) = tasks(folder)
        wait_for(lambda: (jobs.history(run_id) or {}).get("curve"), PATIENCE)
        (folder.path / "history.json").unlink()
        os.kill(child.pid, signal.SIGKILL)
        wait_for(lambda: not child.is_running(), PATIENCE)
        killed.append(child.pid)

    kill()
    assert jobs.status(run_id).active
    kill()
    now = ended(run_id)
    assert len(set(killed)) == 2 and now.state == "failed"
    assert now.error.startswith("The job's process was killed by signal 9 (probably out of memory) while")
    assert "it is started again" in RunFolder(run_id).log.read_text()


@pytest.mark.slow
def test_what_fails_unexpectedly_leaves_its_traceback_in_the_log(tmp_path, ended):
    folder = tiny.checkpoint("llama", tmp_path / "broken")
    (folder / "tokenizer.json").write_text("{}")
    run_id = jobs.submit(PruneRequest(model=str(folder), options=Prune(method="layers")))
    now = ended(run_id)
    assert now.state == "failed" and "\n" not in now.error
    assert "Traceback (most recent call last)" in RunFolder(run_id).log.read_text()


@pytest.mark.slow
def test_a_probe_is_a_job_and_its_figures_are_kept(model, ended, tmp_path):
    run_id = jobs.submit(ProbeRequest(model=model, recipes=("int8", "fp32")))
    now = ended(run_id)
    assert (now.state, now.error, jobs.outcome(run_id)) == ("done", None, {"recipes": ["int8", "fp32"]})
    assert len(list((tmp_path / "home" / "probes").iterdir())) == 2
    shapes = models.meta_model(library.outline(model))
    probe.known(shapes, parse("int8"))  # None if this process has another number of threads
    moe = str(tiny.checkpoint("moe", tmp_path / "moe"))
    failed = ended(jobs.submit(ProbeRequest(model=moe, recipes=("bnb-nf4",))))
    assert failed.state == "failed" and "bnb-nf4 could not be timed" in failed.error
    gone = ended(jobs.submit(ProbeRequest(model=str(tmp_path / "nothing"), recipes=("int8",))))
    assert (gone.error_kind, "is neither a folder or file here nor a hub id" in gone.error) == (
        "InputError",
        True,
    )


@pytest.mark.row("37")
def test_all_kinds_wait_in_one_queue(model, fake, wait_for):
    first = jobs.submit(fake("fp32", fp32="hang"))
    wait_for(lambda: jobs.status(first).state == "running")
    second = jobs.submit(ProbeRequest(model=model, recipes=("int8",)))
    assert (jobs.status(second).state, jobs.status(second).place) == ("queued", 1)
    assert jobs.cancel(second).state == "cancelled"


def test_jobs_of_version_0_1_0_in_their_own_folders_disturb_nothing(own_home):
    for place in ("making/20261125-100000-aaaaaa", "sensitivity/job"):
        (own_home / place).mkdir(parents=True)
        (own_home / place / "status.json").write_text('{"state": "running", "started_at": 0}')
    assert jobs.list_runs() == []
