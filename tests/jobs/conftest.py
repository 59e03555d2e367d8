"""Runs in separate cache folders, with child processes that load nothing."""

import json
import sys
import time
from pathlib import Path

import pytest

from qcore.jobs import jobs
from qcore.recipes.spec import RunSpec

FAKE = Path(__file__).with_name("fake_child.py")


@pytest.fixture(autouse=True)
def own_home(tmp_path, monkeypatch):
    """An empty cache folder per test; its runs are ended after the test."""
    monkeypatch.setenv("QCORE_HOME", str(tmp_path / "home"))
    yield tmp_path / "home"
    for run in jobs.list_runs():
        if run.active:
            jobs.cancel(run.run_id)


@pytest.fixture
def fake(monkeypatch):
    """Run submitted jobs with stand-ins; call the fixture with recipes and their behavior to get a spec."""
    monkeypatch.setattr(jobs, "worker_command", lambda folder: [sys.executable, str(FAKE), str(folder.path)])

    def spec(recipes="fp32,int8,int4", model="fake", **plan):
        return RunSpec(
            model, recipes, text=json.dumps({name.replace("_", "-"): what for name, what in plan.items()})
        )

    return spec


@pytest.fixture
def wait_for():
    """Wait until a condition holds; fail loudly if it never does."""

    def wait(condition, seconds=60):
        end = time.monotonic() + seconds
        while not (found := condition()):
            assert time.monotonic() < end, "it never happened"
            time.sleep(0.02)
        return found

    return wait


@pytest.fixture
def ended(wait_for):
    """The final status of a run."""

    def end(run_id):
        return wait_for(lambda: (status := jobs.status(run_id)) and not status.active and status)

    return end
