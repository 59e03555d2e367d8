"""Submit a run, look at it, stop it: everything another process (a page, the command line, a script) does
with runs.

The disk is the truth. `submit` writes the request into a new folder and starts the worker in a session of its
own, so closing a tab, rerunning a page or restarting the server ends nothing; any process finds the run again
by its id. The worker queues itself (see `worker.py`) and reports through `status.json`; this module reads
that file, and checks that whoever wrote it still lives.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import secrets
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field, fields

import psutil
from filelock import FileLock

from qcore.base.errors import InputError, RunError
from qcore.base.executor import LOCAL, Engine
from qcore.base.process import PATIENCE_SECONDS, START_SECONDS, end, identity, start_detached
from qcore.base.registry import unknown
from qcore.recipes.spec import RunSpec
from qcore.results.folder import RunFolder, run_ids, runs_folder
from qcore.results.store import Store, judged_rows, keep_end

ACTIVE = ("queued", "running")
DOUBLE_CLICK_SECONDS = 2.0
HERE = Engine()
_started: list[subprocess.Popen] = []  # workers of this process, kept so that they are reaped


@dataclass(frozen=True)
class Status:
    """Where a run stands.

    `state`: queued, running, done (at least one recipe succeeded), failed (none did), cancelled, or
    interrupted (its process was killed from outside). `phase` is for people. `done` of `total` counts within
    the phase; `fraction` (0 … 1) and `eta_s` (seconds, None while unknown) cover the whole run. `place`
    counts the runs that go first. Times are seconds since 1970. `spec` is `RunSpec.to_dict()`. `recipes`
    holds one {"recipe", "state", "phase"} each, states as above plus "ok" and "waiting". `error_kind` is the
    class of `error` from `qcore.base.errors`, so that bad input can be told from a failure.
    """

    run_id: str
    state: str
    phase: str = ""
    done: int = 0
    total: int = 0
    fraction: float = 0.0
    eta_s: float | None = None
    place: int | None = None
    created_at: float | None = None
    started_at: float | None = None
    finished_at: float | None = None
    error: str | None = None
    error_kind: str | None = None
    spec: dict = field(default_factory=dict)
    log_tail: str = ""
    recipes: list[dict] = field(default_factory=list)

    @property
    def active(self) -> bool:
        """Queued or running."""
        return self.state in ACTIVE

    def to_dict(self) -> dict:
        """A JSON-ready dictionary."""
        return asdict(self)


def submit(spec: RunSpec, engine: Engine = HERE) -> str:
    """Start the run, or queue it behind those that came first, and return its id at once. With another
    `engine` than this machine its recipes are spread over a cluster.

    The same request twice within two seconds (a double click) is one run, as long as the first has not ended.
    Raises `InputError` if the cache folder cannot be written.
    """
    spec = spec.absolute()
    request = spec.to_dict()
    engine.check()
    digest = hashlib.sha256(json.dumps([request, asdict(engine)], sort_keys=True).encode()).hexdigest()
    with FileLock(str(runs_folder() / ".submit.lock")):
        now = time.time()
        for run_id in reversed(run_ids()):
            about = RunFolder(run_id).read("status.json") or {}
            if now - (about.get("created_at") or 0) > DOUBLE_CLICK_SECONDS:
                break
            if about.get("digest") == digest and status(run_id).active:
                return run_id
        folder = _new_folder(now)
        try:
            folder.write("status.json", _first_status(folder.run_id, now, digest, request))
            if not engine.is_local:
                folder.write("engine.json", asdict(engine))
            folder.write("spec.json", request)  # last: from here on the run exists for others
            _start(folder)
        except OSError as error:
            shutil.rmtree(folder.path, ignore_errors=True)
            raise RunError(f"The run could not be started: {error.strerror or error}.") from error
    return folder.run_id


def status(run_id: str) -> Status:
    """Where the run stands now. A run whose process is gone is settled as interrupted (or cancelled, if that
    was asked).

    Raises `InputError` for an unknown id.
    """
    folder = RunFolder(run_id)
    about = folder.read("status.json") or {
        "state": "interrupted",
        "error": "The record of this run is damaged.",
    }
    if about["state"] in ACTIVE and not _alive(folder, about):
        about = folder.read("status.json") or about  # it may have ended between the two looks
        if about["state"] in ACTIVE:
            about = _settle(folder, about)
    place = _place(run_id) if about["state"] == "queued" else None
    names = Status.__dataclass_fields__
    known = {
        name: value
        for name, value in about.items()
        if name in names and name not in ("run_id", "place", "log_tail", "spec")
    }
    if place is not None:
        known["phase"] = _queue_words(place)
    return Status(
        run_id=run_id, place=place, spec=folder.read("spec.json") or {}, log_tail=folder.log_tail(), **known
    )


def list_runs() -> list[Status]:
    """All runs, newest first."""
    return [status(run_id) for run_id in reversed(run_ids())]


def rows(run_id: str, margin: float | None = None) -> list[dict]:
    """The rows that are finished so far, in the order their recipes were asked for, each with its verdict
    within the margin of the run or another `margin`."""
    return list(judged_rows(RunFolder(run_id), margin).values())


def follow(run_id: str, interval: float = 0.3) -> Iterator[Status]:
    """Yield the status whenever it changes, and a last time when the run has ended."""
    last = None
    while True:
        now = status(run_id)
        if now != last:
            yield now
        if not now.active:
            return
        last = now
        time.sleep(interval)


def cancel(run_id: str) -> Status:
    """End a queued or running run, children included, and return its status; rows that are finished are kept.

    The process group is asked to end, and killed if it has not after a few seconds. A run that has ended
    stays as it is.
    """
    folder = RunFolder(run_id)
    if not status(run_id).active:
        return status(run_id)
    (folder.path / "cancel").touch()
    process = _wait_for_process(folder)
    if process is not None:
        end(process, PATIENCE_SECONDS)
    return status(run_id)


def delete(run_id: str) -> None:
    """Remove an ended run's folder and its rows. Raises `InputError` while it is queued or running."""
    folder = RunFolder(run_id)
    if status(run_id).active:
        raise InputError(f"The run {run_id} has not ended; cancel it first.")
    (folder.path / "spec.json").unlink(
        missing_ok=True
    )  # first: from here on it is no run any more, even if the rest is cut short
    shutil.rmtree(folder.path)
    Store().delete(run_id)


def repeat(run_id: str) -> str:
    """Submit the same request again, from the run's own record, and return the new id."""
    folder = RunFolder(run_id)
    request = folder.read("spec.json")
    if request is None:
        raise InputError(f"The run {run_id} has no readable request to repeat.")
    return submit(RunSpec.from_dict(request))


def compare(model: str, recipes, *, engine: str = LOCAL, address: str | None = None, **options) -> list[dict]:
    """Run `recipes` on `model` and wait: one row for each, in order. `options` are the other fields of
    `RunSpec`; `engine` and `address` as in `qcore.base.executor.Engine`.

    Raises `InputError` for input that no recipe can work with; a recipe that failed by itself is a row with
    its error.
    """
    from qcore.verbs.checks import check_run

    names = [known.name for known in fields(RunSpec)]
    for name in options:
        if name not in names:
            raise unknown("option", name, names)
    where = Engine(engine, address)
    spec, _ = check_run(RunSpec(model=model, recipes=recipes, **options))
    run_id = submit(spec, where)
    try:
        for now in follow(run_id):
            last = now
    except BaseException:
        cancel(run_id)
        raise
    if last.state == "failed" and last.error_kind == "InputError":
        raise InputError(last.error)
    if last.state in ("interrupted", "cancelled"):
        raise RunError(last.error or f"The run {run_id} was {last.state}.")
    return rows(run_id)


def _new_folder(now: float) -> RunFolder:
    while True:
        stamp = time.strftime("%Y%m%d-%H%M%S", time.gmtime(now))
        folder = RunFolder(f"{stamp}-{_tick(now)}", new=True)
        try:
            folder.path.mkdir()
        except FileExistsError:
            now += 1e-3
            continue
        except OSError as error:
            raise InputError(f"The folder {folder.path} cannot be made: {error.strerror}.") from error
        return folder


def _tick(now: float) -> str:
    """Six hexadecimal digits: the fraction of the second first, so that ids sort in the order of
    submission."""
    return f"{int(now % 1 * 4096):03x}" + secrets.token_hex(2)[:3]


def _first_status(run_id: str, now: float, digest: str, request: dict) -> dict:
    waiting = [{"recipe": recipe["name"], "state": "waiting", "phase": ""} for recipe in request["recipes"]]
    return {
        "run_id": run_id,
        "state": "queued",
        "phase": "Starting",
        "created_at": now,
        "digest": digest,
        "recipes": waiting,
    }


def worker_command(folder: RunFolder) -> list[str]:
    """The command line of a run's worker."""
    return [sys.executable, "-m", "qcore.jobs.worker", str(folder.path)]


def _start(folder: RunFolder) -> None:
    """Start the worker, its output into the run's log."""
    with folder.log.open("ab") as log:
        worker = start_detached(worker_command(folder), log)
    _started.append(worker)
    with contextlib.suppress(psutil.Error):  # it ended already, and `status` will find that out
        folder.write("process.json", identity(worker.pid))


def _alive(folder: RunFolder, about: dict) -> bool:
    for worker in list(_started):
        if worker.poll() is not None:
            _started.remove(worker)
    if folder.read("process.json") is None:
        return time.time() - (about.get("created_at") or 0) < START_SECONDS
    return folder.process() is not None


def _wait_for_process(folder: RunFolder) -> psutil.Process | None:
    """The worker, waiting for a submission that is just being made to note who it is."""
    with FileLock(str(runs_folder() / ".submit.lock")):
        return folder.process()


def _settle(folder: RunFolder, about: dict) -> dict:
    """Write the end of a run whose worker could not: nobody else writes to this folder any more."""
    cancelled = folder.cancel_asked
    state = "cancelled" if cancelled else "interrupted"
    finished = folder.rows()
    for position, recipe in enumerate(about.get("recipes", [])):
        if recipe["state"] in ("waiting", "running", "queued"):
            row = finished.get(position)
            recipe |= {"state": row["status"] if row else state, "phase": ""}
    if cancelled:
        error = None
    else:
        kept = f"{len(finished)} finished rows were kept" if finished else "no recipe had finished"
        where = f" while it was at: {about['phase']}" if about.get("phase") else ""
        error = f"The run's process was killed from outside{where}; {kept}."
    about = {
        **about,
        "state": state,
        "phase": state.capitalize(),
        "finished_at": time.time(),
        "eta_s": None,
        "error": error,
    }
    keep_end(folder, about)
    return about


def _place(run_id: str) -> int:
    """How many runs, running or queued, go before this one."""
    return sum(active_before(run_id))


def active_before(run_id: str) -> Iterator[bool]:
    """True for each earlier run that has not ended."""
    for earlier in run_ids():
        if earlier >= run_id:
            return
        folder = RunFolder(earlier)
        about = folder.read("status.json") or {}
        if about.get("state") in ACTIVE and _alive(folder, about):
            yield True


def _queue_words(place: int) -> str:
    if place == 0:
        return "Starting"
    return "Waiting for the run before it" if place == 1 else f"Waiting for {place} runs before it"
