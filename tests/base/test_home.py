"""The cache folder: folders in it are built completely or not at all, and once."""

import os
import subprocess
import sys
import threading
from pathlib import Path
from types import SimpleNamespace

import pytest

from qcore.base.errors import UnavailableError
from qcore.base.home import build_folder, check_space, home


def fill(folder):
    (folder / "a").write_text("1")


def test_where_it_is(monkeypatch, tmp_path):
    monkeypatch.setenv("QCORE_HOME", str(tmp_path / "x"))
    assert home() == tmp_path / "x"
    monkeypatch.setenv("QCORE_HOME", "~/y")
    assert home() == Path.home() / "y"
    monkeypatch.delenv("QCORE_HOME")
    assert home() == Path.home() / ".cache" / "qcore"


def test_a_folder_is_built_once(tmp_path):
    calls = []
    for _ in range(2):
        assert (
            build_folder(tmp_path / "models" / "m", lambda folder: calls.append(fill(folder)))
            == tmp_path / "models" / "m"
        )
    assert len(calls) == 1
    assert (tmp_path / "models" / "m" / "a").read_text() == "1"


def test_a_failed_build_leaves_nothing(tmp_path):
    def fail(folder):
        fill(folder)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        build_folder(tmp_path / "m", fail)
    assert [path.name for path in tmp_path.iterdir() if path.suffix != ".lock"] == []
    assert build_folder(tmp_path / "m", fill).is_dir()


@pytest.mark.row("31")
def test_what_a_killed_process_left_behind_is_cleared(tmp_path):
    code = """
import os, signal, sys
from pathlib import Path
from qcore.base.home import build_folder
def die(folder):
    (folder / "half").write_text("x")
    os.kill(os.getpid(), signal.SIGKILL)
build_folder(Path(sys.argv[1]), die)
"""
    killed = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "m")], cwd=Path(__file__).resolve().parents[2]
    )
    assert killed.returncode == -9
    assert not (tmp_path / "m").exists()
    assert any(".partial-" in path.name for path in tmp_path.iterdir())
    build_folder(tmp_path / "m", fill)
    assert sorted(path.name for path in tmp_path.iterdir()) == [".m.lock", "m"]


def test_two_at_once_build_it_once(tmp_path):
    started, calls, waited = threading.Event(), [], []

    def build(folder):
        calls.append(1)
        started.set()
        fill(folder)

    def slow(folder):
        build(folder)
        assert second_waits.wait(10)

    second_waits = threading.Event()

    def note(done, total, what):
        waited.append(what)
        second_waits.set()

    first = threading.Thread(target=build_folder, args=(tmp_path / "m", slow))
    first.start()
    assert started.wait(10)
    build_folder(tmp_path / "m", build, progress=note)
    first.join()
    assert calls == [1]
    assert waited == ["waiting for another process to prepare m"]


@pytest.mark.row("33")
def test_a_folder_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("x")
    with pytest.raises(UnavailableError, match="cannot be written.*QCORE_HOME"):
        build_folder(tmp_path / "file" / "m", fill)


@pytest.mark.row("33")
def test_a_disk_that_fills_up_while_building(tmp_path):
    def full(folder):
        fill(folder)
        raise OSError(28, os.strerror(28))

    with pytest.raises(UnavailableError, match="No space left on device"):
        build_folder(tmp_path / "m", full)
    assert not (tmp_path / "m").exists()


@pytest.mark.row("33")
def test_space_is_checked_ahead(tmp_path, monkeypatch):
    check_space(tmp_path / "not" / "there" / "yet", 1000, "This")
    monkeypatch.setattr("shutil.disk_usage", lambda path: SimpleNamespace(free=10**9))
    check_space(tmp_path, 9 * 10**8, "This")
    with pytest.raises(UnavailableError, match="This needs 1.0 GB of disk, but only 1.0 GB are free"):
        check_space(tmp_path, 99 * 10**7, "This")
