"""Runs from the command line: exit statuses of compare, Ctrl-C, and what becomes of runs afterwards;
stand-ins do the measuring."""

import json
import os
import signal
import sys
import threading
import time
from pathlib import Path

import pytest
import samples

from qcore.jobs import jobs
from qcore.verbs import checks

FAKE = Path(__file__).resolve().parents[1] / "jobs" / "fake_child.py"


pytestmark = pytest.mark.usefixtures("own_home")


@pytest.fixture
def fake(monkeypatch):
    """`compare` with stand-ins for the processes that measure; the text says what each recipe does."""
    monkeypatch.setattr(jobs, "worker_command", lambda folder: [sys.executable, str(FAKE), str(folder.path)])
    checkpoint = type("Checkpoint", (), {"description": "A model."})
    monkeypatch.setattr(checks, "check_run", lambda spec: (spec, checkpoint))


def test_a_failed_recipe_is_a_row_and_status_1(said, fake, tmp_path):
    out = tmp_path / "out.json"
    status, printed, err = said(
        "compare", "m", "--recipes", "fp32,int8,int4", "--text", '{"int8": "kill"}', "--json", out
    )
    rows = json.loads(out.read_text())
    assert status == 1 and [row["status"] for row in rows] == ["ok", "failed", "ok"]
    assert "int8 failed: The recipe's process was killed by signal 9" in printed and "Traceback" not in err


def test_input_that_only_the_run_finds_bad_is_status_2(said, fake, tmp_path):
    out = tmp_path / "out.json"
    status, printed, err = said(
        "compare", "m", "--recipes", "fp32,int8", "--text", '{"fp32": "InputError"}', "--json", out
    )
    assert status == 2 and printed.strip() == "" and err.splitlines()[-1] == "fp32 cannot be done."
    assert [row["status"] for row in json.loads(out.read_text())] == ["failed", "failed"]


def test_json_on_standard_output_stands_alone(said, fake):
    status, printed, err = said("compare", "m", "--recipes", "fp32", "--json", "-")
    assert status == 0 and json.loads(printed)[0]["recipe"] == "fp32" and "perplexity" in err


@pytest.mark.parametrize(
    "number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP], ids=["Ctrl-C", "kill", "terminal closed"]
)
def test_ctrl_c_cancels_the_run(said, fake, number):
    def press():
        while not (runs := jobs.list_runs()) or "loading" not in runs[0].phase:
            time.sleep(0.05)
        os.kill(os.getpid(), number)

    before = signal.signal(
        signal.SIGINT, signal.default_int_handler
    )  # a shell starts what it runs in the background deaf to Ctrl-C
    try:
        finger = threading.Thread(target=press)
        finger.start()
        status, printed, err = said(
            "compare", "m", "--recipes", "fp32,int8", "--text", '{"int8": "hang", "fp32": "slow"}'
        )
        finger.join()
    finally:
        signal.signal(signal.SIGINT, before)
    assert status == 130 and err.strip().endswith("Cancelled.")
    assert [run.state for run in jobs.list_runs()] == ["cancelled"]


@pytest.mark.slow
def test_runs_are_listed_shown_repeated_and_deleted(said, fake, tmp_path):
    assert "no runs yet" in said("runs")[2]
    said("compare", "m", "--recipes", "fp32,int8", "--text", '{"int8": "exit"}')
    (run,) = jobs.list_runs()
    assert run.run_id in said("runs")[1] and "done" in said("runs")[1]
    status, printed, _ = said("runs", "show", run.run_id, "--json", tmp_path / "rows.json")
    assert status == 0 and f"runs repeat {run.run_id}" in printed and "exit code 3" in printed
    assert json.loads((tmp_path / "rows.json").read_text()) == jobs.rows(run.run_id)
    status, followed, _ = said("runs", "follow", run.run_id)
    assert status == 1 and "exit code 3" in followed
    assert "int8 does exit" in said("runs", "log", run.run_id)[1]
    assert said("runs", "repeat", run.run_id)[0] == 1 and len(jobs.list_runs()) == 2
    assert said("runs", "cancel", run.run_id)[1].strip() == f"{run.run_id}: done"
    assert said("runs", "delete", run.run_id)[0] == 0 and len(jobs.list_runs()) == 1


def test_a_report_is_written_to_a_file(said, own_home, tmp_path):
    run_id = samples.write_run(own_home, [samples.row(name) for name in ("fp32", "int8")])
    out = tmp_path / "report.html"
    status, printed, err = said("report", run_id, "--html", out, "--margin", "0.05")
    assert status == 0, err
    assert "within 5 %" in out.read_text() and printed == ""
    assert said("report", run_id, "--html", "-")[1].startswith("<!doctype html>")


def test_a_report_is_refused_where_there_is_none(said, own_home, tmp_path):
    pending = samples.write_run(own_home, [], pending=["fp32"])
    out = tmp_path / "report.html"
    for words, run_id, path in (
        ("at least one finished recipe", pending, out),
        ("nothere", "nothere", out),
        ("--html", pending, tmp_path / "no" / "folder.html"),
    ):
        status, _, err = said("report", run_id, "--html", path)
        assert status == 2 and words in err and not out.exists()
