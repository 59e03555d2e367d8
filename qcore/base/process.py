"""Detached processes: started in a session of their own, identified by host, pid and start time, ended with
their children. And the lifeline of processes that must exit with their parent."""

import multiprocessing
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import IO, TypedDict

import psutil

START_SECONDS = 30.0  # seconds after which a silent worker counts as failed to start
PATIENCE_SECONDS = 5.0  # seconds between SIGTERM and SIGKILL
START_TIME_SLACK = 2.0  # seconds by which a start time moves when the clock is corrected


class Identity(TypedDict, total=False):
    """Identifies a process among all that ever have its pid, on any machine.

    `ticks` is the start in clock ticks since the boot, which no correction of the clock changes. `place`
    names the boot of the kernel and the namespace in which `pid` counts: two containers may share a host
    name. Both are missing outside Linux and in earlier records, where `process_started` decides, in seconds
    since 1970.
    """

    pid: int
    process_started: float
    ticks: int
    place: str
    host: str  # missing in records of version 0.1.0, which count as this machine's


def start_detached(command: list[str], log: IO) -> subprocess.Popen:
    """Start `command` in a session and process group of its own, without a terminal, with its output in
    `log`. It can import this installation of qcore."""
    return subprocess.Popen(
        command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True, env=environment()
    )


def environment() -> dict[str, str]:
    """Return the environment of a process that can import this installation of qcore, whatever its current
    folder."""
    package_root = str(Path(__file__).resolve().parents[2])
    path = os.pathsep.join(filter(None, [package_root, os.environ.get("PYTHONPATH")]))
    return {**os.environ, "PYTHONPATH": path}


def host() -> str:
    """Return the name of this machine, or of the container it runs in."""
    return socket.gethostname()


def identity(pid: int) -> Identity:
    """Return the identity of the process `pid` of this machine. Raise `psutil.Error` if it has ended."""
    found: Identity = {"pid": pid, "process_started": psutil.Process(pid).create_time(), "host": host()}
    ticks, here = _ticks(pid), _place()
    if ticks is not None and here is not None:
        found |= {"ticks": ticks, "place": here}
    return found


def host_of(record: Identity | None) -> str | None:
    """Return the machine named by an `identity` record if it is not this one, else None."""
    name = (record or {}).get("host")
    return name if name not in (None, host()) else None


def is_local(record: Identity | None) -> bool:
    """Return whether the record's pid counts here. It does not on another machine, in another container, and
    after a restart of the machine."""
    return host_of(record) is None and (record or {}).get("place") in (None, _place())


def living(record: Identity | None) -> psutil.Process | None:
    """Return the process of an `identity` record if it still runs on this machine; None for a zombie, and for
    another process with the same pid."""
    if record is None or not is_local(record):
        return None
    try:
        process = psutil.Process(record["pid"])
        if "ticks" in record:
            same = _ticks(process.pid) == record["ticks"]
        else:
            same = abs(process.create_time() - record["process_started"]) < START_TIME_SLACK
        return process if same and process.status() != psutil.STATUS_ZOMBIE else None
    except (TypeError, KeyError, ValueError, psutil.Error):
        return None


def _ticks(pid: int) -> int | None:
    """Return field 22 of /proc/PID/stat; None where there is none."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return None
    return int(text.rpartition(")")[2].split()[19])


@cache
def _place() -> str | None:
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
        return f"{boot} {os.readlink('/proc/self/ns/pid')}"
    except OSError:
        return None


def holder(*paths: Path) -> str:
    """Return a phrase for the process that holds a lock on one of the files: "process 123 (python)"."""
    try:
        lines = Path("/proc/locks").read_text(encoding="ascii").splitlines()
    except OSError:
        return "another process"
    wanted = set()
    for path in paths:
        with suppress(OSError):
            found = path.stat()
            wanted.add(f"{os.major(found.st_dev):02x}:{os.minor(found.st_dev):02x}:{found.st_ino}")
    for line in lines:
        parts = line.split()
        if len(parts) == 8 and parts[5] in wanted and parts[4].isdecimal() and int(parts[4]) != os.getpid():
            with suppress(psutil.Error):
                return f"process {parts[4]} ({psutil.Process(int(parts[4])).name()})"
    return "another process"


def end(process: psutil.Process, patience: float = PATIENCE_SECONDS) -> None:
    """Terminate the process and its group, and kill them if they still run after `patience` seconds."""
    _signal_group(process, signal.SIGTERM)
    if not _ends_within(process, patience):
        _signal_group(process, signal.SIGKILL)
        _ends_within(process, patience)


def lifeline(on_line: Callable[[str], None] | None = None) -> None:
    """Exit this process as soon as its standard input closes, which happens when its parent ends for any
    reason. Lines that arrive before are passed to `on_line`.

    The parent holds the other end of a pipe open. Works on every system, in a thread of its own.
    """

    def listen() -> None:
        for line in sys.stdin:
            if on_line is not None:
                on_line(line)
        os._exit(1)

    threading.Thread(target=listen, name="lifeline", daemon=True).start()


def end_with_parent() -> None:
    """Exit this process, started by `multiprocessing`, as soon as the process that started it has ended."""

    def wait() -> None:
        if parent := multiprocessing.parent_process():
            parent.join()
            os._exit(1)

    threading.Thread(target=wait, name="end with parent", daemon=True).start()


def _signal_group(process: psutil.Process, number: int) -> None:
    try:
        group = os.getpgid(process.pid)
        if group == process.pid:  # the worker leads its group; any other group is not ours to kill
            os.killpg(group, number)
        else:
            process.send_signal(number)
    except (ProcessLookupError, psutil.NoSuchProcess):
        pass


def _ends_within(process: psutil.Process, seconds: float) -> bool:
    """Wait for the process to end. A zombie has ended too; its parent has not yet reaped it."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        try:
            if process.status() == psutil.STATUS_ZOMBIE:
                return True
        except psutil.NoSuchProcess:
            return True
        time.sleep(0.05)
    return False
