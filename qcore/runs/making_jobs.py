"""Models being made in a process of its own, for a page that watches, stops and looks back: training, pruning, distillation.

    QCORE_HOME/making/ID/request.json     what was asked for: kind, model, arguments
                         status.json      where it stands: state, done, total, words
                         history.json     the loss curve so far (training and distillation)
                         result.json      what came out, with the comparison to the model it began with
                         process.json     pid and start time of the worker
                         log.txt          what the worker printed
    QCORE_HOME/made/NAME                  the models themselves

One at a time. A training that was stopped goes on when the same is asked for again.
"""

from __future__ import annotations

import os
import secrets
import signal
import subprocess
import sys
import time
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

from qcore.errors import InputError
from qcore.home import home
from qcore.jsonfile import read_json, write_json
from qcore.runs.folder import identity, living
from qcore.runs.single import safe_name
from qcore.spec import absolute_path

KINDS = ("qat", "prune", "distill")
PATIENCE_SECONDS = 5.0
START_SECONDS = 30.0
KEPT = 50  # records


@dataclass(frozen=True)
class Request:
    """`kind` is "qat", "prune" or "distill"; `arguments` are what the functions of `qcore.runs.making` take, options by their fields.

    Raises `InputError` for what cannot be used, before anything is started.
    """

    kind: str
    model: str
    arguments: dict = field(default_factory=dict)
    revision: str | None = None

    def __post_init__(self):
        if self.kind not in KINDS:
            raise InputError(f"kind is {self.kind!r}, but it must be one of {', '.join(KINDS)}.")
        if not self.model.strip():
            raise InputError("No model was given; name a folder, a hub id, or smollm2-135m.")
        call(self, None, None, None, check=True)

    @property
    def name(self) -> str:
        """A folder name that says what the model is."""
        about = self.arguments
        if self.kind == "qat":
            return safe_name(self.model, f"{about['recipe']}-trained")
        if self.kind == "distill":
            return safe_name(self.model, f"{about['layers']}-layers")
        suffix = f"-{about['recipe']}" if about.get("recipe") else ""
        return safe_name(self.model, f"{about['method'].replace(':', 'of')}-{round(100 * about['amount'])}{suffix}")


def call(request: Request, out: Path | None, progress, watch, *, check: bool = False) -> dict | None:
    """Do what the request says and return what came out; with `check` only find out whether it can be asked for."""
    from qcore.recipes import parse
    from qcore.runs import making

    about = {"revision": request.revision, "overwrite": True, "compare": True, "progress": progress, "watch": watch}
    given = dict(request.arguments)
    if request.kind == "prune":
        recipe = parse(given.pop("recipe")) if given.get("recipe") else given.pop("recipe", None)
        if check:
            return making.check_pruning(given["method"], given["amount"], recipe, given.get("order", "before"), given.get("sparse", False))
        return making.prune(request.model, given.pop("method"), given.pop("amount"), out, recipe=recipe, **given, **about)
    from qcore.training.loop import Schedule

    schedule = Schedule(**given.pop("schedule", {}))
    if request.kind == "qat":
        from qcore.training.attach import Form
        from qcore.training.qat import Qat, check_recipe

        recipe = parse(given.pop("recipe"))
        check_recipe(recipe)
        options = Qat(form=Form(**given.pop("form", {})), schedule=schedule, **given)
        return None if check else making.train_quantized(request.model, recipe, options, out, **about)
    from qcore.training.distill import Distill

    options = Distill(schedule=schedule, **given)
    return None if check else making.distill(request.model, options, out, **about)


@dataclass(frozen=True)
class Status:
    """`state`: "running", "done", "failed", "cancelled" or "interrupted" (its process was killed)."""

    job: str
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
        """Whether something is being made."""
        return self.state == "running"

    @property
    def fraction(self) -> float:
        """Share of the present step, 0 … 1."""
        return min(1.0, self.done / self.total) if self.total else 0.0

    @property
    def history(self) -> dict | None:
        """The loss curve so far, see `qcore.training.loop.History`."""
        return read_json(folder(self.job) / "history.json")

    @property
    def result(self) -> dict | None:
        """What came out."""
        return read_json(folder(self.job) / "result.json")


def folder(job: str = "") -> Path:
    """Where the job lies, or all jobs."""
    return home() / "making" / job


def jobs() -> list[Status]:
    """All that are known, the newest first."""
    names = sorted((path.name for path in folder().glob("*") if (path / "status.json").exists()), reverse=True)
    return [found for name in names[:KEPT] if (found := status(name)) is not None]


def submit(request: Request) -> str:
    """Start, and return the job's name. Raises `InputError` while another is under way."""
    if any(each.active for each in jobs()):
        raise InputError("A model is being made already; wait for it, or cancel.")
    texts = {name: absolute_path(value) for name, value in request.arguments.items() if name in ("text", "validation", "calibration")}
    model = absolute_path(request.model) or request.model
    request = replace(request, model=model, arguments=request.arguments | texts)
    job = f"{time.strftime('%Y%m%d-%H%M%S')}-{secrets.token_hex(3)}"
    place = folder(job)
    write_json(place / "request.json", asdict(request))
    write_json(place / "status.json", {"state": "running", "words": "starting", "started_at": time.time()})
    root = str(Path(__file__).resolve().parents[2])
    path = os.pathsep.join(filter(None, [root, os.environ.get("PYTHONPATH")]))
    with (place / "log.txt").open("wb") as log:
        worker = subprocess.Popen(
            [sys.executable, "-m", "qcore.runs.making_worker", job],
            stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True, env={**os.environ, "PYTHONPATH": path},
        )  # fmt: skip
    write_json(place / "process.json", identity(worker.pid))
    return job


def status(job: str) -> Status | None:
    """Where a job stands; None if there is none of that name."""
    place = folder(job)
    about = read_json(place / "status.json")
    if about is None:
        return None
    if about["state"] == "running" and not _alive(place, about):
        about = read_json(place / "status.json") or about  # it may have ended between the two looks
        if about["state"] == "running":
            about |= {"state": "interrupted", "error": "Its process was killed from outside. Ask for the same again: training goes on."}
    known = {name: about[name] for name in Status.__dataclass_fields__ if name in about}
    return Status(**known | {"job": job, "request": read_json(place / "request.json")})


def cancel(job: str) -> None:
    """Stop what is being made; what was trained is kept for two weeks, and the same request goes on from there."""
    place = folder(job)
    process, about = living(read_json(place / "process.json")), read_json(place / "status.json")
    if process is None or about is None or about["state"] != "running":
        return
    os.kill(process.pid, signal.SIGTERM)
    deadline = time.monotonic() + PATIENCE_SECONDS
    while living(read_json(place / "process.json")) is not None and time.monotonic() < deadline:
        time.sleep(0.05)
    if living(read_json(place / "process.json")) is not None:
        os.kill(process.pid, signal.SIGKILL)
    now = read_json(place / "status.json") or about
    write_json(place / "status.json", now | {"state": "cancelled", "words": "cancelled", "finished_at": time.time()})


def _alive(place: Path, about: dict) -> bool:
    record = read_json(place / "process.json")
    if record is None:
        return time.time() - (about.get("started_at") or 0) < START_SECONDS
    return living(record) is not None
