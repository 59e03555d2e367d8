"""Tasks on the machines of a Ray cluster: first the baseline, then all other tasks concurrently.

The run's folder lies on storage shared by all machines. Each task is the same child process as on one machine
(`child.py`), started by a Ray task and reporting into a file of the run's folder; its row is in the folder
when it ends. If a machine is lost, Ray restarts its task elsewhere, and only that task's time is lost. By
default a machine runs one task at a time.
"""

import threading
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

from qcore.base.cluster import Cluster
from qcore.base.errors import RunError
from qcore.base.executor import Executor
from qcore.jobs.estimate import Shares
from qcore.jobs.kind import Course
from qcore.jobs.runner_local import whole_lines
from qcore.results.folder import RunFolder

LOOK_SECONDS = 0.3


class RayRunner:
    """Runner for the cluster of `engine`, which has its own queue."""

    _cluster: Cluster  # set during the turn

    def __init__(self, folder: RunFolder, engine: Executor):
        self.folder, self.engine = folder, engine
        self._processors = 1
        self._stopping = threading.Event()

    def estimate(self, course: Course) -> Shares:
        """Return progress by completed tasks: several run concurrently."""
        self._processors = self._cluster.processors(course.threads)
        return Shares(len(course.tasks))

    @contextmanager
    def turn(self) -> Iterator[None]:
        """Connect to the cluster."""
        with Cluster(self.engine) as self._cluster:
            yield

    def run(self, tasks: Sequence[str], take: Callable[[int, str], bool]) -> None:
        """Run the first task, then all others concurrently."""
        first, *others = tasks
        if not take(0, first):
            return
        with ThreadPoolExecutor(max(1, len(others))) as pool:
            try:
                for found in [pool.submit(take, number, task) for number, task in enumerate(others, 1)]:
                    found.result()
            except BaseException:
                self._stopping.set()
                raise

    def child(self, task: str) -> Generator[dict]:
        """Submit the task, and yield its events and finally {"event": "ended", "code": …}."""
        events = self.folder.path / f"events-{task}.jsonl"
        command = ["-m", "qcore.jobs.child", str(self.folder.path), task, str(events)]
        handed_in = self._cluster.submit(
            f"{self.folder.run_id} {task}", command, self.folder.log, self._processors, events
        )
        at, over = 0, False
        try:
            while not over:
                over = bool(self._cluster.ended([handed_in], LOOK_SECONDS))
                if self._stopping.is_set():
                    return
                found, at = _read(events, at)
                yield from found
            try:
                code = self._cluster.code(handed_in)
            except RunError as error:
                yield {"event": "error", "kind": "RunError", "message": str(error)}
                code = 1
            yield {"event": "ended", "code": code}
        finally:
            if not over:
                self._cluster.cancel([handed_in])


def _read(events: Path, at: int) -> tuple[list[dict], int]:
    """Return the events of the complete lines of the file from byte `at`, and the offset of the next line."""
    if not events.exists():
        return [], at
    with events.open("rb") as file:
        file.seek(at)
        text = file.read()
    found, rest = whole_lines(text)
    return found, at + len(text) - len(rest)
