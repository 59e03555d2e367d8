"""The share of other processes: the equation by hand, /proc/stat made by hand, and real children."""

import subprocess
import sys

import psutil
import pytest

from qcore.base import other_work
from qcore.base.other_work import DISTURBED, OtherWork, Times, is_disturbed, share, share_of

BEFORE = Times(100.0, 1000.0, 50.0, 80.0)


def after(wall: float, everyone: float, own: float, group: float | None = None) -> Times:
    """Return the times after `wall` seconds in which that much processor time was used."""
    return Times(
        BEFORE.clock + wall,
        BEFORE.everyone + everyone,
        BEFORE.own + own,
        None if group is None else 80.0 + group,
    )


@pytest.mark.parametrize(
    ("cores", "capacity", "then", "expected"),
    [
        (2, 2.0, after(10, 20, 20), 0.0),
        (2, 2.0, after(10, 20, 15), 0.25),
        (2, 2.0, after(10, 9, 10), 0.0),  # ticks are rounded
        (2, 2.0, after(1, 2, 1.95), 0.0),  # below the resolution
        (2, 2.0, after(0, 0, 0), 0.0),
        (1, 1.0, after(1, 5, 0), 1.0),
        (64, 2.0, after(10, 320, 20), 0.0),  # half of a large host is busy, and leaves the quota free
        (64, 2.0, after(10, 640, 10), 0.5),  # the host is full
        (64, 2.0, after(10, 320, 10, 15), 0.25),  # a neighbor in the group uses a quarter of the quota
        (2, 0.5, after(10, 5, 5, 5), 0.0),
        (2, 0.5, after(10, 7, 3, 5), 0.4),
    ],
)
def test_the_equation(cores, capacity, then, expected):
    assert share(BEFORE, then, cores, capacity) == pytest.approx(expected)


def test_a_stated_share_is_the_limit():
    assert DISTURBED == 0.075
    assert [is_disturbed(each) for each in (None, 0.0, 0.075, 0.076)] == [False, False, False, True]


def test_records_of_earlier_versions_have_no_share():
    assert [share_of(each) for each in (None, {}, {"throughput": {}}, {"throughput": None})] == [None] * 4
    assert share_of({"throughput": {"others_share": 0.2}}) == 0.2


STAT = """cpu  0 0 0 0 0 0 0 0 0 0
cpu0 {user} 100 50 9000 700 20 30 {steal} 40 10
cpu1 500 0 0 9000 0 0 0 0 0 0
intr 5
"""


def test_busy_time_is_that_of_the_own_cores_and_includes_stolen_time(tmp_path, monkeypatch):
    monkeypatch.setattr(psutil, "PROCFS_PATH", str(tmp_path))
    monkeypatch.setattr(other_work.os, "sched_getaffinity", lambda pid: {0})
    (tmp_path / "stat").write_text(STAT.format(user=1000, steal=0))
    before = other_work.busy_seconds()
    assert before == pytest.approx((1000 + 100 + 50 + 20 + 30) / 100)  # guests are part of user and nice
    (tmp_path / "stat").write_text(STAT.format(user=1100, steal=60))
    assert other_work.busy_seconds() - before == pytest.approx(1.6)
    monkeypatch.setattr(other_work.os, "sched_getaffinity", lambda pid: {0, 1})
    assert other_work.busy_seconds() - before == pytest.approx(6.6)


def test_time_of_children_is_own_time_while_they_run_and_after():
    work = (
        "import sys, time\nwhile time.process_time() < 0.2: pass\nprint('done', flush=True)\nsys.stdin.read()"
    )
    me = psutil.Process()
    before = Times.now(me).own
    with subprocess.Popen(
        [sys.executable, "-c", work], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as child:
        child.stdout.readline()
        running = Times.now(me).own - before
        child.stdin.close()
    ended = Times.now(me).own - before
    assert running >= 0.18 and ended >= 0.18  # user and system time each lose a tick of 10 ms


def test_a_process_that_has_ended_is_no_error():
    child = subprocess.Popen([sys.executable, "-c", ""])
    watch = OtherWork(psutil.Process(child.pid))
    child.wait()
    assert 0.0 <= watch.share() <= 1.0
