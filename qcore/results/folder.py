"""A run's folder: the authoritative state of a job, readable by any process at any time.

    runs/RUN_ID/spec.json       the request; "kind" is the kind of job, absent for a comparison
                status.json     the state, replaced atomically, written by one process at a time
                process.json    machine, pid and start of the worker, to detect a recycled pid; touched
                                every few seconds as a heartbeat
                rows/00.json    one finished recipe each, in the requested order (comparisons)
                outcome.json    the outcome (other kinds)
                history.json    the loss curve so far (training)
                result.json     everything, once the run has ended
                log.txt         output of the worker and the libraries
                cancel          exists if cancellation was requested

Imports no heavy library: the dashboard reads these files several times per second.
"""

import contextlib
import logging
import os
import re
import tempfile
from pathlib import Path
from typing import Any, cast

import psutil

from qcore.base.errors import InputError
from qcore.base.files import read_json, write_json
from qcore.base.home import home
from qcore.base.process import Identity, host_of, is_local, living
from qcore.results.rows import ResultRow

RUN_ID = re.compile(r"\d{8}-\d{6}-[0-9a-f]{6}")
ROW_FILE = re.compile(r"\d{2,}\.json")
ENDS = ("ok", "failed", "cancelled")  # states of a row
LOG_TAIL = 4000  # characters
Mark = tuple[int, int]
_log = logging.getLogger(__name__)


def runs_folder() -> Path:
    """Return the folder of all runs; create it if missing. Raise `InputError` if it cannot be created."""
    path = home() / "runs"
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(
            f"The folder {path} cannot be made ({error.strerror}); set QCORE_HOME to a "
            "folder that can be written."
        ) from error
    return path


class RunFolder:
    """Return the folder of the run `run_id`. Raise `InputError` if the id is malformed, or unknown unless
    `new`."""

    def __init__(self, run_id: str, *, new: bool = False):
        if not RUN_ID.fullmatch(run_id) or not (new or (runs_folder() / run_id / "spec.json").exists()):
            raise _unknown_run(run_id, run_ids())
        self.run_id = run_id
        self.path = runs_folder() / run_id

    def read(self, name: str) -> Any:
        """Return the JSON object in the file `name`, or None if the file is missing or damaged."""
        return _object(self.path / name)

    def write(self, name: str, value) -> None:
        """Replace the file `name` atomically."""
        write_json(self.path / name, value)

    def write_row(self, position: int, row: ResultRow) -> None:
        """Store the row of the recipe at `position`, independent of the run's end."""
        self.write(f"rows/{position:02d}.json", row)

    def rows(self) -> dict[int, ResultRow]:
        """Return the finished rows by position. Files that are no rows are named in the log and left out."""
        found: dict[int, ResultRow] = {}
        for path in sorted((self.path / "rows").glob("*.json")):
            if not ROW_FILE.fullmatch(path.name):
                _log.warning("%s is not a row of this run and is ignored", path)
                continue
            row = _object(path)
            if row is not None and not (isinstance(row.get("recipe"), str) and row.get("status") in ENDS):
                _log.warning("%s is damaged and is ignored: it names no recipe and state", path)
            elif row is not None:
                found[int(path.stem)] = cast(ResultRow, row)
        return found

    @property
    def log(self) -> Path:
        return self.path / "log.txt"

    @property
    def cancel_asked(self) -> bool:
        return (self.path / "cancel").exists()

    def log_tail(self, characters: int = LOG_TAIL) -> str:
        """Return the end of the log, cut at a line."""
        try:
            with self.log.open("rb") as file:
                size = file.seek(0, os.SEEK_END)
                file.seek(max(0, size - characters))
                text = file.read().decode("utf-8", "replace")
        except OSError:
            return ""
        return text if size <= characters else text.partition("\n")[2] or text

    def process(self) -> psutil.Process | None:
        """Return the worker, if the process started for this run is still alive on this machine."""
        return living(self._identity())

    @property
    def other_host(self) -> str | None:
        """Return the name of the run's machine if the run belongs to another machine that shares the cache
        folder; else None."""
        return host_of(self._identity())

    @property
    def is_local(self) -> bool:
        """Return whether the worker's pid counts here; otherwise only its heartbeat shows that it lives."""
        return is_local(self._identity())

    def _identity(self) -> Identity | None:
        return cast(Identity | None, self.read("process.json"))

    def beat(self) -> None:
        """Record a heartbeat of the worker."""
        with contextlib.suppress(OSError):
            os.utime(self.path / "process.json")

    def silence(self) -> float:
        """Return the seconds since the worker's last heartbeat, by the file system's clock, which all
        machines share."""
        try:
            with tempfile.TemporaryFile(dir=self.path) as now:
                return os.fstat(now.fileno()).st_mtime - (self.path / "process.json").stat().st_mtime
        except OSError:
            return float("inf")


def mark_of(folder: str | Path) -> Mark:
    """Return a mark that changes when the status in `folder` is written, and when a file of the folder is
    replaced, removed, or written for the first time. Raise `OSError` if there is no folder."""
    own = os.stat(folder).st_mtime_ns
    try:
        return own, os.stat(f"{folder}/status.json").st_mtime_ns
    except OSError:
        return own, 0


def marks() -> dict[str, Mark]:
    """Return the mark of each folder that may be a run, by its id, oldest first."""
    runs, found = str(runs_folder()), {}
    for name in sorted(os.listdir(runs)):
        if RUN_ID.fullmatch(name):
            with contextlib.suppress(OSError):  # it was removed just now
                found[name] = mark_of(f"{runs}/{name}")
    return found


def run_ids() -> list[str]:
    """Return all run ids, oldest first."""
    runs = str(runs_folder())
    return sorted(
        name
        for name in os.listdir(runs)
        if RUN_ID.fullmatch(name) and os.path.exists(f"{runs}/{name}/spec.json")
    )


def _object(path: Path) -> dict[str, Any] | None:
    value = read_json(path)
    if value is not None and not isinstance(value, dict):
        _log.warning("%s is damaged and is ignored: it holds no object", path)
        return None
    return value


def _unknown_run(run_id: str, known: list[str]) -> InputError:
    from qcore.base.registry import unknown

    if not known:
        return InputError(f"There is no run {run_id[:40]!r}. Choose one from the list of runs.")
    return unknown("run", run_id[:40], known[-5:])
