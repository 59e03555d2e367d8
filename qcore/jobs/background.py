"""A long piece of work in a process of its own, which a page can watch and stop: started, looked at and ended
through a folder of files.

request.json     what was asked for
status.json      where it stands: the fields of `Status`; the worker rewrites it
process.json     pid and start time of the worker
log.txt          what the worker printed
"""

from __future__ import annotations

import sys
import time
from dataclasses import dataclass
from pathlib import Path

from qcore.base import process
from qcore.base.files import read_json, write_json


@dataclass(frozen=True, kw_only=True)
class Status:
    """`state`: "running", "done", "failed", "cancelled" or "interrupted" (its process was killed); `done` of
    `total`: of the step."""

    state: str
    words: str = ""
    done: int = 0
    total: int = 0
    error: str | None = None
    started_at: float | None = None
    finished_at: float | None = None
    request: dict | None = None

    @property
    def active(self) -> bool:
        """Whether the work is under way."""
        return self.state == "running"

    @property
    def fraction(self) -> float:
        """Share of the present step, 0 … 1."""
        return min(1.0, self.done / self.total) if self.total else 0.0


def start(place: Path, request: dict, module: str, *arguments: str) -> None:
    """Run `python -m module arguments` for the `request`, with `place` as its folder."""
    (place / "process.json").unlink(missing_ok=True)
    write_json(place / "request.json", request)
    write_json(place / "status.json", {"state": "running", "words": "starting", "started_at": time.time()})
    with (place / "log.txt").open("wb") as log:
        worker = process.start_detached([sys.executable, "-m", module, *arguments], log)
    write_json(place / "process.json", process.identity(worker.pid))


def look(place: Path, kind: type[Status], advice: str, **more) -> Status | None:
    """Where the work in `place` stands, as a `kind` with `more` fields; None if there never was any. `advice`
    is what to do about a process that was killed."""
    about = read_json(place / "status.json")
    if about is None:
        return None
    if about["state"] == "running" and not _alive(place, about):
        about = read_json(place / "status.json") or about  # it may have ended between the two looks
        if about["state"] == "running":
            about |= {"state": "interrupted", "error": f"Its process was killed from outside. {advice}"}
    known = {name: about[name] for name in kind.__dataclass_fields__ if name in about}
    return kind(**known | {"request": read_json(place / "request.json")} | more)


def end(place: Path) -> None:
    """Stop the work in `place`, if it is under way."""
    worker, about = process.living(read_json(place / "process.json")), read_json(place / "status.json")
    if worker is None or about is None or about["state"] != "running":
        return
    process.end(worker)
    now = read_json(place / "status.json") or about
    write_json(
        place / "status.json", now | {"state": "cancelled", "words": "cancelled", "finished_at": time.time()}
    )


def _alive(place: Path, about: dict) -> bool:
    record = read_json(place / "process.json")
    if record is None:
        return time.time() - (about.get("started_at") or 0) < process.START_SECONDS
    return process.living(record) is not None
