"""`python -m qcore.jobs.worker RUN_DIR`: run one job of any kind, each of its tasks in a fresh process.

The job's course (see `kind.py`) lists the tasks and handles their outcomes; a runner decides where they run:
on this machine (`runner_local.py`), after earlier jobs, or on a cluster (`runner_ray.py`). A separate process
per task keeps memory figures clean, and a crash or an out-of-memory kill fails only one task. The child
reports through a pipe or a file, one JSON object per line; its output goes to the log. This process imports
no heavy library.
"""

import logging
import os
import signal
import sys
import threading
import time
from contextlib import closing
from pathlib import Path

import psutil

from qcore.base import logs
from qcore.base.errors import QcoreError, RunError
from qcore.base.executor import Executor
from qcore.base.process import identity
from qcore.base.quiet import silence
from qcore.jobs.estimate import Account, Shares
from qcore.jobs.kind import Outcome
from qcore.jobs.kinds import kind_of
from qcore.jobs.runner_local import LocalRunner, Runner
from qcore.jobs.status import StatusRecord
from qcore.results.folder import RunFolder
from qcore.results.store import keep_end

STATUS_SECONDS = 0.25  # between two writes of status.json
BEAT_SECONDS = 2.0  # between two heartbeats
_log = logging.getLogger("qcore.jobs.worker")


class Stopped(BaseException):
    """SIGTERM: the job was cancelled, or ended from outside. A `BaseException`, so that no `except Exception`
    treats it as a failure."""


class Worker:
    """One job, executed by `runner`."""

    def __init__(self, folder: RunFolder, runner: Runner):
        self.folder, self.runner = folder, runner
        self.status: StatusRecord = folder.read("status.json")
        self.kind = kind_of(folder.read("spec.json"))
        self.course = self.kind.course(folder, self.status)
        self._phases: dict[str, str] = {}
        self._account: Account = Shares(len(self.course.tasks))
        self._written = 0.0
        self._began = time.monotonic()
        self._lock = threading.RLock()  # several tasks of a cluster report concurrently

    def run(self) -> None:
        """Wait for the turn, run every task, and write the final status."""
        signal.signal(signal.SIGTERM, _stop)
        end = None
        try:
            try:
                with self.runner.turn():
                    self._account = self.runner.estimate(self.course)
                    self._began = time.monotonic()
                    self._update(state="running", started_at=time.time(), force=True)
                    self.runner.run(self.course.tasks, self._take)
                    end = self.course.finish()
            except QcoreError as error:
                _log.warning("%s", error, exc_info=True)
                end = "failed", str(error), type(error).__name__
            except Exception as error:
                _log.exception("The run failed")
                what = f"{type(error).__name__}: {error}"
                end = "failed", f"The run failed unexpectedly ({what}); its log has the details.", "RunError"
            signal.signal(signal.SIGTERM, signal.SIG_IGN)  # only the final status is left to write
        except Stopped:
            end = end or self._stopped()
        self._end(*end)

    def _take(self, number: int, task: str) -> bool:
        """Run task `number`; return False if the remaining tasks are pointless."""
        self._account.start(number)
        outcome = self._run(task)
        if outcome.killed and self.kind.resumes:
            _log.warning("The process of %s was killed (signal %d); it is started again", task, -outcome.code)
            outcome = self._run(task)
        with self._lock:
            self._account.end(number, complete=outcome.good)
            return self.course.ended(task, outcome)

    def _run(self, task: str) -> Outcome:
        """Run the process of a task to its end. Raise `Stopped` if a cancel ended it."""
        began, code, error, kind = time.time(), None, None, None
        self._phase(task, {"phase": "start"})
        with closing(self.runner.child(task)) as events:
            for event in events:
                if event["event"] == "phase":
                    self._phase(task, event)
                elif event["event"] == "error":
                    error, kind = event["message"], event["kind"]
                elif event["event"] == "ended":
                    code = event["code"]
                elif event["event"] == "idle":
                    self._update()
                if event["event"] != "ended":
                    self._check_limit()
        if code is None or (code and self.folder.cancel_asked):
            raise Stopped  # the signal that ended the child is on its way to this process
        return Outcome(code, began, self._phases[task], error, kind)

    def _check_limit(self) -> None:
        """Raise `RunError` if the run has taken longer than its server allows."""
        limit = self.status.get("limit_s")
        if limit is not None and time.monotonic() - self._began > limit:
            kept = self.kind.kept(self.folder)
            raise RunError(
                f"The run was ended after {limit / 60:g} minutes, the most that this server allows; {kept}. "
                "Choose a smaller model, fewer recipes or fewer tokens."
            )

    def _phase(self, task: str, event: dict) -> None:
        with self._lock:
            changed = event["phase"] != self._phases.get(task)
            self._phases[task] = event["phase"]
            done, total = event.get("done", 0), event.get("total", 0)
            self._account.enter(event["phase"])
            self._account.step(done, total)
            words = self.course.phase(task, event)
            self._update(phase=words, done=done, total=total, force=changed)

    def _update(self, *, force: bool = False, **changes) -> None:
        """Change the status; write it at once with `force`, otherwise a few times per second."""
        with self._lock:
            self.status.update(changes)  # type: ignore[typeddict-item]  # keyword arguments are its fields
            now = time.monotonic()
            if force or now - self._written >= STATUS_SECONDS:
                self._written = now
                self.status |= {"fraction": self._account.fraction, "eta_s": self._account.eta}
                self.folder.write("status.json", self.status)

    def _stopped(self) -> tuple[str, str | None, str | None]:
        """Return the final state after SIGTERM; finished results are kept."""
        cancelled = self.folder.cancel_asked
        self.course.stopped(cancelled)
        if cancelled:
            return "cancelled", None, None
        kept = self.kind.kept(self.folder)
        words = f"The run was ended from outside while it was at: {self.status['phase']}; {kept}."
        return "interrupted", words, None

    def _end(self, state: str, error: str | None, kind: str | None = None) -> None:
        finished = self.folder.rows()
        for position, recipe in enumerate(self.status["recipes"]):
            recipe |= {"state": finished[position]["status"] if position in finished else state, "phase": ""}
        self.status |= {
            "state": state,
            "phase": state.capitalize(),
            "error": error,
            "error_kind": kind,
            "finished_at": time.time(),
            "fraction": 1.0 if state in ("done", "failed") else self._account.fraction,
            "eta_s": None,
            "done": 0,
            "total": 0,
        }
        self.kind.clear(self.folder)
        keep_end(self.folder, self.status)


def _stop(number: int, frame) -> None:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # a second signal must not disturb the shutdown
    raise Stopped


def _show_life(folder: RunFolder) -> None:
    """Write heartbeats, and detect a cancel requested on another machine."""
    while True:
        time.sleep(BEAT_SECONDS)
        folder.beat()
        if folder.cancel_asked:
            os.kill(os.getpid(), signal.SIGTERM)
            return


def start(folder: RunFolder, runner: Runner) -> None:
    """Run the job in `folder`: the whole of a worker's process."""
    silence()
    logs.configure("info")
    try:
        folder.write("process.json", identity(os.getpid()))
    except psutil.Error as error:
        _log.warning("This process cannot read its own process entry: %s", error)
    threading.Thread(target=_show_life, args=(folder,), name="signs of life", daemon=True).start()
    Worker(folder, runner).run()


def main(arguments: list[str]) -> int:
    """Run the job in the given folder."""
    folder = RunFolder(Path(arguments[0]).name)
    engine = folder.read("engine.json")
    if engine is None:
        start(folder, LocalRunner(folder))
    else:
        from qcore.jobs.runner_ray import RayRunner

        start(folder, RayRunner(folder, Executor(**engine)))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
