"""A run whose recipes are measured on the machines of a Ray cluster, the baseline first, then all others at
once.

The run's folder lies on storage that all machines share. Each recipe is the same child process as in a local
run (`recipe_worker.py`), started by a Ray task and reporting into a file of the folder that is read here; its
row is in the folder when it ends. A machine that is lost in the middle costs the time of what it was at: Ray
starts that recipe again elsewhere. By default a machine measures one recipe at a time.
"""

import json
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

from qcore.base.cluster import Cluster
from qcore.base.errors import RunError
from qcore.base.executor import Engine
from qcore.jobs.worker import BASELINE, Stopped, Worker
from qcore.results.folder import RunFolder

LOOK_SECONDS = 0.3


class Shares:
    """How far the run is, by recipes: what `Estimate` is for those that run one after another."""

    eta = None

    def __init__(self, total: int):
        self._ended, self._total = 0, total

    @property
    def fraction(self) -> float:
        """Share of the recipes that have ended."""
        return self._ended / self._total

    def start(self, item: int) -> None:
        """Nothing changes before it ends."""

    def enter(self, phase: str) -> None:
        """Phases of several recipes overlap."""

    def step(self, done: int, total: int) -> None:
        """As for phases."""

    def end(self, item: int, *, complete: bool) -> None:
        """One more has ended."""
        self._ended += 1


class SpreadWorker(Worker):
    """One run on the cluster of `engine`."""

    def __init__(self, folder: RunFolder, engine: Engine):
        super().__init__(folder)
        self.engine = engine
        self._cluster: Cluster | None = None
        self._processors = 1
        self._stopping = threading.Event()
        self._lock = threading.RLock()

    @contextmanager
    def _turn(self) -> Iterator[None]:
        """The cluster has its own queue."""
        with Cluster(self.engine) as self._cluster:
            self._processors = self._cluster.processors(self.spec.get("threads"))
            yield

    def _make_estimate(self) -> Shares:
        return Shares(len(self.order))

    def _run_in_order(self) -> None:
        first, *others = self.order
        if not self._take(0, first):
            return
        with ThreadPoolExecutor(max(1, len(others))) as pool:
            try:
                for found in [
                    pool.submit(self._take, number, position) for number, position in enumerate(others, 1)
                ]:
                    found.result()
            except BaseException:
                self._stopping.set()
                raise

    def _update(self, *, force: bool = False, **changes) -> None:
        with self._lock:
            super()._update(force=force, **changes)

    def _child(self, position: int | None) -> Iterator[dict]:
        """Hand in the recipe, and yield what it reports and at last {"event": "ended", "code": …}."""
        name = BASELINE if position is None else str(position)
        events = self.folder.path / f"events-{name}.jsonl"
        command = ["-m", "qcore.jobs.recipe_worker", str(self.folder.path), name, str(events)]
        task = self._cluster.submit(
            f"{self.folder.run_id} {name}", command, self.folder.log, self._processors, events
        )
        at, over = 0, False
        try:
            while not over:
                over = bool(self._cluster.ended([task], LOOK_SECONDS))
                if self._stopping.is_set():
                    raise Stopped
                found, at = _read(events, at)
                yield from found
            try:
                code = self._cluster.code(task)
            except RunError as error:
                yield {"event": "error", "kind": "RunError", "message": str(error)}
                code = 1
            yield {"event": "ended", "code": code}
        finally:
            if not over:
                self._cluster.cancel([task])


def _read(events, at: int) -> tuple[list[dict], int]:
    """The whole lines of the file from byte `at` on, and where the next begins; what was cut short by a kill
    is passed over."""
    if not events.exists():
        return [], at
    with events.open("rb") as file:
        file.seek(at)
        text = file.read()
    whole = text[: text.rfind(b"\n") + 1]
    found = []
    for line in whole.split(b"\n"):
        try:
            found.append(json.loads(line)) if line else None
        except ValueError:
            continue
    return [event for event in found if event.get("event") != "task"], at + len(whole)
