"""Tasks as child processes of the worker on this machine, one after another."""

import json
import os
import selectors
import subprocess
import sys
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Protocol

from qcore.base.process import PATIENCE_SECONDS
from qcore.base.turn import heavy_turn
from qcore.jobs.estimate import Account
from qcore.jobs.jobs import active_before
from qcore.jobs.kind import Course
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


def child_command(folder: RunFolder, task: str, events: int) -> list[str]:
    """Return the command that runs `task` and reports to the file descriptor `events`."""
    return [sys.executable, "-m", "qcore.jobs.child", str(folder.path), task, str(events)]


class LocalRunner:
    """Runner of this machine: earlier jobs run first, and one heavy task at a time. `command` builds the
    command line of a child, so that tests can replace it."""

    def __init__(
        self, folder: RunFolder, command: Callable[[RunFolder, str, int], list[str]] = child_command
    ):
        self.folder, self.command = folder, command
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
        reader, writer = os.pipe()
        below, lifeline = os.pipe()  # empty and held open: the child exits when this process is killed
        with self.folder.log.open("ab") as log:
            child = subprocess.Popen(
                self.command(self.folder, task, writer),
                stdin=below,
                stdout=log,
                stderr=log,
                pass_fds=[writer],
                env=self._environment(),
            )
        os.close(writer)
        os.close(below)
        try:
            yield from _events(reader)
            yield {"event": "ended", "code": child.wait()}
        finally:
            os.close(reader)
            os.close(lifeline)
            if child.poll() is None:
                child.terminate()
                try:
                    child.wait(STATE_SECONDS)
                except subprocess.TimeoutExpired:
                    child.kill()
                    child.wait()

    def _environment(self) -> dict[str, str]:
        threads = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS"), str(self._threads))
        return {**os.environ, **(threads if self._threads else {})}


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
