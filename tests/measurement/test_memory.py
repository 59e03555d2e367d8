"""Peak memory against an allocation of known size, in a fresh process; control groups against files made by
hand."""

import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest

from qcore.base.apart import apart
from qcore.measurement import memory
from qcore.measurement.memory import PeakMemory, available_bytes, total_bytes

MIB = 1 << 20
ALLOCATE = """
import json, mmap, sys, time
from qcore.measurement.memory import PeakMemory

def touch(buffer):
    for place in range(0, len(buffer), 4096):
        buffer[place] = 1

with PeakMemory() as outer:
    with PeakMemory() as empty:
        pass
    with PeakMemory() as heap:
        block = bytearray(256 << 20)
        touch(block)
        time.sleep(0.2)  # the split is sampled
        del block
    with PeakMemory() as after:
        pass
    with PeakMemory() as mapped, open(sys.argv[1], "rb") as file:
        view = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        total = sum(view[place] for place in range(0, len(view), 4096))
        time.sleep(0.2)
        view.close()
names = ("peak_bytes", "anonymous_bytes", "file_bytes", "start_bytes")
trackers = {key: value for key, value in locals().items() if isinstance(value, PeakMemory)}
print(json.dumps({key: {name: getattr(value, name) for name in names} for key, value in trackers.items()}))
"""


@pytest.fixture(scope="module")
def figures(tmp_path_factory) -> dict:
    file = tmp_path_factory.mktemp("mapped") / "file"
    file.write_bytes(bytes(256 * MIB))
    done = subprocess.run(
        [sys.executable, "-c", ALLOCATE, str(file)], capture_output=True, text=True, check=True
    )
    file.unlink()
    return json.loads(done.stdout)


def near(mib: float):
    return pytest.approx(mib * MIB, rel=0.05)


def test_256_mib_on_the_heap_are_seen(figures):
    assert figures["heap"]["peak_bytes"] - figures["empty"]["peak_bytes"] == near(256)
    assert figures["heap"]["anonymous_bytes"] - figures["empty"]["anonymous_bytes"] == near(256)
    assert figures["heap"]["file_bytes"] - figures["empty"]["file_bytes"] < 13 * MIB


def test_256_mib_of_a_mapped_file_are_told_apart(figures):
    assert figures["mapped"]["peak_bytes"] - figures["empty"]["peak_bytes"] == near(256)
    assert figures["mapped"]["file_bytes"] - figures["empty"]["file_bytes"] == near(256)
    assert figures["mapped"]["anonymous_bytes"] - figures["empty"]["anonymous_bytes"] < 13 * MIB


def test_what_was_freed_before_does_not_count_and_an_outer_measurement_keeps_its_peak(figures):
    assert figures["after"]["peak_bytes"] < figures["heap"]["peak_bytes"] - 200 * MIB
    assert figures["outer"]["peak_bytes"] >= figures["heap"]["peak_bytes"] - MIB


def test_entering_leaves_no_thread_behind_and_errors_pass_through():
    import threading

    before = threading.active_count()
    with pytest.raises(KeyError), PeakMemory() as peak:
        raise KeyError
    assert (
        threading.active_count() == before
        and peak.peak_bytes >= peak.start_bytes > 0
        and not PeakMemory._active
    )


def test_without_proc_the_figure_is_sampled(monkeypatch, tmp_path):
    monkeypatch.setattr(memory, "PROC", tmp_path)
    with PeakMemory() as peak:
        pass
    assert (
        peak.peak_bytes == pytest.approx(psutil.Process().memory_info().rss, rel=0.2)
        and peak.anonymous_bytes == 0
    )


def group(folder: Path, version: int, limit: str, usage: int, inactive: int) -> None:
    names = (
        ("memory.max", "memory.current", "inactive_file")
        if version == 2
        else ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
    )
    folder.mkdir(parents=True, exist_ok=True)
    (folder / names[0]).write_text(f"{limit}\n")
    (folder / names[1]).write_text(f"{usage}\n")
    (folder / "memory.stat").write_text(f"anon 5\n{names[2]} {inactive}\n")


def groups(root: Path, membership: str) -> list[tuple[int, int]]:
    (root / "membership").write_text(membership)
    return memory._groups(root, root / "membership")


def test_control_groups_of_version_2(tmp_path):
    group(tmp_path / "a" / "b", 2, "max", 900, 0)
    group(tmp_path / "a", 2, "1000", 700, 300)
    assert groups(tmp_path, "0::/a/b\n") == [(1000, 400)]
    assert groups(tmp_path, "0::/elsewhere\n") == []


def test_inside_a_container_the_root_is_the_group(tmp_path):
    group(tmp_path, 2, "5000", 100, 0)
    assert groups(tmp_path, "0::/../../outside\n") == [(5000, 100)] == groups(tmp_path, "0::/\n")


def test_control_groups_of_version_1(tmp_path):
    group(tmp_path / "memory" / "job", 1, "2000", 1500, 500)
    group(tmp_path / "memory", 1, str(0x7FFFFFFFFFFFF000), 9999, 0)
    assert groups(tmp_path, "4:memory:/job\n3:cpuset:/\n0::/\n") == [(2000, 1000)]


def test_no_control_groups_at_all(tmp_path):
    assert memory._groups(tmp_path, tmp_path / "missing") == []


@pytest.mark.row("46")
def test_a_process_that_takes_nearly_all_memory_is_exhausting(monkeypatch):
    """Pages of files do not count: a group is full of them most of the time."""
    left = SimpleNamespace(total=1000, available=1000)
    monkeypatch.setattr(memory.psutil, "virtual_memory", lambda: left)
    monkeypatch.setattr(memory, "_groups", lambda kinds: [(1000, 960 if len(kinds) == 1 else 900)])
    monkeypatch.setattr(memory, "_resident", lambda: (800, 600))
    assert not memory.is_exhausting(1000)
    monkeypatch.setattr(memory, "_resident", lambda: (800, 200))
    assert not memory.is_exhausting(1000)
    left.available = 40
    assert memory.is_exhausting(1000)
    monkeypatch.setattr(memory, "_resident", lambda: (800, 600))
    assert not memory.is_exhausting(1000)


def test_pages_of_files_in_use_can_be_dropped(tmp_path):
    group(tmp_path, 2, "5000", 4000, 100)
    with (tmp_path / "memory.stat").open("a") as stat:
        stat.write("active_file 900\n")
    (tmp_path / "membership").write_text("0::/\n")
    found = memory._groups(tmp_path, tmp_path / "membership", ("inactive_file", "active_file"))
    assert found == [(5000, 3000)]


def test_the_tightest_limit_counts(monkeypatch):
    monkeypatch.setattr(memory, "_groups", lambda: [(3 * MIB, MIB), (2 * MIB, 0)])
    assert (total_bytes(), available_bytes()) == (2 * MIB, 2 * MIB)
    monkeypatch.setattr(memory, "_groups", lambda: [(MIB, 2 * MIB)])
    assert available_bytes() == 0
    monkeypatch.setattr(memory, "_groups", list)
    assert total_bytes() == psutil.virtual_memory().total


def test_a_fork_counts_the_libraries_of_the_process_it_comes_from():
    server = os.getpid()

    def forked():
        before = PeakMemory()
        with before:
            pass
        memory.count_libraries_of(server)
        after = PeakMemory()
        with after:
            pass
        return json.dumps([after.peak_bytes - before.peak_bytes, after.file_bytes - before.file_bytes])

    peak, mapped = json.loads(apart(forked, 20, 2 << 30))
    assert 0 < mapped <= psutil.Process(server).memory_info().shared
    assert peak > 0.5 * mapped
