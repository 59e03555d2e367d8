"""`python -m qcore.jobs.worker RUN_DIR`: carries out one run, one fresh process for each recipe.

It first waits for its turn: earlier runs that have not ended go first, and a file lock that the kernel
releases when its holder dies makes sure that one heavy thing happens at a time. Each recipe then gets a
process of its own (`recipe_worker.py`), so that memory figures are clean and a crash or an out-of-memory kill
is one failed row while the others go on. The child reports through a pipe, one JSON object a line, and writes
its row to disk itself; what it prints goes to the log. This process loads no heavy library.
"""

import json
import logging
import os
import selectors
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import psutil

from qcore.base.errors import QcoreError
from qcore.base.process import identity
from qcore.base.quiet import hush
from qcore.base.turn import heavy_turn
from qcore.formats.kv import NONE
from qcore.jobs.estimate import PHASES, Estimate, guess
from qcore.jobs.jobs import active_before
from qcore.results.folder import RunFolder
from qcore.results.report import unfinished_row
from qcore.results.store import Store, keep_end, keep_row
from qcore.verbs.compare import REFERENCE

BASELINE = "baseline"
TURN_SECONDS = 0.3  # between two looks at the queue
STATUS_SECONDS = 0.25  # between two writes of status.json
LISTEN_SECONDS = 1.0  # the estimate moves on even if a child says nothing


class Stopped(Exception):
    """SIGTERM arrived: somebody cancelled this run, or ends it from outside."""


def child_command(folder: RunFolder, position: int | None, events: int) -> list[str]:
    """The command that runs the recipe at `position` (None: the baseline alone) and reports to the file
    descriptor `events`."""
    which = BASELINE if position is None else str(position)
    return [sys.executable, "-m", "qcore.jobs.recipe_worker", str(folder.path), which, str(events)]


class Worker:
    """One run. `command` makes the command line of a child, so that tests can run another one."""

    def __init__(
        self, folder: RunFolder, command: Callable[[RunFolder, int | None, int], list[str]] = child_command
    ):
        self.folder = folder
        self.command = command
        self.spec = folder.read("spec.json")
        self.status = folder.read("status.json")
        self.names = [recipe["name"] for recipe in self.spec["recipes"]]
        self.order = _order(self.spec)
        self._written = 0.0
        self._at: dict[int | None, str] = {}  # the phase of each recipe, None: of the baseline
        self._estimate: Estimate | None = None

    def run(self) -> None:
        """Wait for the turn, run every recipe, and write the end."""
        signal.signal(signal.SIGTERM, _stop)
        try:
            with self._turn():
                self._run_all()
        except Stopped:
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
            self._end_stopped()
        except QcoreError as error:
            self._end("failed", str(error), type(error).__name__)
        except Exception as error:
            logging.exception("The run failed")
            self._end(
                "failed",
                f"The run failed unexpectedly ({type(error).__name__}: {error}); its log has the details.",
                "RunError",
            )

    @contextmanager
    def _turn(self) -> Iterator[None]:
        """Runs that were submitted before go first, and one heavy thing happens at a time."""
        while any(active_before(self.folder.run_id)):
            time.sleep(TURN_SECONDS)
        with heavy_turn():
            yield

    def _run_all(self) -> None:
        self._estimate = self._make_estimate()
        self._update(state="running", started_at=time.time(), force=True)
        self._run_in_order()
        self._finish()

    def _make_estimate(self) -> Estimate:
        phases = [
            tuple(p for p in PHASES if p not in ("quantize", "speed") or item is not None)
            for item in self.order
        ]
        return Estimate(phases, expected_seconds(self.spec))

    def _run_in_order(self) -> None:
        for number, position in enumerate(self.order):
            if not self._take(number, position):
                break

    def _take(self, number: int, position: int | None) -> bool:
        """Run the recipe at `position`, the run's item `number`; False if nothing after it makes sense."""
        self._estimate.start(number)
        error, kind = self._run_one(position)
        self._estimate.end(number, complete=error is None)
        if error and position == self.order[0] and self._is_baseline(position):
            self._baseline_failed(position, error, kind)
            return kind != "InputError"
        return True

    def _is_baseline(self, position: int | None) -> bool:
        return position is None or (position == self.order[0] and None not in self.order)

    def _run_one(self, position: int | None) -> tuple[str | None, str | None]:
        """Run one child to its end and keep its row. Returns its error and the error's class, or two
        Nones."""
        name = BASELINE if position is None else self.names[position]
        self._phase(position, "start", "")
        began = time.time()
        error, kind, code = None, None, None
        with closing(self._child(position)) as events:
            for event in events:
                if event["event"] == "phase":
                    self._phase(
                        position,
                        event["phase"],
                        event.get("detail", ""),
                        event.get("done", 0),
                        event.get("total", 0),
                    )
                elif event["event"] == "error":
                    error, kind = event["message"], event["kind"]
                elif event["event"] == "ended":
                    code = event["code"]
        if (
            code and self.folder.cancel_asked
        ):  # the child was reached by the signal that is on its way to this process
            raise Stopped
        row = None if position is None else self.folder.rows().get(position)
        if error is None and code != 0 and row is None:
            error, kind = _death(code, PHASES[self._at[position]]), "RunError"
        if error is None and position is not None and row is None:
            error, kind = (
                "The recipe's process ended without a result; the run's log may say why.",
                "RunError",
            )
        if error is not None and position is not None:
            row = unfinished_row(
                self.spec,
                position,
                "failed",
                error,
                kind,
                phase=self._at[position],
                started_at=began,
                run_id=self.folder.run_id,
            )
            self.folder.write_row(position, row)
        if row is not None:
            keep_row(self.folder, position, row)
            self.status["recipes"][position] |= {"state": row["status"], "phase": ""}
        logging.info("%s: %s", name, error or "finished")
        return error, kind

    def _child(self, position: int | None) -> Iterator[dict]:
        """Start a child and yield its events, and at last {"event": "ended", "code": …}."""
        reader, writer = os.pipe()
        with self.folder.log.open("ab") as log:
            child = subprocess.Popen(
                self.command(self.folder, position, writer),
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=log,
                pass_fds=[writer],
                env=self._environment(),
            )  # stdin stays open and empty: the child ends itself when it closes, that is, when this process is killed
        os.close(writer)
        try:
            yield from self._events(reader)
            yield {"event": "ended", "code": child.wait()}
        finally:
            os.close(reader)
            child.stdin.close()
            if child.poll() is None:
                child.terminate()
                try:
                    child.wait(2)
                except subprocess.TimeoutExpired:
                    child.kill()
                    child.wait()

    def _events(self, reader: int) -> Iterator[dict]:
        buffer = b""
        with selectors.DefaultSelector() as selector:
            selector.register(reader, selectors.EVENT_READ)
            while True:
                if not selector.select(LISTEN_SECONDS):
                    self._update()
                    continue
                part = os.read(reader, 1 << 16)
                if not part:
                    return
                *lines, buffer = (buffer + part).split(b"\n")
                yield from (json.loads(line) for line in lines)

    def _environment(self) -> dict[str, str]:
        threads = self.spec.get("threads")
        return {
            **os.environ,
            **({"OMP_NUM_THREADS": str(threads), "MKL_NUM_THREADS": str(threads)} if threads else {}),
        }

    def _phase(self, position: int | None, phase: str, detail: str, done: int = 0, total: int = 0) -> None:
        changed = phase != self._at.get(position)
        self._at[position] = phase
        self._estimate.enter(phase)
        self._estimate.step(done, total)
        words = PHASES[phase] + (f", {detail}" if detail else "")
        if position is not None:
            self.status["recipes"][position] |= {"state": "running", "phase": words}
        name = BASELINE if position is None else self.names[position]
        self._update(phase=f"{name}: {words}", done=done, total=total, force=changed)

    def _update(self, *, force: bool = False, **changes) -> None:
        """Change the status; it is written at once if `force`, and otherwise a few times a second."""
        self.status |= changes
        now = time.monotonic()
        if force or now - self._written >= STATUS_SECONDS:
            self._written = now
            estimate = (
                {"fraction": self._estimate.fraction, "eta_s": self._estimate.eta} if self._estimate else {}
            )
            self.folder.write("status.json", self.status | estimate)

    def _baseline_failed(self, position: int | None, error: str, kind: str) -> None:
        """The others can go on without a baseline, unless the input itself is to blame; either way the run
        says what happened."""
        if kind != "InputError":
            self.status["error"] = f"The baseline failed, so KL and top-1 agreement are missing: {error}"
            self.status["error_kind"] = kind
            return
        self.status |= {"error": error, "error_kind": kind}
        for other in self.order:
            if other is not None and other != position:
                reason = f"Not started, because the baseline failed: {error}"
                row = unfinished_row(
                    self.spec,
                    other,
                    "failed",
                    reason,
                    kind,
                    phase="start",
                    started_at=None,
                    run_id=self.folder.run_id,
                )
                self.folder.write_row(other, row)
                self.status["recipes"][other] |= {"state": "failed", "phase": ""}

    def _finish(self) -> None:
        rows = self.folder.rows().values()
        good = sum(row["status"] == "ok" for row in rows)
        error, kind = self.status.get("error"), self.status.get("error_kind")
        if not good and not error:
            first = next(iter(rows))
            error, kind = first["error"], first["record"].get("error_kind")
        self._end("done" if good else "failed", error, kind)

    def _end_stopped(self) -> None:
        """SIGTERM: what is finished is kept; what is not is marked as cancelled, or the run as
        interrupted."""
        if not self.folder.cancel_asked:
            kept = len(self.folder.rows())
            self._end(
                "interrupted",
                f"The run was ended from outside while it was at: {self.status['phase']}; {kept} finished rows were kept.",
            )
            return
        finished = self.folder.rows()
        for position in range(len(self.names)):
            if position not in finished:
                words = "Cancelled before it finished."
                row = unfinished_row(
                    self.spec,
                    position,
                    "cancelled",
                    words,
                    None,
                    phase=None,
                    started_at=None,
                    run_id=self.folder.run_id,
                )
                self.folder.write_row(position, row)
        self._end("cancelled", None)

    def _end(self, state: str, error: str | None, kind: str | None = None) -> None:
        finished = self.folder.rows()
        for position, recipe in enumerate(self.status["recipes"]):
            recipe |= {"state": finished[position]["status"] if position in finished else state, "phase": ""}
        fraction = (
            1.0 if state in ("done", "failed") else (self._estimate.fraction if self._estimate else 0.0)
        )
        self.status |= {
            "state": state,
            "phase": state.capitalize(),
            "error": error,
            "error_kind": kind,
            "finished_at": time.time(),
            "fraction": fraction,
            "eta_s": None,
            "done": 0,
            "total": 0,
        }
        (self.folder.path / REFERENCE).unlink(missing_ok=True)  # megabytes that nobody will read again
        keep_end(self.folder, self.status)


def expected_seconds(spec: dict) -> dict[str, float]:
    """Seconds of each phase: as the newest rows of the same model took, scaled to this request, or else a
    guess."""
    expected = guess(spec)
    try:
        known = Store().latest(spec["model"], limit=20)
    except Exception as error:  # an estimate is no reason to fail
        logging.warning("No earlier times: %s", error)
        return expected
    measured: dict[str, list[float]] = {}
    for row in known:
        record = row.get("record") or {}
        before = guess(record["spec"]) if record.get("spec") else {}
        for phase, seconds in (record.get("phase_seconds") or {}).items():
            if before.get(phase):
                measured.setdefault(phase, []).append(seconds * expected[phase] / before[phase])
    return expected | {phase: sum(values) / len(values) for phase, values in measured.items()}


def _order(spec: dict) -> list[int | None]:
    """Positions in the order to run them: the baseline first, since the others are compared with it; None is
    a baseline without a row, which every run with a quantized key-value cache has."""
    names = [recipe["name"] for recipe in spec["recipes"]]
    if "fp32" not in names or spec.get("kv", NONE) != NONE:
        return [None, *range(len(names))]
    first = names.index("fp32")
    return [first, *(position for position in range(len(names)) if position != first)]


def _death(code: int, phase: str) -> str:
    if code < 0:
        number = -code
        why = {signal.SIGKILL: " (probably out of memory)", signal.SIGSEGV: " (a crash in native code)"}.get(
            number, ""
        )
        return f"The recipe's process was killed by signal {number}{why} while {phase}."
    return f"The recipe's process ended with exit code {code} while {phase}; the run's log has the details."


def _stop(number, frame):
    raise Stopped


def main(arguments: list[str]) -> int:
    """Carry out the run whose folder is named."""
    hush()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    folder = RunFolder(Path(arguments[0]).name)
    try:
        folder.write("process.json", identity(os.getpid()))
    except psutil.Error as error:
        logging.warning("This process cannot look at itself: %s", error)
    engine = folder.read("engine.json")
    if engine is None:
        Worker(folder).run()
    else:
        from qcore.base.executor import Engine
        from qcore.jobs.spread_worker import SpreadWorker

        SpreadWorker(folder, Engine(**engine)).run()
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
