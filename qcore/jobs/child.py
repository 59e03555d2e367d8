"""Run one task of a job in this process, which a worker has forked for it.

The task is one of the job's course (see `kind.py`). Events are sent as one JSON object per line, and results
are written to the folder of the run. On a cluster, `python -m qcore.jobs.child RUN_DIR TASK EVENTS`
runs the task and appends its events to the file EVENTS. That process exits when its standard input closes,
because its parent has ended.
"""

import json
import logging
import os
import signal
import sys
import time
from pathlib import Path

from qcore.base import logs, turn
from qcore.base.errors import QcoreError
from qcore.base.home import is_public
from qcore.base.process import lifeline
from qcore.base.quiet import silence
from qcore.jobs.estimate import PHASES
from qcore.measurement.devices import out_of_memory
from qcore.measurement.memory import watch_memory
from qcore.results.folder import RunFolder

EVENT_SECONDS = 0.1  # between two events of the same phase
TOO_MUCH = "It was ended while {}, because it took nearly all memory of this server. Choose a smaller model."
_log = logging.getLogger("qcore.jobs.child")


def main(arguments: list[str]) -> int:
    """Run the task of the command line; return 0 on success, 1 after a reported failure."""
    lifeline()
    folder, task, events = arguments
    return run(folder, task, os.open(events, os.O_WRONLY | os.O_APPEND | os.O_CREAT))


def run(path: str, task: str, channel: int) -> int:
    """Run the task of the job in folder `path` and send events to the file descriptor `channel`. Return 0 on
    success, 1 after a reported failure."""
    folder = RunFolder(Path(path).name)
    silence()
    logs.configure("info")
    emit = Emitter(channel)
    if is_public():
        watch_memory(lambda: os._exit(emit.error("RunError", TOO_MUCH.format(emit.words))))
    try:
        from qcore.jobs.kind import Context
        from qcore.jobs.kinds import kind_of

        record = folder.read("spec.json")
        kind = kind_of(record)
        if kind.resumes:
            signal.signal(signal.SIGTERM, _interrupt)
        turn.inherit()
        outcome = kind.run(kind.request.from_dict(record), Context(folder, task, emit))
        if outcome is not None:
            folder.write("outcome.json", outcome)
    except KeyboardInterrupt:
        return 128 + signal.SIGTERM
    except QcoreError as error:
        _log.warning("%s", error, exc_info=True)
        return emit.error(type(error).__name__, str(error))
    except Exception as error:
        if memory := out_of_memory(error, f" while {emit.words}"):
            _log.exception("Out of memory")
            return emit.error("RunError", memory)
        _log.exception("The task failed")
        first = str(error).strip().partition("\n")[0][:300]
        what = f"{type(error).__name__}: {first}" if first else type(error).__name__
        return emit.error(
            "RunError", f"It failed while {emit.words} ({what}); the run's log has the details."
        )
    return 0


class Emitter:
    """Send events to the worker, at most ten per second within one phase."""

    def __init__(self, channel: int):
        self._channel = channel
        self._phase, self._sent = "start", 0.0
        self._detail = ""

    @property
    def words(self) -> str:
        """The current phase or step, as display text."""
        return PHASES.get(self._phase) or f"it was at: {self._detail or 'starting'}"

    def __call__(self, event: dict) -> None:
        now = time.monotonic()
        self._detail = event.get("detail", "")
        if (
            event.get("phase") == self._phase
            and now - self._sent < EVENT_SECONDS
            and event.get("done") != event.get("total")
        ):
            return
        if event.get("phase") != self._phase:
            _log.info("%s", PHASES.get(event.get("phase", ""), self._detail))
        self._phase, self._sent = event.get("phase", self._phase), now
        self.send({"event": "phase", **event})

    def send(self, event: dict) -> None:
        """Send an event now."""
        os.write(self._channel, json.dumps(event).encode() + b"\n")

    def error(self, kind: str, message: str) -> int:
        """Report a failure; return its exit code."""
        self.send({"event": "error", "kind": kind, "message": message})
        return 1


def _interrupt(number: int, frame) -> None:
    """Raise `KeyboardInterrupt`, so that a cancelled job saves its resumable state on exit."""
    raise KeyboardInterrupt


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
