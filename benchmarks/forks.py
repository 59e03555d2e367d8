"""Server, worker and task of a job as forks of one process that has loaded the libraries: a run on a tiny
model then takes a second, and a kill may come at any moment of it.

The processes are those of a real run in everything but their start: a session and process group per worker,
a pipe that ends the task with its worker, output in the run's log, locks of their own. `Machine` is one such
family; its processes are recorded, so that one of them or all can be killed.
"""

from __future__ import annotations

import contextlib
import ctypes
import importlib
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil

from qcore.jobs import child, jobs, worker
from qcore.jobs.runner_local import LocalRunner
from qcore.results.folder import RunFolder

_PR_SET_CHILD_SUBREAPER = 36


def adopt_orphans() -> None:
    """Make this process the parent of processes whose own parent was killed, so that it can reap them."""
    ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


def reap() -> None:
    """Reap every process that has ended."""
    try:
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass
    except ChildProcessError:
        pass


class Fork:
    """A function in a process of its own, with as much of `subprocess.Popen` as jobs use."""

    def __init__(self, call: Callable[[], int | None], log: int | None = None):
        self.returncode: int | None = None
        self.pid = os.fork()
        if self.pid == 0:
            self._become(call, log)

    @staticmethod
    def _become(call: Callable[[], int | None], log: int | None) -> None:
        status = 1
        try:
            for number in (signal.SIGTERM, signal.SIGINT):
                signal.signal(
                    number, signal.SIG_DFL if number == signal.SIGTERM else signal.default_int_handler
                )
            if log is not None:
                os.dup2(log, 1)
                os.dup2(log, 2)
            os.closerange(3, 4096)
            status = call() or 0
        except BaseException:
            sys.excepthook(*sys.exc_info())  # type: ignore[arg-type]
        finally:
            os._exit(status)

    def poll(self) -> int | None:
        """Return the exit code as `subprocess` does, None while the process runs."""
        if self.returncode is None:
            try:
                pid, status = os.waitpid(self.pid, os.WNOHANG)
            except ChildProcessError:
                self.returncode = -signal.SIGKILL  # reaped elsewhere
            else:
                self.returncode = os.waitstatus_to_exitcode(status) if pid else None
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        """Wait for the end. Raise `subprocess.TimeoutExpired`."""
        until = None if timeout is None else time.monotonic() + timeout
        while (code := self.poll()) is None:
            if until is not None and time.monotonic() > until:
                raise subprocess.TimeoutExpired("fork", timeout or 0)
            time.sleep(0.005)
        return code

    def terminate(self) -> None:
        """Send SIGTERM."""
        os.kill(self.pid, signal.SIGTERM)

    def kill(self) -> None:
        """Send SIGKILL."""
        os.kill(self.pid, signal.SIGKILL)


class Machine:
    """The processes of one run. `book` is a file in which each writes its role and pid when it starts,
    `modules` one in which a task writes at its end what it imported."""

    def __init__(self, book: Path, modules: Path | None = None):
        self.book, self.modules = book, modules
        book.write_text("")

    def note(self, role: str) -> None:
        """Record this process."""
        with self.book.open("a") as file:
            file.write(f"{role} {os.getpid()}\n")

    def pids(self, role: str | None = None) -> list[int]:
        """Return the processes that were started, the newest last."""
        lines = (line.split() for line in self.book.read_text().splitlines())
        return [int(pid) for name, pid in lines if role in (None, name)]

    def living(self) -> list[int]:
        """Return the processes that still run."""
        return [pid for pid in self.pids() if _runs(pid)]

    def kill(self, role: str) -> int:
        """Kill the newest process of this role, or all for "machine"; return how many still ran."""
        chosen = [pid for pid in self.pids(None if role == "machine" else role) if _runs(pid)]
        for pid in chosen if role == "machine" else chosen[-1:]:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        return len(chosen)

    def serve(self, call: Callable[[], Any]) -> Fork:
        """Call `call`, which submits jobs, in the process of a server."""

        def server() -> int:
            self.note("server")
            jobs.start_detached = self._start_worker  # type: ignore[assignment]
            call()
            while True:  # as a server that waits for visitors, until it is ended
                time.sleep(0.1)

        return Fork(server)

    def _start_worker(self, command: list[str], log: Any) -> Fork:
        path = Path(command[-1])

        def work() -> int:
            os.setsid()
            self.note("worker")
            worker.LocalRunner = self._runner  # type: ignore[assignment,misc]
            return worker.main([str(path)])

        return Fork(work, log=log.fileno())

    def _runner(self, folder: RunFolder) -> LocalRunner:
        runner = LocalRunner(folder, self._task)
        runner.processes = multiprocessing.get_context("fork")
        return runner

    def _task(self, folder: str, task: str, events: int) -> int:
        self.note("child")
        code = child.run(folder, task, events)
        if self.modules is not None:
            write_modules(self.modules)
        return code


def write_modules(path: Path) -> None:
    """Add the names of the imported modules to the file."""
    with path.open("a") as file:
        file.write("\n".join(sys.modules) + "\n")


def import_modules(path: Path) -> None:
    """Import the modules named in the file that this process lacks, so that forks need not."""
    for name in dict.fromkeys(path.read_text().split("\n")):
        if name and name not in sys.modules and not name.startswith("__"):
            with contextlib.suppress(Exception):  # made by others at run time
                importlib.import_module(name)


def _runs(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.Error:
        return False


def started_run(known: set[str], seconds: float = 10.0) -> RunFolder | None:
    """Return the run that was submitted since `known` were listed, None if there is none in time."""
    from qcore.results.folder import run_ids

    until = time.monotonic() + seconds
    while time.monotonic() < until:
        if new := [run_id for run_id in run_ids() if run_id not in known]:
            return RunFolder(new[-1])
        time.sleep(0.005)
    return None
