"""A cache folder shared by several machines, and races of threads and signals."""

import contextlib
import os
import signal
import threading
import time
from dataclasses import replace

import pytest

from qcore.base import process
from qcore.jobs import jobs, worker
from qcore.jobs.kind_compare import expected_seconds
from qcore.results.folder import RunFolder


def elsewhere(folder: RunFolder) -> None:
    """Turn a run into a run of another machine."""
    folder.write("process.json", {"pid": 2**22 + 7, "process_started": 1.0, "host": "another-machine"})


def began(run_id: str, name: str) -> bool:
    return (RunFolder(run_id).path / f"began-{name}").exists()


@pytest.fixture
def foreign(fake, ended):
    """An active run of another machine."""
    run_id = jobs.submit(fake("fp32", model="theirs"))
    ended(run_id)
    folder = RunFolder(run_id)
    (folder.path / "result.json").unlink()
    folder.write("status.json", folder.read("status.json") | {"state": "running", "phase": "fp32: loading"})
    elsewhere(folder)
    return run_id


@pytest.mark.row("42")
def test_a_run_of_another_machine_is_never_settled_from_here(foreign):
    folder = RunFolder(foreign)
    assert jobs.status(foreign).state == "running" and jobs.list_runs()[0].active
    os.utime(folder.path / "process.json", (time.time() - 3600,) * 2)
    lost = jobs.status(foreign)
    assert lost.state == "interrupted" and "another-machine" in lost.error
    assert folder.read("status.json")["state"] == "running" and folder.read("result.json") is None
    folder.beat()
    assert jobs.status(foreign).state == "running"


@pytest.mark.row("42")
def test_a_container_of_the_same_name_judges_nobody_by_a_pid(fake, wait_for):
    """Two containers had one host name and one cache folder: each took the other's runs for dead."""
    run_id = jobs.submit(fake("fp32", fp32="hang"))
    wait_for(lambda: began(run_id, "fp32"))
    folder = RunFolder(run_id)
    mine = folder.read("process.json")
    folder.write("process.json", mine | {"place": "another boot or container"})
    assert jobs.status(run_id).state == "running" and folder.process() is None  # not ours to signal
    os.utime(folder.path / "process.json", (time.time() - 3600,) * 2)
    assert jobs.status(run_id).state == "interrupted"  # silent: that boot or container is gone
    assert folder.read("status.json")["state"] == "interrupted"
    assert process.living(mine) is not None
    folder.write("process.json", mine)


@pytest.mark.row("42")
def test_two_machines_start_the_same_request_at_once(fake, monkeypatch):
    """A double click does not span machines: cancelling one's run would have ended the other's."""
    spec = fake("fp32", fp32="hang")
    first = jobs.submit(spec)
    with monkeypatch.context() as patch:
        patch.setattr(jobs, "host", lambda: "another-machine")
        second = jobs.submit(spec)
    assert first != second and jobs.submit(spec) == first


@pytest.mark.row("42")
@pytest.mark.slow
def test_runs_queue_behind_one_of_another_machine(foreign, fake, wait_for, ended):
    run_id = jobs.submit(fake("fp32"))
    assert (jobs.status(run_id).state, jobs.status(run_id).place) == ("queued", 1)
    time.sleep(1.5)
    assert jobs.status(run_id).state == "queued" and not began(run_id, "fp32")
    os.utime(RunFolder(foreign).path / "process.json", (time.time() - 3600,) * 2)
    assert ended(run_id).state == "done"


@pytest.mark.slow
def test_a_worker_ends_by_itself_when_another_machine_cancels(fake, wait_for, ended, monkeypatch):
    run_id = jobs.submit(fake("fp32,int8", int8="hang"))
    wait_for(lambda: began(run_id, "int8"))
    with monkeypatch.context() as patch:
        patch.setattr(process, "host", lambda: "another-machine")
        assert RunFolder(run_id).other_host
        assert jobs.cancel(run_id).state == "cancelled"
    assert [row["status"] for row in jobs.rows(run_id)] == ["ok", "cancelled"]


@pytest.mark.slow
def test_a_worker_leaves_signs_of_life(fake, wait_for, monkeypatch):
    run_id = jobs.submit(fake("fp32", fp32="hang"))
    wait_for(lambda: began(run_id, "fp32"))
    folder = RunFolder(run_id)
    os.utime(folder.path / "process.json", (0, 0))
    wait_for(lambda: folder.silence() < 30)
    assert folder.read("process.json")["host"] == process.host()


def test_threads_that_look_at_once_take_no_worker_off_twice(monkeypatch):
    """Two tabs polled, and the second found the ended worker gone from the list: ValueError on the page."""
    errors = []

    class Ended:
        def poll(self):
            time.sleep(0.001)
            return 0

    def look():
        try:
            jobs._reap()
        except ValueError as error:
            errors.append(error)

    for _ in range(20):
        monkeypatch.setattr(jobs, "_started", [Ended() for _ in range(3)])
        threads = [threading.Thread(target=look) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert not errors and jobs._started == []


def test_stopped_is_no_failure_that_an_except_takes(fake, monkeypatch):
    """`except Exception` in the estimate swallowed the cancel."""

    def stop(*arguments, **options):
        raise worker.Stopped

    monkeypatch.setattr("qcore.jobs.kind_compare.Store.latest", stop)
    with pytest.raises(worker.Stopped):
        expected_seconds(fake("fp32").to_dict())
    assert not issubclass(worker.Stopped, Exception)


class OneTask:
    """A runner whose only task writes a row, and during which nothing is started."""

    def __init__(self, folder):
        self.folder = folder

    def estimate(self, course):
        return course.estimate()

    turn = contextlib.nullcontext

    def run(self, tasks, take):
        for number, task in enumerate(tasks):
            take(number, task)

    def child(self, task):
        self.folder.write_row(int(task), {"recipe": "fp32", "status": "ok", "error": None, "record": {}})
        yield {"event": "ended", "code": 0}


def test_a_signal_while_the_end_is_written_leaves_a_finished_run_done(fake, monkeypatch):
    """SIGTERM in the middle of `_end` turned a finished run into an interrupted one."""
    monkeypatch.setattr(jobs, "_start", lambda folder: None)
    run_id = jobs.submit(fake("fp32"))
    folder = RunFolder(run_id)
    keep_end = worker.keep_end

    def signalled(*arguments):
        os.kill(os.getpid(), signal.SIGTERM)
        keep_end(*arguments)

    monkeypatch.setattr(worker, "keep_end", signalled)
    before = signal.getsignal(signal.SIGTERM)
    try:
        worker.Worker(folder, OneTask(folder)).run()
    finally:
        signal.signal(signal.SIGTERM, before)
    assert jobs.status(run_id).state == "done"


def test_a_cancel_that_comes_too_late_leaves_done_as_it_is(fake, ended, monkeypatch):
    """`end` wrote "cancelled" over the "done" that had come between its two looks."""
    run_id = jobs.submit(fake("fp32"))
    seen = [replace(ended(run_id), state="running")]
    look = jobs.status
    monkeypatch.setattr(jobs, "status", lambda which: seen.pop() if seen else look(which))
    assert jobs.cancel(run_id).state == "done" and not seen
    assert RunFolder(run_id).read("status.json")["state"] == "done"
