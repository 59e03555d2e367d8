"""How much of the processor other processes took while a speed was measured.

    share = (busy time of the cores − idle rest − own time) / (capacity · wall time)

"Cores" are those that this process may run on. Their busy time includes what a hypervisor took, own time
includes child processes. Without a quota the capacity is the number of cores, and the idle rest is 0. Under
the quota of a control group the capacity is the quota. Processes of the same group take from it by using it
up, which is counted within the group. Processes outside of it take from it if they leave fewer cores than the
quota; the rest of the cores is idle for this process anyway.

The kernel counts busy time in ticks of 10 ms. Less than `RESOLUTION` seconds count as 0.
"""

import os
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import psutil

from qcore.base import cgroups, cpu

DISTURBED = 0.075  # share from which a figure counts as measured beside other work: 0.15 of two cores
RESOLUTION = 0.1
NOT_BUSY = ("idle", "iowait", "guest", "guest_nice")  # time of guests is part of "user" and "nice"


@dataclass(frozen=True)
class Times:
    """Seconds: of a monotonic clock, and of processor time used by everyone on these cores, by this process
    and its children, and by its control group (None without a quota)."""

    clock: float
    everyone: float
    own: float
    group: float | None = None

    @classmethod
    def now(cls, process: psutil.Process) -> "Times":
        """Return the times of `process`."""
        return cls(time.monotonic(), busy_seconds(), _own_seconds(process), cgroups.cpu_seconds())


class OtherWork:
    """A stopwatch, started when it is made, for the processor time of all processes but this one (or
    `process`) and its children.

    >>> others = OtherWork()
    >>> speed = time_something()
    >>> others.share()
    """

    def __init__(self, process: psutil.Process | None = None):
        self._process = process or psutil.Process()
        self._before = Times.now(self._process)

    def share(self) -> float:
        """Return the share of the capacity of this process that others took so far, from 0 to 1."""
        return share(self._before, Times.now(self._process), cpu.cores(), cpu.capacity())

    def cores(self) -> float:
        """Return the number of processors that others kept busy so far."""
        return self.share() * cpu.capacity()


def share(before: Times, after: Times, cores: int, capacity: float) -> float:
    """Return the share of `capacity` that others took between two times; see the equation above."""
    wall = after.clock - before.clock
    own = after.own - before.own
    others = after.everyone - before.everyone - own - (cores - capacity) * wall
    if before.group is not None and after.group is not None:
        others = max(others, after.group - before.group - own)
    return min(1.0, others / (capacity * wall)) if others >= RESOLUTION and wall > 0 else 0.0


def is_disturbed(share: float | None) -> bool:
    """Return whether a figure counts as measured beside other work. None means unknown: it was measured
    before shares were recorded."""
    return share is not None and share > DISTURBED


def share_of(record: Mapping[str, Any] | None) -> float | None:
    """Return the share in the record of a row; None for a row without a speed or of an earlier version."""
    return ((record or {}).get("throughput") or {}).get("others_share")


def busy_seconds() -> float:
    """Return the seconds that the cores of this process were not idle since the system started."""
    mine = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else None
    return sum(
        sum(times) - sum(getattr(times, name, 0.0) for name in NOT_BUSY)
        for number, times in enumerate(psutil.cpu_times(percpu=True))
        if mine is None or number in mine
    )


def _own_seconds(process: psutil.Process) -> float:
    """Return the processor seconds of `process` and of its children, ended or not; 0 once it has ended."""
    seconds = 0.0
    try:
        for each in (process, *process.children(recursive=True)):
            try:
                seconds += sum(each.cpu_times()[:4])
            except psutil.NoSuchProcess:
                continue
    except psutil.NoSuchProcess:
        pass
    return seconds
