"""The status of a job of any kind, as the worker writes it and other processes read it."""

from dataclasses import asdict, dataclass, field
from typing import TypedDict

COMPARE = "compare"
ACTIVE = ("queued", "running")


class RecipeState(TypedDict):
    """One recipe of a comparison: `state` is that of a job, or "ok" or "waiting"; `phase` is display text."""

    recipe: str
    state: str
    phase: str


class StatusRecord(TypedDict, total=False):
    """The file status.json: the fields of `JobStatus` that are not computed on reading, and `digest`, the
    SHA-256 of the request."""

    run_id: str
    kind: str
    state: str
    phase: str
    done: int
    total: int
    fraction: float
    eta_s: float | None
    created_at: float
    started_at: float | None
    finished_at: float | None
    error: str | None
    error_kind: str | None
    recipes: list[RecipeState]
    digest: str
    owner: str | None
    limit_s: float | None


@dataclass(frozen=True)
class JobStatus:
    """The status of a job.

    `kind` is a name in `qcore.jobs.kinds.KINDS`. `state` is queued, running, done (of a comparison: at least
    one recipe succeeded), failed, cancelled, or interrupted (its process was killed from outside). `phase` is
    display text. `done` of `total` counts within the phase; `fraction` (0 … 1) and `eta_s` (seconds, None
    while unknown) cover the whole job. `place` counts the jobs ahead in the queue. Times are seconds since
    1970. `request` is the request's dictionary. `recipes` holds the recipes of a comparison. `error_kind` is
    the class of `error` from `qcore.base.errors`, which distinguishes bad input from a failure. `owner` is
    the visitor who submitted it on a public server (`qcore.jobs.public`), and `limit_s` the time it may take.
    """

    run_id: str
    state: str
    kind: str = COMPARE
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
    request: dict = field(default_factory=dict)
    log_tail: str = ""
    recipes: list[RecipeState] = field(default_factory=list)
    owner: str | None = None
    limit_s: float | None = None

    @property
    def active(self) -> bool:
        """Whether the job is queued or running."""
        return self.state in ACTIVE

    def to_dict(self) -> dict:
        """Return a JSON-ready dictionary."""
        return asdict(self)
