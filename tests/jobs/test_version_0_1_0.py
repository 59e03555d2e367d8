"""The cache folder of version 0.1.0: its runs and its database open, are listed, shown and repeated."""

import shutil
import sqlite3
from pathlib import Path

import pytest

from qcore.base.files import read_json, write_json
from qcore.jobs import jobs
from qcore.recipes.spec import RunSpec
from qcore.results.folder import RunFolder
from qcore.results.store import Store

HOME = Path(__file__).resolve().parents[1] / "fixtures" / "home-0.1.0"
RUN = "20261130-005313-639a34"


@pytest.fixture(autouse=True)
def old(own_home):
    shutil.copytree(HOME, own_home)
    return own_home


def test_a_run_is_listed_with_its_rows_and_verdicts(said):
    (run,) = jobs.list_runs()
    assert (run.run_id, run.kind, run.state, run.error) == (RUN, "compare", "done", None)
    assert run.request["model"] == "/models/llama" and [each["state"] for each in run.recipes] == ["ok", "ok"]
    fp32, int8 = jobs.rows(RUN)
    assert fp32["kl_mean"] == 0 < int8["kl_mean"] and int8["verdict"]["outcome"] == "equivalent"
    assert f"{RUN}  " in said("runs")[1] and "fp32,int8" in said("runs")[1]
    assert "equivalent" in said("runs", "show", RUN)[1]


def test_its_request_can_be_repeated(monkeypatch):
    asked = []
    monkeypatch.setattr(jobs, "submit", lambda request, engine, **_: asked.append(request) or "again")
    assert jobs.repeat(RUN) == "again"
    (spec,) = asked
    assert isinstance(spec, RunSpec) and [each.name for each in spec.recipes] == ["fp32", "int8"]
    assert (spec.window, spec.seed, spec.generate) == (32, 1, False)


def test_the_database_opens_as_it_is(old):
    store = Store()
    assert store.notice is None and [each["run_id"] for each in store.runs()] == [RUN]
    assert [row["recipe"] for row in store.rows(RUN)] == ["fp32", "int8"]
    assert [row["recipe"] for row in store.latest("/models/llama")] == ["fp32", "int8"]
    with sqlite3.connect(old / "qcore.db") as db:
        assert db.execute("PRAGMA user_version").fetchone()[0] == 1


def test_a_run_that_was_under_way_is_settled(old):
    """Its process.json names no host."""
    folder = RunFolder(RUN)
    assert set(read_json(folder.path / "process.json")) == {"pid", "process_started"}
    status = folder.read("status.json") | {"state": "running", "phase": "int8: loading the model"}
    status["recipes"][1]["state"] = "running"
    write_json(folder.path / "status.json", status)
    (folder.path / "rows" / "01.json").unlink()
    run = jobs.status(RUN)
    assert (
        run.state == "interrupted"
        and "1 finished row" in run.error
        and run.recipes[1]["state"] == "interrupted"
    )


def test_a_run_can_be_deleted(old):
    jobs.delete(RUN)
    assert jobs.list_runs() == [] and Store().runs() == []
