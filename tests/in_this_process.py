"""Jobs whose worker and tasks run in this process while `submit` waits, without the seconds that each process
takes to import torch."""

import signal
from collections.abc import Callable, Generator, Sequence
from contextlib import nullcontext

import pytest

from qcore.jobs import jobs
from qcore.jobs.kind import Context, Course
from qcore.jobs.kinds import kind_of
from qcore.jobs.worker import Worker
from qcore.results.folder import RunFolder


class HereRunner:
    """Tasks one after another in this process."""

    def __init__(self, folder: RunFolder):
        self.folder = folder

    def estimate(self, course: Course):
        return course.estimate()

    def turn(self) -> nullcontext:
        return nullcontext()

    def run(self, tasks: Sequence[str], take: Callable[[int, str], bool]) -> None:
        for number, task in enumerate(tasks):
            if not take(number, task):
                return

    def child(self, task: str) -> Generator[dict]:
        record, events = self.folder.read("spec.json"), []
        kind, code = kind_of(record), 0
        try:
            kind.run(kind.request.from_dict(record), Context(self.folder, task, events.append))
        except Exception as error:
            events.append({"event": "error", "kind": type(error).__name__, "message": str(error)})
            code = 1
        yield from ({"event": "phase"} | event for event in events)
        yield {"event": "ended", "code": code}


@pytest.fixture
def jobs_here(monkeypatch):
    """Run every submitted job at once, in this process."""
    before = signal.getsignal(signal.SIGTERM)
    monkeypatch.setattr(jobs, "_start", lambda folder: Worker(folder, HereRunner(folder)).run())
    yield
    signal.signal(signal.SIGTERM, before)
