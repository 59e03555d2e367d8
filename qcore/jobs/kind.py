"""The parts of a kind of job: a request, tasks that run in separate processes, and the handling of their
outcomes.

A `JobKind` is registered in `qcore.jobs.kinds.KINDS`. Its `run` executes a task in a child process (see
`child.py`); its `course` is the worker's side (see `worker.py`): the tasks, the wording of progress, and the
final state. Most kinds have a single task and use `Course` unchanged.
"""

from __future__ import annotations

import signal
import time
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, fields, is_dataclass, replace
from pathlib import Path
from typing import ClassVar, Protocol, Self

from qcore.base.errors import InputError, RunError
from qcore.base.home import is_public
from qcore.base.progress import Progress
from qcore.jobs.estimate import Account, Shares
from qcore.jobs.status import StatusRecord
from qcore.recipes.spec import RunSpec, absolute_model, absolute_path
from qcore.results.folder import RunFolder
from qcore.results.rows import ResultRow

HISTORY_SECONDS = 0.3
WHOLE = "job"  # the single task of most kinds


class Request(Protocol):
    """The request of a job. `RunSpec` is the request of comparisons."""

    kind: ClassVar[str]

    @property
    def model(self) -> str:
        """Name of the job's model."""

    def to_dict(self) -> dict:
        """Return a JSON-ready dictionary, from which `JobKind.request` reads it again."""

    def absolute(self) -> Self:
        """Return the same request with relative paths made absolute."""


@dataclass(frozen=True, kw_only=True)
class JobRequest:
    """Base of the requests: fields are plain values, or dataclasses that convert to and from JSON.

    `FILES` names the fields, or fields of fields ("options.text"), that may hold paths.
    """

    kind: ClassVar[str]
    FILES: ClassVar[tuple[str, ...]] = ()
    model: str
    revision: str | None = None

    def __post_init__(self):
        if not isinstance(self.model, str) or not self.model.strip():
            raise InputError("No model was given; name a folder, a hub id, or smollm2-135m.")

    def check(self, progress: Progress) -> None:
        """Raise `InputError` for input that can be rejected before the job starts; may need a download."""

    def to_dict(self) -> dict:
        """Return a JSON-ready dictionary."""
        return {"kind": self.kind} | {f.name: _plain(getattr(self, f.name)) for f in fields(self)}

    @classmethod
    def from_dict(cls, record: dict) -> Self:
        """Rebuild a request from `to_dict`. Raise `InputError` if a field is missing, unknown or out of
        range."""
        try:
            return cls(**cls.read({name: value for name, value in record.items() if name != "kind"}))
        except (KeyError, TypeError, AttributeError) as error:
            raise InputError(f"This record of a run cannot be read: {error}.") from error

    @classmethod
    def read(cls, record: dict) -> dict:
        """Return the fields of a record, with dictionaries converted to objects."""
        return record

    def absolute(self) -> Self:
        """Return the same request with relative paths made absolute. On a public server a model's name is
        never a path."""
        made = self if is_public() else replace(self, model=absolute_model(self.model))
        for name in self.FILES:
            made = _absolute(made, name.split("."))
        return made


@dataclass(frozen=True)
class Checked:
    """The `record` of a request that has been checked: by the process that wrote it, or by the worker process
    of the dashboard, because some requests need torch to be built."""

    record: dict

    @property
    def kind(self) -> str:
        """The kind of job."""
        return self.record["kind"]

    @property
    def model(self) -> str:
        """Name of the job's model."""
        return self.record["model"]

    def to_dict(self) -> dict:
        """Return the record."""
        return self.record

    def absolute(self) -> Self:
        """Return the request, whose paths are absolute."""
        return self


class JobKind(ABC):
    """One kind of job. `title` is its display name. With `resumes` a killed task continues from its saved
    state; the worker restarts it once automatically."""

    name: str
    title: str
    resumes = False
    request: type[JobRequest] | type[RunSpec]

    def describe(self, record: dict) -> str:
        """Return a short description of the request, without the model."""
        return self.title

    def kept(self, folder: RunFolder) -> str:
        """Return a phrase for the results that an interrupted job keeps."""
        return "repeat it, and it goes on where it was" if self.resumes else "nothing was kept"

    def clear(self, folder: RunFolder) -> None:  # noqa: B027 (most kinds leave nothing)
        """Remove what an ended job needs no longer."""

    def finished(self, folder: RunFolder) -> dict[int, ResultRow]:
        """Return the rows of an interrupted job that a repeated one takes over."""
        return {}

    def course(self, folder: RunFolder, status: StatusRecord) -> Course:
        """Return the worker's side of a job."""
        return Course(folder, status)

    @abstractmethod
    def run(self, request, context: Context) -> dict | None:
        """Run the task of `context` in the child process, and return its result, JSON-ready."""


@dataclass
class Context:
    """The context of a task: the job's `folder`, the `task`, and `send`, which accepts events."""

    folder: RunFolder
    task: str
    send: Callable[[dict], None]
    _written: float = 0.0

    @property
    def progress(self) -> Progress:
        """The callback that reports progress to the worker."""
        return lambda done, total, words="": self.send(
            {"phase": "work", "done": done, "total": total, "detail": words}
        )

    def watch(self, history) -> None:
        """Write the loss curve so far to the run's folder, a few times per second."""
        if time.monotonic() - self._written > HISTORY_SECONDS:
            self._written = time.monotonic()
            self.folder.write("history.json", history.record())


@dataclass(frozen=True)
class Outcome:
    """The end of a task's process: exit `code`, `error` of class `error_kind` (or None), start time `began`
    (seconds since 1970), and last `phase`."""

    code: int
    began: float
    phase: str
    error: str | None = None
    error_kind: str | None = None

    @property
    def killed(self) -> bool:
        """Whether the process was ended from outside, as by the system when memory runs out."""
        return self.error is None and self.code in (-signal.SIGKILL, -signal.SIGTERM)

    @property
    def good(self) -> bool:
        """Whether the task succeeded."""
        return self.error is None and self.code == 0

    def why(self, what: str, phase: str) -> tuple[str, str]:
        """Return (sentence, class) of the error; `what` names the process, `phase` describes its last
        phase."""
        if self.error is not None:
            return self.error, self.error_kind or "RunError"
        if self.code < 0:
            number = -self.code
            why = {
                int(signal.SIGKILL): " (probably out of memory)",
                int(signal.SIGSEGV): " (a crash in native code)",
            }.get(number, "")
            return f"{what} was killed by signal {number}{why} while {phase}.", "RunError"
        return (
            f"{what} ended with exit code {self.code} while {phase}; the run's log has the details.",
            "RunError",
        )


class Course:
    """The worker's side of a job with one task. `tasks` names the tasks in order."""

    def __init__(self, folder: RunFolder, status: StatusRecord):
        self.folder, self.status = folder, status
        self.spec = folder.read("spec.json") or {}
        self.tasks: list[str] = [WHOLE]
        self.last = "Starting"
        self.outcome: Outcome | None = None

    @property
    def threads(self) -> int | None:
        """Threads that a task may use; None for the libraries' own choice."""
        return None

    def estimate(self) -> Account:
        """Return the progress tracker of the job, see `estimate.py`."""
        return Shares(len(self.tasks))

    def phase(self, task: str, event: dict) -> str:
        """Record a task's new phase or step; return its description."""
        self.last = event.get("detail") or self.last
        return self.last

    def ended(self, task: str, outcome: Outcome) -> bool:
        """Record the outcome of a task; return whether the remaining tasks still make sense."""
        self.outcome = outcome
        return False

    def finish(self) -> tuple[str, str | None, str | None]:
        """Return (state, error, class of the error) after the last task."""
        if self.outcome is None:
            raise RunError("The job had no task.")
        if not self.outcome.good:
            return "failed", *self.outcome.why("The job's process", f"it was at: {self.last}")
        if self.folder.read("outcome.json") is None:
            return "failed", "The job's process ended without a result; its log may say why.", "RunError"
        return "done", None, None

    def stopped(self, cancelled: bool) -> None:
        """Record that the job was cancelled, or ended from outside."""


def check_output(request: JobRequest, out: str, overwrite: bool, progress: Progress) -> None:
    """Raise `InputError` unless a model made from the request's model can be saved in the folder `out`."""
    from qcore.library.saving import check_folder
    from qcore.verbs.prepare import find_original

    check_folder(Path(out), overwrite=overwrite)
    find_original(request.model, request.revision, folder=Path(out), progress=progress)


def _plain(value):
    if hasattr(value, "to_dict"):
        return value.to_dict()
    if is_dataclass(value):
        return {f.name: _plain(getattr(value, f.name)) for f in fields(value)}
    return value


def _absolute(owner, path: list[str]):
    name, *rest = path
    value = getattr(owner, name)
    changed = _absolute(value, rest) if rest else absolute_path(value)
    return replace(owner, **{name: changed})
