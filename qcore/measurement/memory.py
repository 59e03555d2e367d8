"""Memory use and memory limits of this process.

Peak memory is the kernel's own high-water mark of resident pages, reset on entry, so nothing between two
samples is missed. Pages that map a file (weights read through a memory map, libraries) can be dropped and
read again, heap pages cannot, so the two are reported separately; that split is sampled. Measure in a fresh
process: memory freed by an earlier model may be reused and then does not show.
"""

import contextlib
import ctypes
import os
import threading
import time
from collections.abc import Callable
from pathlib import Path

import psutil

from qcore.base import cgroups

PROC = Path("/proc/self")
PAGE = os.sysconf("SC_PAGE_SIZE") if hasattr(os, "sysconf") else 4096
INTERVAL = 0.01  # seconds between samples; one takes about 20 µs, so a speed measured meanwhile loses 0.2 %

WATCH_SECONDS = 0.1  # memory fills with up to 1 GB/s, and 0.1 GB is a twentieth of a small container


_libraries_elsewhere = 0  # see `count_libraries_of`


def count_libraries_of(pid: int) -> None:
    """Count the pages of libraries that the process `pid`, from which this one was just forked, has mapped.

    A fork maps such a page when it reads it. Without this its figures would be smaller than those of a
    process that imported the libraries itself, by 78 MB of 352 MB (torch 2.13, 2026-11-30).
    """
    global _libraries_elsewhere
    with contextlib.suppress(psutil.Error, AttributeError):  # AttributeError: not Linux
        _libraries_elsewhere = max(
            0, psutil.Process(pid).memory_info().shared - psutil.Process().memory_info().shared
        )


class PeakMemory:
    """Context manager. After (or inside) it, `peak_bytes` is the peak of resident bytes; `anonymous_bytes`
    and `file_bytes` are the peaks of each kind, possibly at different moments. All three include the bytes
    resident on entry (`start_bytes`).

    >>> with PeakMemory() as memory:
    ...     model = load()
    >>> memory.peak_bytes - memory.start_bytes

    The high-water mark exists on Linux; elsewhere `peak_bytes` is sampled, and all pages count as
    `file_bytes`.
    """

    _active: list["PeakMemory"] = []  # VmHWM is per process: nested trackers record it before it is reset
    _lock = threading.Lock()

    def __init__(self):
        self.start_bytes = self.peak_bytes = self.anonymous_bytes = self.file_bytes = 0
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None

    def __enter__(self) -> "PeakMemory":
        with self._lock:
            for other in self._active:
                other._note(mark=True)
            _reset_mark()
            self._active.append(self)
        self._note(mark=False)
        self.start_bytes = self.peak_bytes
        self._thread = threading.Thread(target=self._watch, name="peak-memory", daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *exception) -> None:
        self._stop.set()
        if self._thread is not None:
            self._thread.join()
        with self._lock:
            self._note(mark=True)
            self._active.remove(self)

    def _watch(self) -> None:
        while not self._stop.wait(INTERVAL):
            self._note(mark=False)

    def _note(self, mark: bool) -> None:
        resident, mapped = _resident()
        self.peak_bytes = max(self.peak_bytes, resident, _high_water() if mark and _MARK_RESETS else 0)
        self.anonymous_bytes = max(self.anonymous_bytes, resident - mapped)
        self.file_bytes = max(self.file_bytes, mapped)


def give_back() -> None:
    """Return freed memory of the heap to the system: glibc keeps it until the heap's last piece is free."""
    with contextlib.suppress(OSError, AttributeError):  # another C library
        ctypes.CDLL(None).malloc_trim(0)


def _resident() -> tuple[int, int]:
    """Return the resident bytes of this process, and how many of them map files or are shared. Without
    Linux's /proc the second equals the first."""
    try:
        _, resident, mapped, *_ = map(int, (PROC / "statm").read_bytes().split())
    except OSError:
        resident = psutil.Process().memory_info().rss
        return resident, resident
    return resident * PAGE + _libraries_elsewhere, mapped * PAGE + _libraries_elsewhere


def _high_water() -> int:
    """Return the peak of resident bytes since the last reset; 0 if the system does not report it."""
    try:
        status = (PROC / "status").read_text()
    except OSError:
        return 0
    marks = (int(line.split()[1]) * 1024 for line in status.splitlines() if line.startswith("VmHWM:"))
    return next((mark + _libraries_elsewhere for mark in marks), 0)


def _reset_mark() -> bool:
    """Reset the high-water mark to the bytes now resident. Return False if the system has no such mark."""
    try:
        (PROC / "clear_refs").write_text("5")
    except OSError:
        return False
    return True


_MARK_RESETS = _reset_mark()


def total_bytes() -> int:
    """Return the memory of this machine or, if smaller, of this process's control group (container)."""
    return min([psutil.virtual_memory().total, *(limit for limit, _ in _groups())])


def available_bytes() -> int:
    """Return the memory available without swapping: the machine's, or the rest of the control group's limit
    if that is less."""
    return max(0, min([psutil.virtual_memory().available, *(limit - used for limit, used in _groups())]))


def is_exhausting(total: int) -> bool:
    """Return whether this process holds more than a quarter of the `total` memory, and less than a twentieth
    is left, so that the system is about to end some process. Pages of files count as left, because the system
    drops them first."""
    resident, mapped = _resident()
    if resident - mapped < total // 4:  # the usual case takes 20 µs
        return False
    groups = _groups(kinds=("inactive_file", "active_file"))
    return min([psutil.virtual_memory().available, *(limit - used for limit, used in groups)]) < total // 20


def watch_memory(end: Callable[[], object]) -> None:
    """Call `end` in a thread of its own as soon as this process `is_exhausting`. It takes what files of
    strangers make it take, so let the system end it before others if native code gives the thread no turn."""
    total = total_bytes()
    with contextlib.suppress(OSError):
        (PROC / "oom_score_adj").write_text("500")

    def watch() -> None:
        while not is_exhausting(total):
            time.sleep(WATCH_SECONDS)
        end()

    threading.Thread(target=watch, name="memory", daemon=True).start()


def _groups(
    root: Path = cgroups.ROOT,
    membership: Path = cgroups.MEMBERSHIP,
    kinds: tuple[str, ...] = ("inactive_file",),
) -> list[tuple[int, int]]:
    """Return (limit, bytes in use except those of `kinds`, which can be dropped) of this process's control
    group and its parents, for each limit that is set."""
    found: list[tuple[int, int]] = []
    for version, folder in cgroups.folders("memory", root, membership):
        names = (
            ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_")
            if version == 1
            else ("memory.max", "memory.current", "")
        )
        if (entry := _group(folder, *names, kinds)) and entry not in found:
            found.append(entry)
    return found


def _group(
    folder: Path, limit: str, usage: str, prefix: str, kinds: tuple[str, ...]
) -> tuple[int, int] | None:
    try:
        most = (folder / limit).read_text().strip()
        used = int((folder / usage).read_text())
        stat = dict(line.split() for line in (folder / "memory.stat").read_text().splitlines())
    except (OSError, ValueError):
        return None
    if most == "max" or int(most) >= 1 << 60:  # version 1 writes "no limit" as a number near 2^63
        return None
    return int(most), used - sum(int(stat.get(prefix + kind, 0)) for kind in kinds)
