"""Tasks as child processes of the worker on this machine, one after another.

On Linux, a child is forked from a server process that has imported torch and transformers once for all tasks
of the job (`multiprocessing`'s fork server). It has computed nothing, so it has no threads.
"""

import json
import multiprocessing
import os
import selectors
import signal
import sys
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from multiprocessing.connection import Connection
from multiprocessing.context import ForkContext, ForkServerContext, SpawnContext
from pathlib import Path
from typing import Protocol

from qcore.base.process import PATIENCE_SECONDS, end_with_parent
from qcore.base.turn import heavy_turn
from qcore.jobs import child
from qcore.jobs.estimate import Account
from qcore.jobs.jobs import active_before
from qcore.jobs.kind import Course
from qcore.measurement.memory import count_libraries_of
from qcore.results.folder import RunFolder

TURN_SECONDS = 0.3  # between two checks of the queue
LISTEN_SECONDS = 1.0  # the estimate is updated even if a child is silent
STATE_SECONDS = PATIENCE_SECONDS - 1.0  # for a child to save its state after SIGTERM


class Runner(Protocol):
    """Where and in which order the tasks of a job run."""

    def estimate(self, course: Course) -> Account:
        """Return the progress tracker of the job."""

    def turn(self) -> AbstractContextManager[None]:
        """Wait until the job may start, and hold its turn while it runs."""

    def run(self, tasks: Sequence[str], take: Callable[[int, str], bool]) -> None:
        """Call `take` with number and name of each task, until it returns False."""

    def child(self, task: str) -> Generator[dict]:
        """Start the process of a task and yield its events, {"event": "idle"} periodically, and finally
        {"event": "ended", "code": …}. Closing the iterator ends the process."""


class LocalRunner:
    """Runner of this machine: earlier jobs run first, and one heavy task at a time. `main` is the function
    that a child runs, and `imports` are the modules that its server has imported; tests replace both.
    `processes` starts the children."""

    def __init__(
        self,
        folder: RunFolder,
        main: Callable[[str, str, int], int] = child.run,
        imports: Sequence[str] = ("qcore.jobs.imports",),
    ):
        self.folder, self.main = folder, main
        # Only on Linux do system libraries survive a fork.
        self.processes: ForkServerContext | SpawnContext | ForkContext = (
            multiprocessing.get_context("forkserver")
            if sys.platform == "linux"
            else multiprocessing.get_context("spawn")
        )
        self.processes.set_forkserver_preload(["qcore.jobs.fork_server", *imports])
        self._threads: int | None = None

    def estimate(self, course: Course) -> Account:
        """Return the course's own estimate."""
        self._threads = course.threads
        return course.estimate()

    @contextmanager
    def turn(self) -> Iterator[None]:
        """Wait for earlier jobs, and for any other measurement."""
        while any(active_before(self.folder.run_id)):
            time.sleep(TURN_SECONDS)
        with heavy_turn():
            yield

    def run(self, tasks: Sequence[str], take: Callable[[int, str], bool]) -> None:
        """Run one task after another."""
        for number, task in enumerate(tasks):
            if not take(number, task):
                break

    def child(self, task: str) -> Generator[dict]:
        """Start a child and yield its events, and finally {"event": "ended", "code": …}."""
        if self._threads:  # read by the libraries when the server imports them
            os.environ |= dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS"), str(self._threads))
        reader, writer = self.processes.Pipe(duplex=False)
        process = self.processes.Process(
            target=_run, args=(self.main, str(self.folder.path), task, writer), name=task
        )
        process.start()
        writer.close()
        try:
            yield from _events(reader.fileno())
            process.join()
            yield {"event": "ended", "code": process.exitcode}
        finally:
            reader.close()
            if process.is_alive():
                process.terminate()
                process.join(STATE_SECONDS)
                if process.is_alive():
                    process.kill()
                    process.join()


def _run(main: Callable[[str, str, int], int], folder: str, task: str, events: Connection) -> None:
    """Run a task in a forked child: its output goes to the run's log, and it ends with the worker."""
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    with RunFolder(Path(folder).name).log.open("ab") as log:
        for output in (sys.stdout, sys.stderr):
            output.flush()
            os.dup2(log.fileno(), output.fileno())
    end_with_parent()
    count_libraries_of(os.getppid())
    sys.exit(main(folder, task, events.fileno()))


def whole_lines(text: bytes) -> tuple[list[dict], bytes]:
    """Return the events of the complete lines of `text`, and the rest. Skip lines truncated by a kill or
    printed by a library."""
    *lines, rest = text.split(b"\n")
    found = []
    for line in lines:
        try:
            event = json.loads(line)
        except ValueError:
            continue
        if isinstance(event, dict) and "event" in event:
            found.append(event)
    return found, rest


def _events(reader: int) -> Iterator[dict]:
    buffer = b""
    with selectors.DefaultSelector() as selector:
        selector.register(reader, selectors.EVENT_READ)
        while True:
            if not selector.select(LISTEN_SECONDS):
                yield {"event": "idle"}
                continue
            part = os.read(reader, 1 << 16)
            if not part:
                return
            found, buffer = whole_lines(buffer + part)
            yield from found
