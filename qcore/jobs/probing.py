"""The speed probe in a process of its own, for pages: they may not hold models. It reports on its standard
output, one JSON object a line, and ends when it is cancelled or when its parent ends. What it found is kept
by `planning.probe`, so that it outlives the page that asked.

`python -m qcore.jobs.probing`: a JSON object {"model", "revision", "recipes"} on standard input; the input is
also its lifeline.
"""

import contextlib
import json
import os
import subprocess
import sys
import tempfile
import threading
from collections.abc import Sequence

from qcore.base.errors import QcoreError
from qcore.recipes import Recipe, parse

LONGEST_LOG = 300  # characters of a crash that are told


class Probing:
    """A probe under way, started at once. `done` of `total` recipes, `text` says what it does; `error` is a
    sentence if it failed."""

    def __init__(self, model: str, revision: str | None, recipes: Sequence[str]):
        self.done, self.total, self.text = 0, len(recipes), "starting"
        self.error: str | None = None
        self.cancelled = False
        self._request = json.dumps(
            {"model": model, "revision": revision, "recipes": [parse(name).to_dict() for name in recipes]}
        )
        self._process: subprocess.Popen | None = None
        started = threading.Event()
        self._thread = threading.Thread(target=self._run, args=(started,), name="probing", daemon=True)
        self._thread.start()
        started.wait()

    @property
    def active(self) -> bool:
        """Is it still at work?"""
        return self._thread.is_alive()

    def join(self, timeout: float) -> None:
        """Wait for its end, at most `timeout` seconds."""
        self._thread.join(timeout)

    def cancel(self) -> None:
        """End it; the recipes that were timed are kept."""
        self.cancelled = True
        if self._process is not None:
            with contextlib.suppress(ProcessLookupError):
                self._process.kill()

    def _run(self, started: threading.Event) -> None:
        with tempfile.TemporaryFile() as log:
            try:
                self._process = subprocess.Popen(
                    [sys.executable, "-m", "qcore.jobs.probing"],
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    stderr=log,
                    text=True,
                    encoding="utf-8",
                )
                self._process.stdin.write(self._request + "\n")
                self._process.stdin.flush()
            except OSError as error:
                self.error = f"The probe could not be started: {error.strerror or error}."
                return
            finally:
                started.set()
            for line in self._process.stdout:
                event = json.loads(line)
                self.error = event.pop("error", None)
                self.done, self.total, self.text = (
                    event.get(name, getattr(self, name)) for name in ("done", "total", "text")
                )
            if self._process.wait() and not self.error and not self.cancelled:
                log.seek(0)
                last = log.read().decode("utf-8", "replace").strip().rpartition("\n")[2][:LONGEST_LOG]
                self.error = f"The probe's process ended by itself{f' ({last})' if last else ''}. Try again with fewer recipes."


def main() -> int:
    """Carry out the request on standard input."""
    from qcore.base.quiet import hush

    hush()
    request = json.loads(sys.stdin.readline())
    threading.Thread(target=_end_with_parent, daemon=True).start()
    channel = os.dup(1)
    os.dup2(2, 1)  # what libraries print goes to the log

    def send(**event) -> None:
        os.write(channel, json.dumps(event).encode() + b"\n")

    def progress(done: int, total: int, text: str = "") -> None:
        send(done=done, total=total, text=text)

    try:
        from qcore import library, models
        from qcore.base.turn import heavy_turn
        from qcore.planning import probe

        model = models.meta_model(library.outline(request["model"], request["revision"], progress=progress))
        recipes = [Recipe.from_dict(recipe) for recipe in request["recipes"]]
        with heavy_turn(progress):
            found = probe.probe(model, recipes, progress=progress)
    except QcoreError as error:
        send(error=str(error))
        return 1
    failed = [each for each in found.values() if each.error]
    if failed:
        send(error="; ".join(f"{each.recipe} could not be timed: {each.error}" for each in failed))
    return 0


def _end_with_parent() -> None:
    while sys.stdin.read(1024):
        pass
    os._exit(1)


if __name__ == "__main__":
    sys.exit(main())
