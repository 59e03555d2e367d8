"""Submit, inspect and cancel jobs: everything that another process (a page, the command line, a script) does
with jobs of any kind.

The disk holds the state. `submit` writes the request into a new folder and starts the worker in a separate
session, so a job survives a closed tab, a page rerun or a server restart, and any process finds it again by
its id. The worker queues itself (see `worker.py`) and reports through `status.json`; this module reads that
file, and checks that its writer is alive.

Several machines may share the folder. A job of another machine or container is judged by its heartbeat
alone: it queues with the other jobs, is never settled from another machine, and ends itself when cancelled.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import secrets
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from dataclasses import asdict, fields
from types import MappingProxyType
from typing import Any

import psutil

from qcore.base.errors import InputError, RunError
from qcore.base.executor import LOCAL, Executor
from qcore.base.limits import limits
from qcore.base.process import PATIENCE_SECONDS, START_SECONDS, end, host, identity, start_detached
from qcore.base.registry import unknown
from qcore.base.turn import held
from qcore.jobs import public
from qcore.jobs.kind import Checked, Request
from qcore.jobs.kinds import MAKING, kind_of
from qcore.jobs.status import ACTIVE, COMPARE, JobStatus, StatusRecord
from qcore.recipes.spec import RunSpec, beside
from qcore.results.folder import Mark, RunFolder, mark_of, marks, run_ids, runs_folder
from qcore.results.rows import ResultRow
from qcore.results.store import Store, judged_rows, keep_end

DOUBLE_CLICK_SECONDS = 2.0
SUBMITTING = ".submit.lock"
LOCK_SECONDS = 30.0  # for which another submission is waited for
SILENT_SECONDS = 60.0  # of silence after which a job of another machine counts as dead
HERE = Executor()
NOTHING: Mapping[int, ResultRow] = MappingProxyType({})
_started: list[subprocess.Popen] = []  # workers of this process, to be reaped
_ended: dict[str, tuple[Mark, JobStatus]] = {}  # jobs that have ended, and the marks of their folders
_lock = threading.Lock()


def submit(
    request: Request | Checked,
    engine: Executor = HERE,
    *,
    visitor: str | None = None,
    asked: float | None = None,
    finished: Mapping[int, ResultRow] = NOTHING,
) -> str:
    """Start the job, or queue it behind earlier jobs, and return its id at once. An `engine` other than this
    machine spreads the recipes of a comparison over a cluster. `visitor`: who submits it on a public server,
    within the limits of `qcore.jobs.public`.

    The same request twice within two seconds (a double click) is one job, as long as the first has not ended.
    `asked` is the time of the click, in seconds since 1970, where checks came between: a job that another
    click started since then is the answer to this one as well. `finished` are rows of a comparison that are
    not measured again. Raise `InputError` if the cache folder cannot be written, and for what a visitor may
    not request.
    """
    record = request.absolute().to_dict()
    engine.check()
    if visitor is not None:
        public.check_request(record)
    words = [record, asdict(engine), visitor, host()]  # a double click does not span visitors or machines
    digest = hashlib.sha256(json.dumps(words, sort_keys=True).encode()).hexdigest()
    with held(runs_folder() / SUBMITTING, LOCK_SECONDS):
        now = time.time()
        asked = now if asked is None else asked
        for run_id in reversed(run_ids()):
            about = RunFolder(run_id).read("status.json") or {}
            before = asked - (about.get("created_at") or 0)
            if before > DOUBLE_CLICK_SECONDS:
                break
            if about.get("digest") == digest:
                found = status(run_id)
                if found.active or (before < 0 and found.state != "cancelled"):
                    return run_id
        if visitor is not None:
            public.admit(visitor, list_runs())
        folder = _new_folder(now)
        try:
            first = _first_status(folder.run_id, now, digest, request.kind, record)
            folder.write("status.json", first | _granted(visitor))
            if not engine.is_local:
                folder.write("engine.json", asdict(engine))
            for position, row in finished.items():
                folder.write_row(position, row)
            folder.write("spec.json", record)  # last: makes the job visible to other processes
            _start(folder)
        except OSError as error:
            shutil.rmtree(folder.path, ignore_errors=True)
            raise RunError(f"The run could not be started: {error.strerror or error}.") from error
    return folder.run_id


def status(run_id: str) -> JobStatus:
    """Return the current status of the job. A job without a living process is settled as interrupted (or
    cancelled, if that was requested).

    Raise `InputError` for an unknown id.
    """
    folder = RunFolder(run_id)
    try:
        mark = mark_of(folder.path)
    except OSError:  # it was removed just now
        mark = 0, 0
    kept = _ended.get(run_id)
    if kept is not None and kept[0] == mark:
        return kept[1]
    about: StatusRecord = folder.read("status.json") or StatusRecord()
    if not isinstance(about.get("state"), str):
        about = StatusRecord(state="interrupted", error="The record of this run is damaged.")
    if about["state"] in ACTIVE and not _alive(folder, about):
        about = folder.read("status.json") or about  # it may have ended since the first read
        if about["state"] in ACTIVE:
            about = _settle(folder, about) if folder.other_host is None else _lost(folder, about)
    place = sum(active_before(run_id)) if about["state"] == "queued" else None
    names = JobStatus.__dataclass_fields__
    known: dict[str, Any] = {
        name: value for name, value in about.items() if name in names and name != "run_id"
    }
    if place is not None:
        known |= {"place": place, "phase": _queue_words(place)}
    request = folder.read("spec.json") or {}
    found = JobStatus(
        run_id=run_id,
        request=request,
        log_tail=folder.log_tail(),
        **{"kind": str(request.get("kind", COMPARE))} | known,
    )
    if not found.active and folder.other_host is None:
        _ended[run_id] = mark, found
    return found


def list_runs(*kinds: str) -> list[JobStatus]:
    """Return all jobs (or those of `kinds`), newest first. The folder of a job that has ended is read again
    only after a change."""
    found = []
    for run_id, mark in reversed(marks().items()):
        kept = _ended.get(run_id)
        if kept is not None and kept[0] == mark:
            found.append(kept[1])
        else:
            with contextlib.suppress(InputError):  # no request: not a run yet, or not any more
                found.append(status(run_id))
    return [each for each in found if not kinds or each.kind in kinds]


def outcome(run_id: str) -> dict | None:
    """Return the result of a job other than a comparison; None until it is done."""
    return RunFolder(run_id).read("outcome.json")


def history(run_id: str) -> dict | None:
    """Return the loss curve of a training so far; see `qcore.training.loop.History`."""
    return RunFolder(run_id).read("history.json")


def rows(run_id: str, margin: float | None = None) -> list[ResultRow]:
    """Return the finished rows of a comparison, in the order of its recipes, each with its verdict within the
    margin of the run or another `margin`."""
    return list(judged_rows(RunFolder(run_id), margin).values())


def follow(run_id: str, interval: float = 0.3) -> Iterator[JobStatus]:
    """Yield the status after each change, the last time when the run has ended."""
    last = None
    while True:
        now = status(run_id)
        if now != last:
            yield now
        if not now.active:
            return
        last = now
        time.sleep(interval)


def cancel(run_id: str) -> JobStatus:
    """End a queued or running job with its child processes, and return its status; finished results are kept.

    The process group receives SIGTERM, and is killed if it has not exited after a few seconds. A job that has
    ended is not changed.
    """
    folder = RunFolder(run_id)
    if not status(run_id).active:
        return status(run_id)
    (folder.path / "cancel").touch()
    worker = _wait_for_process(folder)
    if worker is not None:
        end(worker, PATIENCE_SECONDS)
    deadline = time.monotonic() + (0 if folder.is_local else PATIENCE_SECONDS)
    while (now := status(run_id)).active and time.monotonic() < deadline:
        time.sleep(0.1)  # the worker on the other machine sees the file `cancel`
    return now


def delete(run_id: str) -> None:
    """Remove an ended run's folder and its rows. Raise `InputError` while it is queued or running."""
    folder = RunFolder(run_id)
    if status(run_id).active:
        raise InputError(f"The run {run_id} has not ended; cancel it first.")
    (folder.path / "spec.json").unlink(
        missing_ok=True
    )  # first: without it the folder is not a run, even if the deletion is interrupted
    shutil.rmtree(folder.path)
    _ended.pop(run_id, None)
    Store().delete(run_id)


def repeat(run_id: str, *, visitor: str | None = None) -> str:
    """Submit the same request again, from the run's own record, and return the new id. Rows that an
    interrupted comparison finished are taken over. `visitor` as in `submit`."""
    folder = RunFolder(run_id)
    record = folder.read("spec.json")
    if record is None:
        raise InputError(f"The run {run_id} cannot be repeated: its request is missing or damaged.")
    engine, kind = folder.read("engine.json"), kind_of(record)
    finished = kind.finished(folder) if status(run_id).state == "interrupted" else NOTHING
    where = Executor(**engine) if engine else HERE
    request = Checked(record) if kind.name in MAKING else kind.request.from_dict(record)
    return submit(request, where, visitor=visitor, finished=finished)


def share(run_id: str) -> None:
    """Show an ended run to every visitor of a public server, as a sample. Raise `InputError` while it has not
    ended."""
    if status(run_id).active:
        raise InputError(f"The run {run_id} has not ended; share it afterwards.")
    folder = RunFolder(run_id)
    about: StatusRecord = folder.read("status.json") or StatusRecord()
    folder.write("status.json", {**about, "owner": public.SAMPLE})


def compare(
    model: str, recipes, *, files=(), engine: str = LOCAL, address: str | None = None, **options
) -> list[ResultRow]:
    """Run `recipes` on `model`, wait, and return one row per recipe, in order, then one per model in `files`
    (see `qcore.recipes.files`). `options` are the other fields of `RunSpec`; `engine` and `address` are those
    of `qcore.base.executor.Executor`.

    Raise `InputError` for input with which no recipe can run; a single failed recipe is a row with its error.
    """
    from qcore.verbs.checks import check_run

    names = [known.name for known in fields(RunSpec)]
    for name in options:
        if name not in names:
            raise unknown("option", name, names)
    where = Executor(engine, address)
    spec, _ = check_run(RunSpec(model=model, recipes=beside(recipes, files), **options))
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
    """Return six hexadecimal digits: the fraction of the second first, so that ids sort in the order of
    submission."""
    return f"{int(now % 1 * 4096):03x}" + secrets.token_hex(2)[:3]


def _first_status(run_id: str, now: float, digest: str, kind: str, record: dict) -> StatusRecord:
    recipes = record["recipes"] if kind == RunSpec.kind else ()
    return {
        "run_id": run_id,
        "kind": kind,
        "state": "queued",
        "phase": "Starting",
        "created_at": now,
        "digest": digest,
        "recipes": [{"recipe": recipe["name"], "state": "waiting", "phase": ""} for recipe in recipes],
    }


def _granted(visitor: str | None) -> StatusRecord:
    """Return the part of a first status that belongs to a visitor."""
    if visitor is None:
        return {}
    return {"owner": visitor, "limit_s": 60 * limits().minutes}


def worker_command(folder: RunFolder) -> list[str]:
    """Return the command line of a job's worker."""
    return [sys.executable, "-m", "qcore.jobs.worker", str(folder.path)]


def _start(folder: RunFolder) -> None:
    """Start the worker, its output into the run's log."""
    with folder.log.open("ab") as log:
        worker = start_detached(worker_command(folder), log)
    with _lock:
        _started.append(worker)
    with contextlib.suppress(psutil.Error):  # it ended already, which `status` detects
        folder.write("process.json", identity(worker.pid))


def _reap() -> None:
    """Reap workers of this process that have ended, so that none stays a zombie."""
    with _lock:
        _started[:] = [worker for worker in _started if worker.poll() is None]


def _alive(folder: RunFolder, about: StatusRecord) -> bool:
    _reap()
    if folder.read("process.json") is None:
        return abs(time.time() - (about.get("created_at") or 0)) < START_SECONDS
    if not folder.is_local:
        return folder.silence() < SILENT_SECONDS
    return folder.process() is not None


def _wait_for_process(folder: RunFolder) -> psutil.Process | None:
    """Return the worker, after waiting for a submission in progress to record its process."""
    with held(runs_folder() / SUBMITTING, LOCK_SECONDS):
        return folder.process()


def _settle(folder: RunFolder, about: StatusRecord) -> StatusRecord:
    """Write the final status of a job whose worker died: no other process writes to this folder now."""
    cancelled = folder.cancel_asked
    state = "cancelled" if cancelled else "interrupted"
    finished = folder.rows()
    for position, recipe in enumerate(about.get("recipes", [])):
        if recipe["state"] in ("waiting", "running", "queued"):
            row = finished.get(position)
            recipe |= {"state": row["status"] if row else state, "phase": ""}
    where = f" while it was at: {about['phase']}" if about.get("phase") else ""
    try:
        kind = kind_of(folder.read("spec.json"))
        kind.clear(folder)
        kept = kind.kept(folder)
    except InputError:
        kept = "this version of qcore does not know its kind"
    about = {
        **about,
        "state": state,
        "phase": state.capitalize(),
        "finished_at": time.time(),
        "eta_s": None,
        "error": None if cancelled else f"The run's process was killed from outside{where}; {kept}.",
    }
    keep_end(folder, about)
    return about


def _lost(folder: RunFolder, about: StatusRecord) -> StatusRecord:
    """Return the status of a silent job of another machine. Nothing is written: the job may yet go on."""
    error = f"The machine {folder.other_host} has not reported on this run for a minute or more."
    return {**about, "state": "interrupted", "phase": "Interrupted", "eta_s": None, "error": error}


def active_before(run_id: str) -> Iterator[bool]:
    """Yield True for each earlier job that has not ended."""
    for earlier, mark in marks().items():
        if earlier >= run_id:
            return
        kept = _ended.get(earlier)
        if kept is not None and kept[0] == mark:
            continue
        try:
            folder = RunFolder(earlier)
        except InputError:  # no request: not a run
            continue
        about: StatusRecord = folder.read("status.json") or StatusRecord()
        if about.get("state") in ACTIVE and _alive(folder, about):
            yield True


def _queue_words(place: int) -> str:
    if place == 0:
        return "Starting"
    return "Waiting for the run before it" if place == 1 else f"Waiting for {place} runs before it"
