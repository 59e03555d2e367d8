import json
import os
import signal
import sqlite3
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing

import pytest

from qcore.base.errors import InputError
from qcore.jobs import jobs
from qcore.results import store as store_module
from qcore.results.folder import RunFolder
from qcore.results.store import SCHEMA_VERSION, Store, keep_end, keep_row


def row(recipe="int8", model="m", **figures):
    return {"recipe": recipe, "status": "ok", "error": None, "record": {"model": model}, **figures}


def run_folder(name="20260101-000000-000001", rows=2):
    folder = RunFolder(name, new=True)
    folder.write("spec.json", {"model": "m"})
    folder.write("status.json", {"state": "done", "created_at": 5.0})
    for position in range(rows):
        folder.write_row(position, row(f"r{position}"))
    return folder


def test_rows_come_back_in_order_and_replace_each_other():
    store = Store()
    store.put_row("a", 1, row("int4"))
    store.put_row("a", 0, row("fp32"))
    store.put_row("a", 1, row("int4", perplexity=2.5))
    store.put_row("b", 0, row("nf4"))
    assert [(r["recipe"], r.get("perplexity")) for r in store.rows("a")] == [("fp32", None), ("int4", 2.5)]
    store.delete("a")
    assert store.rows("a") == [] and len(store.rows("b")) == 1


def test_latest_is_newest_first_of_one_model_and_successful():
    store = Store()
    for i, name in enumerate("abc"):
        store.put_run(name, float(i), "done", {})
        store.put_row(name, 0, row(model="m" if name != "b" else "other"))
    store.put_row("c", 1, {**row(), "status": "failed"})
    assert [r["run_id"] for r in store.latest("m")] == ["c", "a"]
    assert [r["run_id"] for r in store.latest(limit=2)] == ["c", "b"]
    assert [r["run_id"] for r in store.runs()] == ["c", "b", "a"]


@pytest.mark.row("16")
def test_any_text_is_stored_without_loss_and_nan_becomes_null():
    text = "a\x00b \u202e \ud800 $x$ <b> \x1b[31m =1+1"
    store = Store()
    store.put_row("a", 0, row(error=text, perplexity=float("nan"), kl_mean=float("inf")))
    (found,) = store.rows("a")
    assert found["error"] == text and found["perplexity"] is None and found["kl_mean"] is None


@pytest.mark.row("41")
def test_fifty_threads_lose_nothing():
    Store()
    with ThreadPoolExecutor(50) as pool:
        list(pool.map(lambda i: [Store().put_row(f"run{i}", j, row(size=j)) for j in range(4)], range(50)))
    store = Store()
    assert all([r["size"] for r in store.rows(f"run{i}")] == [0, 1, 2, 3] for i in range(50))


@pytest.mark.row("41")
@pytest.mark.slow
def test_fifty_processes_lose_nothing(own_home):
    code = """
import sys
from qcore.results.store import Store
sys.stdin.read(1)
for j in range(3):
    Store().put_row(sys.argv[1], j, {"recipe": "r", "status": "ok", "size": j})
"""
    writers = [
        subprocess.Popen([sys.executable, "-c", code, f"run{i}"], stdin=subprocess.PIPE) for i in range(50)
    ]
    for writer in writers:
        writer.stdin.close()
    assert [writer.wait(120) for writer in writers] == [0] * 50
    store = Store()
    assert all([r["size"] for r in store.rows(f"run{i}")] == [0, 1, 2] for i in range(50))


@pytest.mark.row("32")
def test_a_writer_killed_half_way_leaves_the_old_row(own_home):
    Store().put_row("a", 0, row(size=1))
    code = f"""
import os, signal, sqlite3
db = sqlite3.connect({str(own_home / "qcore.db")!r})
db.execute("UPDATE rows SET row = '{{}}'")
os.kill(os.getpid(), signal.SIGKILL)
"""
    assert subprocess.run([sys.executable, "-c", code]).returncode == -9
    store = Store()
    assert store.rows("a")[0]["size"] == 1 and store.notice is None


@pytest.mark.row("36")
@pytest.mark.parametrize("damage", ["text", "middle", "header"])
def test_a_damaged_database_is_set_aside_and_rebuilt_from_the_folders(own_home, damage, caplog):
    folder = run_folder()
    store = Store()
    for i in range(60):
        store.put_row("old", i, row(padding="x" * 1000))
    path = own_home / "qcore.db"
    with closing(sqlite3.connect(path)) as db:
        db.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    data = path.read_bytes()
    broken = {
        "text": b"this is not a database at all" * 100,
        "middle": data[:8192] + os.urandom(len(data) - 8192),
        "header": b"\0" * 100 + data[100:],
    }[damage]
    path.write_bytes(broken)
    store = Store()
    assert "set aside" in store.notice and "1 runs" in store.notice and store.notice in caplog.text
    (aside,) = own_home.glob("qcore.db.damaged-*")
    assert aside.read_bytes() == broken
    assert [r["recipe"] for r in store.rows(folder.run_id)] == ["r0", "r1"]
    assert store.runs() == [{"run_id": folder.run_id, "created_at": 5.0, "state": "done"}]
    assert Store().notice == store.notice  # until somebody has seen it
    Store().clear_notice()
    assert Store().notice is None


def test_a_folder_that_cannot_be_made_is_one_sentence(own_home, monkeypatch):
    own_home.write_text("a file where the folder should be")
    with pytest.raises(InputError, match="set QCORE_HOME"):
        Store()
    own_home.unlink()


def test_an_empty_file_becomes_a_database(own_home):
    own_home.mkdir()
    (own_home / "qcore.db").write_bytes(b"")
    assert Store().rows("a") == []


def test_a_newer_schema_is_refused_and_left_alone(own_home):
    Store()
    with closing(sqlite3.connect(own_home / "qcore.db")) as db:
        db.execute(f"PRAGMA user_version = {SCHEMA_VERSION + 1}")
        db.commit()
    with pytest.raises(InputError, match="newer qcore"):
        Store()
    assert not list(own_home.glob("*.damaged-*"))


@pytest.mark.row("33")
def test_a_database_that_cannot_be_written_does_not_lose_the_result(own_home, caplog):
    folder = run_folder()
    (own_home / "qcore.db").mkdir()
    keep_row(folder, 0, row())
    keep_end(folder, {"state": "done", "created_at": 1.0})
    result = json.loads((folder.path / "result.json").read_text())
    assert len(result["rows"]) == 2 and result["state"] == "done" and "not in the database" in caplog.text


@pytest.mark.row("43")
def test_a_run_of_a_kind_that_is_unknown_here_is_listed():
    """One run of a newer version that was killed made the list of runs an error on every page."""
    folder = run_folder()
    folder.write("spec.json", {"kind": "dreaming", "model": "m"})
    folder.write("status.json", {"state": "running", "phase": "asleep", "created_at": 1.0})
    (found,) = jobs.list_runs()
    assert found.state == "interrupted" and found.kind == "dreaming"
    assert "while it was at: asleep; this version of qcore does not know its kind" in found.error


HOLD = """
import sqlite3, sys, time
from filelock import FileLock
if sys.argv[1] == "database":
    db = sqlite3.connect(sys.argv[2], isolation_level=None)
    db.execute("PRAGMA journal_mode = WAL")
    db.execute("BEGIN EXCLUSIVE")
else:
    lock = FileLock(sys.argv[2] + ".lock")
    lock.acquire()
print("held", flush=True)
time.sleep(60)
"""


@pytest.mark.row("F9")
@pytest.mark.parametrize("what", ["database", "lock file"])
def test_another_process_holds_the_database(what, own_home, monkeypatch, caplog):
    """A row waited for more than 90 seconds, and for a stopped process without end."""
    folder, path = run_folder(), own_home / "qcore.db"
    Store()
    monkeypatch.setattr(store_module, "BUSY_SECONDS", 0.3)
    monkeypatch.setattr(store_module, "_checked", {})
    command = [sys.executable, "-c", HOLD, what, str(path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as other:
        try:
            assert other.stdout.readline() == b"held\n"
            other.send_signal(signal.SIGSTOP)  # a stopped process keeps its locks
            began = time.monotonic()
            keep_row(folder, 0, row())
            keep_end(folder, {"state": "done", "created_at": 1.0})
            assert time.monotonic() - began < 5
            assert f"process {other.pid} (" in caplog.text.lower() and "not in the database" in caplog.text
            result = json.loads((folder.path / "result.json").read_text())
            assert [each["recipe"] for each in result["rows"]] == ["r0", "r1"]
        finally:
            other.kill()
    assert [each["recipe"] for each in Store().rows(folder.run_id)] == ["r0", "r1"]  # caught up


@pytest.mark.row("F10")
@pytest.mark.parametrize(
    "text", ['{"recipe": ', "[1, 2]", '"r0"', "7", "{}", '{"recipe": 3, "status": "ok"}', "\xff", ""]
)
def test_a_damaged_row_file_does_not_hide_the_others(text, caplog):
    folder = run_folder()
    (folder.path / "rows" / "00.json").write_text(text, encoding="latin-1")
    assert [r["recipe"] for r in folder.rows().values()] == ["r1"]
    assert "00.json" in caplog.text and "ignored" in caplog.text
    keep_end(folder, {"state": "done", "created_at": 1.0})
    assert [r["recipe"] for r in Store().rows(folder.run_id)] == ["r1"]


@pytest.mark.row("F10")
@pytest.mark.parametrize("name", ["5 copy.json", "01 (1).json", "x.json", "1.json", "-1.json"])
def test_a_file_beside_the_rows_is_named_and_left_out(name, caplog):
    folder = run_folder()
    (folder.path / "rows" / name).write_bytes((folder.path / "rows" / "00.json").read_bytes())
    assert list(folder.rows()) == [0, 1]
    assert name in caplog.text


@pytest.mark.row("F10")
@pytest.mark.parametrize("name", ["status.json", "spec.json", "process.json", "outcome.json", "history.json"])
def test_a_file_of_a_run_that_holds_a_list_does_no_harm(name):
    folder = run_folder()
    folder.write("status.json", {"state": "done", "created_at": 1.0})
    folder.write(name, [1, 2])
    assert jobs.status(folder.run_id).state == ("interrupted" if name == "status.json" else "done")
    assert len(jobs.rows(folder.run_id)) == 2 and jobs.outcome(folder.run_id) is None
    assert jobs.list_runs() and jobs.history(folder.run_id) is None


@pytest.mark.row("36")
@pytest.mark.parametrize("text", ["", "[1]", "{", "null", "5", b"\xff"], ids=repr)
def test_a_damaged_row_in_the_database_is_left_out(own_home, text, caplog):
    """Found by `python -m tests.fuzz database`."""
    store = Store()
    for position, name in enumerate(("fp32", "int8")):
        store.put_row("a", position, row(name))
    with closing(sqlite3.connect(store.path)) as db, db:
        db.execute("UPDATE rows SET row = ? WHERE position = 0", (text,))
    assert [found["recipe"] for found in store.rows("a")] == ["int8"]
    assert [found["recipe"] for found in store.latest("m")] == ["int8"]
    assert "is damaged and is left out" in caplog.text


@pytest.mark.row("36")
def test_a_database_whose_error_is_no_text_is_set_aside(own_home):
    """Found by `python -m tests.fuzz database`: SQLite quotes the bytes of a damaged schema."""
    path = Store().path
    with closing(sqlite3.connect(path)) as db:
        db.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    path.write_bytes(path.read_bytes().replace(b"TEXT PRIMARY KEY", b"TEXT \xccRIMARY KEY"))
    store = Store()
    assert store.runs() == [] and "could not be read" in store.notice
