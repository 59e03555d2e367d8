"""Models being made in a process of its own, for a page that watches, stops and looks back: training,
pruning, distillation.

    QCORE_HOME/making/ID/                 see `qcore.jobs.background`; the request holds kind, model, arguments
                         history.json     the loss curve so far (training and distillation)
                         result.json      what came out, with the comparison to the model it began with
    QCORE_HOME/made/NAME                  the models themselves

One at a time. A training that was stopped goes on when the same is asked for again.
"""

from __future__ import annotations

import secrets
import time
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

from qcore.base.errors import InputError
from qcore.base.files import read_json
from qcore.base.home import home
from qcore.jobs import background
from qcore.recipes.spec import absolute_model, absolute_path
from qcore.verbs.record import safe_name

KINDS = ("qat", "prune", "distill")
KEPT = 50  # records


@dataclass(frozen=True)
class Request:
    """`kind` is "qat", "prune" or "distill"; `arguments` are the fields of `Qat`, `Prune` or
    `Distill`, and the recipe.

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
        return safe_name(
            self.model, f"{about['method'].replace(':', 'of')}-{round(100 * about['amount'])}{suffix}"
        )


def call(request: Request, out: Path | None, progress, watch, *, check: bool = False) -> dict | None:
    """Do what the request says and return what came out; with `check` only find out whether the options are
    valid."""
    from qcore.recipes import parse
    from qcore.training.loop import Schedule

    about = {"revision": request.revision, "overwrite": True, "compare": True, "progress": progress}
    given = dict(request.arguments)
    if request.kind == "prune":
        from qcore.verbs import prune

        given["recipe"] = parse(given["recipe"]) if given.get("recipe") else None
        options = prune.Prune(**given)
        return None if check else prune.run(request.model, options, out, **about)
    schedule = Schedule(**given.pop("schedule", {}))
    if request.kind == "qat":
        from qcore.training.attach import Form
        from qcore.training.qat import Qat, check_recipe
        from qcore.verbs import qat

        recipe = parse(given.pop("recipe"))
        check_recipe(recipe)
        options = Qat(form=Form(**given.pop("form", {})), schedule=schedule, **given)
        return None if check else qat.run(request.model, recipe, options, out, watch=watch, **about)
    from qcore.training.distill import Distill
    from qcore.verbs import distill

    options = Distill(schedule=schedule, **given)
    return None if check else distill.run(request.model, options, out, watch=watch, **about)


@dataclass(frozen=True, kw_only=True)
class Status(background.Status):
    """Where the making of a model called `job` stands."""

    job: str

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
    names = sorted(
        (path.name for path in folder().glob("*") if (path / "status.json").exists()), reverse=True
    )
    return [found for name in names[:KEPT] if (found := status(name)) is not None]


def submit(request: Request) -> str:
    """Start, and return the job's name. Raises `InputError` while another is under way."""
    if any(each.active for each in jobs()):
        raise InputError("A model is being made already; wait for it, or cancel.")
    texts = {
        name: absolute_path(value)
        for name, value in request.arguments.items()
        if name in ("text", "validation", "calibration")
    }
    model = absolute_model(request.model)
    request = replace(request, model=model, arguments=request.arguments | texts)
    job = f"{time.strftime('%Y%m%d-%H%M%S')}-{secrets.token_hex(3)}"
    background.start(folder(job), asdict(request), "qcore.jobs.making_worker", job)
    return job


def status(job: str) -> Status | None:
    """Where a job stands; None if there is none of that name."""
    return background.look(folder(job), Status, "Ask for the same again: training goes on.", job=job)


def cancel(job: str) -> None:
    """Stop what is being made; what was trained is kept for two weeks, and the same request goes on from
    there."""
    background.end(folder(job))
