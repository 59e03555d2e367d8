import json
import os
import signal
import threading
import time
from dataclasses import replace
from pathlib import Path

import psutil
import pytest
import samples

from qcore import __version__
from qcore.base import process
from qcore.base.errors import InputError
from qcore.jobs import jobs
from qcore.jobs.kind import Context
from qcore.jobs.kind_compare import Comparison
from qcore.recipes.spec import RunSpec
from qcore.results.folder import RunFolder
from qcore.results.store import Store
from qcore.verbs import compare


def pid_gone(pid: int) -> bool:
    """Whether the process has ended (a zombie has)."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except FileNotFoundError:
        return True


def states(status):
    return [recipe["state"] for recipe in status.recipes]


def began(run_id, name):
    """The pid of the stand-in for a recipe once it runs."""
    path = RunFolder(run_id).path / f"began-{name}"
    return int(path.read_text()) if path.exists() and path.read_text() else None


def test_a_run_ends_with_a_row_for_each_recipe(fake, ended):
    run_id = jobs.submit(fake("int8,fp32,int4"))
    status = ended(run_id)
    assert (status.state, status.error, status.fraction, status.eta_s) == ("done", None, 1.0, None)
    assert states(status) == ["ok"] * 3
    assert [row["recipe"] for row in jobs.rows(run_id)] == [
        "int8",
        "fp32",
        "int4",
    ]  # in the requested order, though fp32 ran first
    result = json.loads((RunFolder(run_id).path / "result.json").read_text())
    assert result["rows"] == jobs.rows(run_id) == Store().rows(run_id)
    assert result["spec"]["model"] == "fake"
    assert status.created_at <= status.started_at <= status.finished_at


def test_without_fp32_the_baseline_runs_first_and_has_no_row(fake, ended):
    run_id = jobs.submit(fake("int8,int4"))
    assert ended(run_id).state == "done"
    assert [row["recipe"] for row in jobs.rows(run_id)] == ["int8", "int4"]
    log = RunFolder(run_id).log.read_text()
    assert log.index("baseline does ok") < log.index("int8 does ok") < log.index("int4 does ok")


@pytest.mark.row("34")
@pytest.mark.parametrize(
    ("plan", "sentence"),
    [
        (
            "kill",
            "The recipe's process was killed by signal 9 (probably out of memory) while loading the model.",
        ),
        (
            "exit",
            "The recipe's process ended with exit code 3 while loading the model; "
            "the run's log has the details.",
        ),
        ("silent", "The recipe's process ended without a result; the run's log may say why."),
        (
            "garbage",
            "The recipe's process was killed by signal 11 (a crash in native code) while loading the model.",
        ),
        ("RunError", "int8 cannot be done."),
    ],
)
def test_a_recipe_that_dies_is_a_row_and_the_others_go_on(fake, ended, plan, sentence):
    run_id = jobs.submit(fake("fp32,int8,int4", int8=plan))
    status = ended(run_id)
    rows = jobs.rows(run_id)
    assert status.state == "done" and states(status) == ["ok", "failed", "ok"]
    assert rows[1]["error"] == sentence and rows[1]["perplexity"] is None
    assert rows[1]["record"]["recipe"]["name"] == "int8" and rows[1]["record"]["failed_while"] == "load"
    assert [row["status"] for row in Store().rows(run_id)] == ["ok", "failed", "ok"]


def test_a_run_of_which_nothing_succeeded_has_failed(fake, ended):
    status = ended(jobs.submit(fake("int8", int8="kill")))
    assert status.state == "failed" and "killed by signal 9" in status.error


def test_with_a_quantized_cache_fp32_is_compared_with_the_baseline_like_any_other(fake, ended):
    run_id = jobs.submit(replace(fake("int8,fp32"), kv="int8"))
    assert ended(run_id).state == "done"
    log = RunFolder(run_id).log.read_text()
    assert log.index("baseline does ok") < log.index("int8 does ok") < log.index("fp32 does ok")
    assert [row["recipe"] for row in jobs.rows(run_id)] == ["int8", "fp32"]


@pytest.mark.parametrize("recipes", ["fp32,int8", "int8"], ids=["fp32 asked for", "baseline alone"])
def test_bad_input_in_the_baseline_ends_the_run(fake, ended, recipes):
    run_id = jobs.submit(fake(recipes, fp32="InputError", baseline="InputError"))
    status = ended(run_id)
    assert (status.state, status.error_kind) == ("failed", "InputError")
    assert status.error == ("fp32 cannot be done." if "fp32" in recipes else "baseline cannot be done.")
    assert jobs.rows(run_id)[-1]["error"] == f"Not started, because the baseline failed: {status.error}"
    assert began(run_id, "int8") is None


@pytest.mark.parametrize("plan", ["TooLargeError", "kill"])
def test_recipes_run_without_a_baseline_that_died(fake, ended, plan):
    """A model may be too large for fp32 and not for int4."""
    run_id = jobs.submit(fake("int8", baseline=plan))
    status = ended(run_id)
    assert status.state == "done" and [row["status"] for row in jobs.rows(run_id)] == ["ok"]
    assert status.error.startswith("The baseline failed, so KL and top-1 agreement are missing: ")


def test_cancel_ends_the_child_and_keeps_finished_rows(fake, wait_for):
    run_id = jobs.submit(fake("fp32,int8,int4", int8="hang"))
    child = wait_for(lambda: began(run_id, "int8"))
    running = wait_for(lambda: (status := jobs.status(run_id)).phase == "int8: loading the model" and status)
    assert running.state == "running" and states(running) == ["ok", "running", "waiting"]
    assert 0 < running.fraction < 1 and running.eta_s > 0
    status = jobs.cancel(run_id)
    assert status.state == "cancelled" and states(status) == ["ok", "cancelled", "cancelled"]
    assert [row["status"] for row in jobs.rows(run_id)] == ["ok", "cancelled", "cancelled"]
    assert wait_for(lambda: pid_gone(child))
    assert jobs.cancel(run_id).state == "cancelled"  # again: nothing happens


@pytest.mark.parametrize(
    "plan", [{"int8": "deaf"}, {"int8": "deaf", "worker": "deaf"}], ids=["child", "worker"]
)
def test_cancel_kills_what_does_not_listen(fake, wait_for, monkeypatch, plan):
    monkeypatch.setattr(jobs, "PATIENCE_SECONDS", 0.5)
    run_id = jobs.submit(fake("fp32,int8", **plan))
    child = wait_for(lambda: began(run_id, "int8"))
    assert jobs.cancel(run_id).state == "cancelled"
    assert [row["status"] for row in jobs.rows(run_id)][0] == "ok"
    assert wait_for(lambda: pid_gone(child))


@pytest.mark.row("31")
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM], ids=["kill", "term"])
def test_a_run_killed_from_outside_is_interrupted_and_leaves_nothing_behind(fake, wait_for, ended, number):
    run_id = jobs.submit(fake("fp32,int8", int8="hang"))
    child = wait_for(lambda: began(run_id, "int8"))
    wait_for(lambda: jobs.status(run_id).phase == "int8: loading the model")
    os.kill(RunFolder(run_id).process().pid, number)  # the worker alone, not its group
    status = ended(run_id)
    assert status.state == "interrupted" and states(status) == ["ok", "interrupted"]
    assert "int8: loading the model" in status.error and "1 finished row" in status.error
    assert "int8 does hang" in status.log_tail
    assert [row["recipe"] for row in jobs.rows(run_id)] == ["fp32"]
    assert [row["recipe"] for row in Store().rows(run_id)] == ["fp32"]
    assert wait_for(lambda: pid_gone(child)), "the child outlived its worker"


@pytest.mark.row("37")
def test_runs_queue_in_the_order_of_submission(fake, wait_for, ended):
    first = jobs.submit(fake("fp32", model="a", fp32="hang"))
    wait_for(lambda: began(first, "fp32"))
    others = [jobs.submit(fake("fp32", model=model)) for model in "bcd"]
    assert first < others[0] < others[1] < others[2]
    waiting = [jobs.status(run_id) for run_id in others]
    assert [status.place for status in waiting] == [1, 2, 3] and {status.state for status in waiting} == {
        "queued"
    }
    assert [status.phase for status in waiting][:2] == [
        "Waiting for the run before it",
        "Waiting for 2 runs before it",
    ]
    assert jobs.cancel(others[1]).state == "cancelled"  # a queued one
    assert jobs.status(others[2]).place == 2
    jobs.cancel(first)
    b, d = ended(others[0]), ended(others[2])
    assert b.state == d.state == "done" and b.finished_at <= d.started_at
    assert [status.run_id for status in jobs.list_runs()] == [*reversed(others), first]


@pytest.mark.row("31")
def test_the_next_run_starts_when_the_one_before_is_killed(fake, wait_for, ended):
    first = jobs.submit(fake("fp32", model="a", fp32="hang"))
    wait_for(lambda: began(first, "fp32"))
    second = jobs.submit(fake("fp32", model="b"))
    os.killpg(RunFolder(first).process().pid, signal.SIGKILL)
    assert ended(second).state == "done"
    assert jobs.status(first).state == "interrupted"


@pytest.mark.row("37", "F6")
def test_fifty_clicks_at_once_are_one_run(fake):
    spec, seen = fake("fp32", fp32="hang"), []
    clicks = [threading.Thread(target=lambda: seen.append(jobs.submit(spec))) for _ in range(50)]
    for click in clicks:
        click.start()
    for click in clicks:
        click.join()
    assert len(seen) == 50 and len(set(seen)) == 1 == len(jobs.list_runs())


@pytest.mark.row("37", "F6")
def test_clicks_whose_checks_take_long_are_one_run(fake, ended, monkeypatch):
    """Of twenty clicks on Start, fifteen were accepted: their checks ended more than two seconds apart."""
    clicked = time.time()
    spec = fake("fp32", fp32="hang")
    first = jobs.submit(spec, asked=clicked)
    monkeypatch.setattr(jobs, "DOUBLE_CLICK_SECONDS", 0)  # as if the time had passed
    assert {jobs.submit(spec, asked=clicked) for _ in range(20)} == {first} and len(jobs.list_runs()) == 1
    jobs.cancel(first)
    again = jobs.submit(spec, asked=clicked)
    assert again != first  # what was cancelled is not the answer to a click
    assert jobs.submit(spec, asked=time.time() + 1) not in (first, again)


def test_the_same_request_is_a_new_run_once_the_first_ended_or_some_time_passed(fake, ended, monkeypatch):
    spec = fake("fp32")
    first = jobs.submit(spec)
    ended(first)
    second = jobs.submit(fake("fp32", model="slow", fp32="hang"))
    assert second != first and jobs.submit(spec) not in (first, second)
    monkeypatch.setattr(jobs, "DOUBLE_CLICK_SECONDS", 0)
    assert jobs.submit(fake("fp32", model="slow", fp32="hang")) != second


@pytest.mark.slow
def test_repeat_runs_the_same_request_again(fake, ended):
    first = jobs.submit(fake("fp32,int8"))
    ended(first)
    second = jobs.repeat(first)
    assert second != first and ended(second).request == jobs.status(first).request


def test_delete_removes_folder_and_rows_but_not_while_it_runs(fake, wait_for):
    run_id = jobs.submit(fake("fp32,int8", int8="hang"))
    wait_for(lambda: began(run_id, "int8"))
    with pytest.raises(InputError, match="cancel it first"):
        jobs.delete(run_id)
    jobs.cancel(run_id)
    assert Store().rows(run_id)
    jobs.delete(run_id)
    assert not Store().rows(run_id) and not Store().runs() and jobs.list_runs() == []


def test_follow_yields_changes_until_the_end(fake):
    seen = list(jobs.follow(jobs.submit(fake("fp32,int8", int8="slow")), interval=0.05))
    assert seen[-1].state == "done" and not any(status.state == "done" for status in seen[:-1])
    fractions = [status.fraction for status in seen]
    assert fractions == sorted(fractions)
    assert all(before != after for before, after in zip(seen, seen[1:], strict=False))


@pytest.mark.parametrize("run_id", ["nothing", "../../etc", "20200101-000000-000000", "", "a" * 10000])
@pytest.mark.parametrize("verb", [jobs.status, jobs.cancel, jobs.rows, jobs.delete, jobs.repeat])
def test_an_unknown_run_is_one_sentence(verb, run_id):
    with pytest.raises(InputError) as error:
        verb(run_id)
    assert len(str(error.value)) < 200


def test_a_process_that_took_over_the_pid_is_not_ours(fake, ended):
    """The pid in an old record may now belong to another process, which is neither taken for the run nor
    signalled."""
    run_id = jobs.submit(fake("fp32"))
    ended(run_id)
    folder = RunFolder(run_id)
    me = process.identity(os.getpid())
    folder.write("process.json", {**me, "ticks": me["ticks"] - 6000})
    folder.write("status.json", {**folder.read("status.json"), "state": "running"})
    assert folder.process() is None
    assert jobs.cancel(run_id).state == "interrupted"
    folder.write("process.json", me)
    assert folder.process().pid == os.getpid()


@pytest.mark.parametrize(
    "record",
    [
        None,
        {},
        {"pid": "x"},
        {"pid": 1},
        {"pid": 2**22 + 7, "process_started": 1.0},
        {"pid": -1, "process_started": 1},
    ],
)
def test_records_without_a_living_process(record):
    assert process.living(record) is None


@pytest.mark.row("F11")
@pytest.mark.parametrize("hours", [-1, 1])
def test_a_run_goes_on_when_the_clock_is_set(fake, wait_for, monkeypatch, hours):
    run_id = jobs.submit(fake("fp32", fp32="hang"))
    wait_for(lambda: began(run_id, "fp32"))
    now, started = time.time, psutil.Process.create_time
    monkeypatch.setattr(time, "time", lambda: now() + 3600 * hours)
    # psutil adds the time since the boot to the time of the boot, which moves with the clock
    monkeypatch.setattr(psutil.Process, "create_time", lambda self: started(self) + 3600 * hours)
    assert jobs.status(run_id).state == "running"
    second = jobs.submit(fake("fp32", model="other"))
    assert jobs.status(run_id).state == "running"
    assert jobs.cancel(run_id).state == "cancelled" and jobs.cancel(second).state == "cancelled"


def test_a_process_of_an_earlier_record_is_known_by_the_second_of_its_start():
    me = process.identity(os.getpid())
    earlier = {"pid": me["pid"], "process_started": me["process_started"] + 1}
    assert process.living(earlier).pid == os.getpid()
    assert process.living(earlier | {"process_started": me["process_started"] - 60}) is None


def test_a_zombie_is_dead():
    pid = os.fork()
    if pid == 0:
        os._exit(0)
    identity = None
    while psutil.Process(pid).status() != psutil.STATUS_ZOMBIE:
        time.sleep(0.01)
    identity = process.identity(pid)
    assert process.living(identity) is None
    os.waitpid(pid, 0)


def test_a_damaged_status_is_told(fake, ended):
    run_id = jobs.submit(fake("fp32"))
    ended(run_id)
    (RunFolder(run_id).path / "status.json").write_text('{"state": "run')
    status = jobs.status(run_id)
    assert status.state == "interrupted" and "damaged" in status.error


@pytest.mark.row("33")
def test_a_cache_folder_that_cannot_be_made_is_one_sentence(fake, monkeypatch, tmp_path):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("QCORE_HOME", str(tmp_path / "file" / "home"))
    with pytest.raises(InputError, match="set QCORE_HOME"):
        jobs.submit(fake("fp32"))
    monkeypatch.setenv("QCORE_HOME", str(tmp_path / "home"))


def test_the_log_tail_is_cut_at_a_line(tmp_path, fake, ended):
    run_id = jobs.submit(fake("fp32"))
    ended(run_id)
    folder = RunFolder(run_id)
    folder.log.write_text("first line\n" + "x" * 10 + "\n" + "last\n")
    assert folder.log_tail(12) == "last\n"
    assert Path(folder.log).exists()


@pytest.mark.slow
def test_compare_waits_and_returns_rows_or_says_what_is_wrong(fake, monkeypatch):
    from qcore.verbs import checks

    monkeypatch.setattr(checks, "check_run", lambda spec: (spec, None))
    rows = jobs.compare("m", "fp32,int8", text='{"int8": "kill"}')
    assert [row["status"] for row in rows] == ["ok", "failed"]
    with pytest.raises(InputError, match="fp32 cannot be done"):
        jobs.compare("m", ["fp32"], text='{"fp32": "InputError"}')
    with pytest.raises(InputError, match="Unknown option 'token'. Did you mean tokens"):
        jobs.compare("m", ["fp32"], token=5)


@pytest.mark.row("31")
def test_a_repeated_run_takes_over_what_an_interrupted_one_finished(fake, wait_for, ended, monkeypatch):
    """Measured rows of a run that was killed had to be measured again."""
    run_id = jobs.submit(fake("fp32,int8,int4", int4="hang"))
    wait_for(lambda: began(run_id, "int4"))
    folder = RunFolder(run_id)
    for position, row in folder.rows().items():
        folder.write_row(position, row | {"record": {"model": "fake", "qcore": __version__, "digest": "d"}})
    (folder.path / "reference.safetensors").write_bytes(b"megabytes")
    os.kill(folder.process().pid, signal.SIGKILL)
    status = ended(run_id)
    assert status.state == "interrupted" and "a repeated run takes them over" in status.error
    assert not (folder.path / "reference.safetensors").exists()
    again = RunFolder(jobs.repeat(run_id))
    rows = again.rows()
    assert [row["recipe"] for row in rows.values()] == ["fp32", "int8"]
    assert rows[1]["record"]["notes"] == [f"Taken over from the run {run_id}, which was interrupted."]
    spec = RunSpec.from_dict(again.read("spec.json"))
    measured = []
    monkeypatch.setattr(compare, "run_recipe", lambda spec, recipe, *rest: measured.append(recipe.name) or {})
    for digest, expected in (("d", ["fp32", "int4"]), ("another model", ["fp32", "int8", "int4"])):
        again.write("baseline.json", {"digest": digest})
        for position, row in rows.items():
            again.write_row(position, row)
        (again.path / "rows" / "02.json").unlink(missing_ok=True)
        measured.clear()
        for task in "012":
            Comparison().run(spec, Context(again, task, print))
        assert measured == expected
    assert folder.rows().keys() == {0, 1}, "the interrupted run keeps its rows"


@pytest.mark.row("F15")
def test_an_ended_run_is_read_again_only_after_a_change(own_home, monkeypatch):
    for second in range(3):
        samples.write_run(own_home, [samples.row("fp32")], second=second)
    first, read = jobs.list_runs(), []
    monkeypatch.setattr(RunFolder, "read", lambda self, name: read.append(self.run_id))
    assert jobs.list_runs() == first and not read
    monkeypatch.undo()
    monkeypatch.setenv("QCORE_HOME", str(own_home))
    folder = RunFolder(first[1].run_id)
    folder.write("status.json", folder.read("status.json") | {"state": "cancelled"})
    (RunFolder(first[2].run_id).path / "spec.json").unlink()
    assert [status.state for status in jobs.list_runs()] == ["done", "cancelled"]
