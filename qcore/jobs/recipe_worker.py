"""`python -m qcore.jobs.recipe_worker RUN_DIR POSITION EVENTS`: one recipe of a run, in this process, start
to end.

POSITION counts the run's recipes from 0, or is "baseline"; EVENTS is a file descriptor, or a file, that takes
one JSON object a line. The row is written to the run's folder before its event is sent. Standard input is a
lifeline: when it closes, whoever started this is gone.
"""

import json
import logging
import os
import sys
import threading
import time
from pathlib import Path

from qcore.base.cluster import end_with_parent
from qcore.base.errors import QcoreError
from qcore.base.quiet import hush
from qcore.recipes.spec import RunSpec
from qcore.results.folder import RunFolder

EVENT_SECONDS = 0.1  # between two events of the same phase


def main(arguments: list[str]) -> int:
    """Run one recipe; 0 if it succeeded, 1 if it failed and said so."""
    folder, which, channel = RunFolder(Path(arguments[0]).name), arguments[1], _channel(arguments[2])
    hush()
    logging.basicConfig(level=logging.WARNING)
    threading.Thread(target=end_with_parent, daemon=True).start()
    emit = _Emitter(channel)
    try:
        from qcore.verbs import compare

        spec = RunSpec.from_dict(folder.read("spec.json"))
        if which == "baseline":
            compare.record_reference(spec, folder.path, emit)
        else:
            recipe = spec.recipes[int(which)]
            row = compare.run_recipe(spec, recipe, folder.path, emit)
            folder.write_row(int(which), row)
    except MemoryError:
        return emit.error("RunError", f"There was not enough memory while {emit.words}.")
    except QcoreError as error:
        logging.warning("%s", error)
        return emit.error(_kind(error), str(error))
    except Exception as error:
        logging.exception("The recipe failed")
        first = str(error).strip().partition("\n")[0][:300]
        said = f"{type(error).__name__}: {first}" if first else type(error).__name__
        return emit.error(
            "RunError", f"It failed while {emit.words} ({said}); the run's log has the details."
        )
    return 0


class _Emitter:
    """Sends events to the worker, the progress of one phase at most ten times a second."""

    def __init__(self, channel: int):
        self._channel = channel
        self._phase, self._sent = "start", 0.0

    @property
    def words(self) -> str:
        from qcore.jobs.estimate import PHASES

        return PHASES[self._phase]

    def __call__(self, event: dict) -> None:
        now = time.monotonic()
        if (
            event.get("phase") == self._phase
            and now - self._sent < EVENT_SECONDS
            and event.get("done") != event.get("total")
        ):
            return
        self._phase, self._sent = event.get("phase", self._phase), now
        self.send({"event": "phase", **event})

    def send(self, event: dict) -> None:
        os.write(self._channel, json.dumps(event).encode() + b"\n")

    def error(self, kind: str, message: str) -> int:
        self.send({"event": "error", "kind": kind, "message": message})
        return 1


def _kind(error: QcoreError) -> str:
    return type(error).__name__


def _channel(events: str) -> int:
    return int(events) if events.isdecimal() else os.open(events, os.O_WRONLY | os.O_APPEND | os.O_CREAT)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
