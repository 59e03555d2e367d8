"""Sensitivities of a model, computed in a process of its own that a page can watch and stop; see
`qcore.verbs.sensitivity`.

    QCORE_HOME/sensitivity/job/     the work under way, or the last: see `qcore.jobs.background`
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from pathlib import Path

from qcore.base.errors import InputError
from qcore.base.home import home
from qcore.jobs import background
from qcore.recipes.spec import absolute_model, absolute_path
from qcore.verbs.sensitivity import Request


@dataclass(frozen=True, kw_only=True)
class Status(background.Status):
    """Where the last request stands; `key` is the finished table's."""

    key: str | None = None


def job_folder() -> Path:
    """Where the one job at a time lies."""
    return home() / "sensitivity" / "job"


def submit(request: Request) -> None:
    """Start computing. Raises `InputError` while another request is under way."""
    request = replace(request, text=absolute_path(request.text), model=absolute_model(request.model))
    now = status()
    if now is not None and now.active:
        raise InputError("Sensitivities are being computed already; wait for them, or cancel.")
    background.start(job_folder(), asdict(request), "qcore.jobs.sensitivity_worker")


def status() -> Status | None:
    """Where the last request stands; None if there never was one."""
    return background.look(job_folder(), Status, "Start again: what was measured is kept.")


def cancel() -> None:
    """Stop what is being computed; measured blocks are kept."""
    background.end(job_folder())
