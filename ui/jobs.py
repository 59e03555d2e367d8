"""The jobs of this visitor: the only way from pages to jobs, rows, tables and the database.

On a private server everybody sees everything. On a public one (`ui/exposure.py`) a visitor sees their own
jobs and the samples, cancels and deletes their own jobs only, and gets no path of the server. A job of
somebody else and one that does not exist get the same answer. Pages use these functions, and not
`qcore.jobs.jobs`; `tests/app/test_visitors.py` holds that.
"""

from typing import Any, TypeVar

import streamlit as st

from qcore.base.errors import InputError
from qcore.jobs import jobs, upkeep
from qcore.jobs.kind import Checked, Request
from qcore.jobs.public import SAMPLE
from qcore.jobs.status import JobStatus
from qcore.results.rows import ResultRow
from qcore.results.store import Store
from ui.navigation import ASKED
from ui.redaction import redacted
from ui.visitor import visitor

__all__ = ["JobStatus"]
T = TypeVar("T")


def submit(request: Request | Checked) -> str:
    """Start a job of this visitor, see `qcore.jobs.jobs.submit`. A click that comes while another one is
    being checked, in this tab or another, starts no second job."""
    options = {"visitor": visitor(), "asked": st.session_state.pop(ASKED, None)}
    return jobs.submit(request, **{name: value for name, value in options.items() if value is not None})


def status(run_id: str) -> JobStatus:
    """Return the status of a job that this visitor may see. Raise `InputError` for any other id."""
    return _found(run_id)


def list_runs(*kinds: str) -> list[JobStatus]:
    """Return the jobs that this visitor may see (or those of `kinds`), newest first."""
    who, found = visitor(), jobs.list_runs(*kinds)
    return found if who is None else [_shown(each) for each in found if each.owner in (who, SAMPLE)]


def waiting() -> int:
    """Return the number of all queued and running jobs, those of other visitors included."""
    return sum(each.active for each in jobs.list_runs())


def is_own(found: JobStatus) -> bool:
    """Return whether this visitor may cancel, repeat and delete the job."""
    who = visitor()
    return who is None or found.owner == who


def outcome(run_id: str) -> dict | None:
    """Return the result of a job other than a comparison; None until it is done."""
    _found(run_id)
    return redacted(jobs.outcome(run_id))


def result_folder(run_id: str) -> str | None:
    """Return the folder of the model that a job made, for the server's own use. Never show it."""
    _found(run_id)
    return (jobs.outcome(run_id) or {}).get("folder")


def history(run_id: str) -> dict | None:
    """Return the loss curve of a training so far."""
    _found(run_id)
    return jobs.history(run_id)


def rows(run_id: str, margin: float | None = None) -> list[ResultRow]:
    """Return the finished rows of a comparison, see `qcore.jobs.jobs.rows`."""
    _found(run_id)
    return redacted(jobs.rows(run_id, margin))


def cancel(run_id: str) -> JobStatus:
    """Cancel a job of this visitor. Raise `InputError` for any other."""
    _own(run_id)
    return _shown(jobs.cancel(run_id))


def delete(run_id: str) -> None:
    """Delete an ended job of this visitor. Raise `InputError` for any other."""
    _own(run_id)
    jobs.delete(run_id) if visitor() is None else upkeep.remove(run_id)


def repeat(run_id: str) -> str:
    """Submit the request of a job of this visitor again. Raise `InputError` for any other."""
    _own(run_id)
    who = visitor()
    return jobs.repeat(run_id) if who is None else jobs.repeat(run_id, visitor=who)


def latest_rows(model: str) -> list[dict]:
    """Return the newest successful rows of `model` that this visitor may see, newest first."""
    return visible_rows(Store().latest(model))


def visible_ids() -> tuple[str, ...] | None:
    """Return the ids of the jobs that this visitor may see; None on a private server, where these are all."""
    return None if visitor() is None else tuple(each.run_id for each in list_runs())


def visible_rows(found: list[dict]) -> list[dict]:
    """Return those of the rows, which come from the database, that this visitor may see."""
    if visitor() is None:
        return found
    visible = {each.run_id for each in list_runs()}
    return redacted([row for row in found if row.get("run_id") in visible])


def visible_tables(found: dict[str, T]) -> dict[str, T]:
    """Return those of the tables of sensitivities, by key, that this visitor may see: on a public server
    those of the own jobs."""
    if visitor() is None:
        return found
    made = {(jobs.outcome(each.run_id) or {}).get("key") for each in list_runs("sensitivity")}
    return {key: table for key, table in found.items() if key in made}


def _found(run_id: str) -> JobStatus:
    who = visitor()
    if who is None:
        return jobs.status(run_id)
    try:
        found = jobs.status(run_id)
    except InputError:
        found = None  # its message lists ids of other jobs
    if found is None or found.owner not in (who, SAMPLE):
        raise InputError(
            f"There is no run {run_id[:40]!r} of yours. Runs belong to the browser that started them, and "
            "are deleted after some days."
        )
    return _shown(found)


def _own(run_id: str) -> None:
    if not is_own(_found(run_id)):
        raise InputError("This run is a sample, which every visitor sees. It cannot be changed.")


def _shown(found: JobStatus) -> JobStatus:
    """Return the status without paths and log on a public server."""
    if visitor() is None:
        return found
    changes: dict[str, Any] = {
        name: redacted(getattr(found, name)) for name in ("phase", "error", "request", "recipes")
    }
    return JobStatus(**{**vars(found), **changes, "log_tail": ""})
