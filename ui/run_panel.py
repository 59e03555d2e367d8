"""The panel of a job: progress, phase, times, place in the queue, state per recipe, cancel. The list of all
jobs."""

import time
from collections.abc import Callable, Iterable

import streamlit as st

from qcore.jobs.kinds import KINDS, MAKING, describe
from ui import families, jobs, state
from ui.text import clock, one_line, rough, seconds, shielded, verbatim, visible

STATES = {
    "queued": ("gray", "schedule"),
    "running": ("blue", "progress_activity"),
    "done": ("green", "check_circle"),
    "failed": ("red", "error"),
    "cancelled": ("gray", "cancel"),
    "interrupted": ("orange", "warning"),
    "ok": ("green", "check_circle"),
    "waiting": ("gray", "more_horiz"),
}
PAGES = dict.fromkeys(MAKING, "pages/train.py") | {
    "sensitivity": "pages/sensitivity.py",
    "audit": "pages/audit.py",
    "export": "pages/export.py",
}
LISTED, NAMED = 6, 6  # runs in the list, and recipes named per run


def panel(run_id: str, more: Callable[[jobs.JobStatus], None] | None = None) -> None:
    """Draw the job `run_id`, every second while it is active. `more` draws the part that is specific to its
    kind."""
    with state.shown_errors(), st.container(border=True, key=f"panel.{run_id}"):
        if jobs.status(run_id).active:
            _live(run_id, more)
        else:
            _draw(jobs.status(run_id))


def in_progress(*kinds: str, more: Callable[[jobs.JobStatus], None] | None = None) -> None:
    """Draw the jobs of these kinds that are in progress, or the newest one if it did not succeed. `more` as
    in `panel`."""
    with state.shown_errors():
        known = jobs.list_runs(*kinds)
        for each in [each for each in known if each.active] or known[:1]:
            if each.state != "done":
                panel(each.run_id, more)


def finished(
    prefix: str, kinds: Iterable[str], *, form: Callable[[str], None], empty: str, another: str, label: str
) -> jobs.JobStatus:
    """Draw the `form` of a page and the list of its finished jobs, and return the one that is chosen: in the
    list (named `label`), or by the link to the page. Without any, draw the form and the text `empty`, and
    stop; otherwise the form is folded under the title `another`."""
    found = {status.run_id: status for status in jobs.list_runs(*kinds) if status.state == "done"}
    if not found:
        form(prefix)
        st.info(empty, icon=":material/lightbulb:")
        st.stop()
    with st.expander(another, icon=":material/add:"):
        form(prefix)
    linked = st.query_params.get("run")
    if linked in found and linked != st.session_state.get(f"{prefix}.linked"):
        st.session_state[f"{prefix}.job"] = st.session_state[f"{prefix}.linked"] = linked
    run_id = st.selectbox(
        label, list(found), format_func=lambda run_id: title(found[run_id]), key=f"{prefix}.job"
    )
    return found[run_id]


def title(status: jobs.JobStatus) -> str:
    """Return the name of a job in a list."""
    return one_line(f"{state.model_of(status)} · {describe(status.request)} · {clock(status.finished_at)}")


def badge(name: str) -> str:
    """Return a state as a Markdown badge with its icon."""
    color, icon = STATES.get(name, ("gray", "help"))
    return f":{color}-badge[:material/{icon}: {name}]"


def listing(current: str | None = None) -> None:
    """List all jobs, newest first, each with a link that opens it."""
    runs = [status for status in jobs.list_runs() if status.run_id != current]
    if not runs:
        return
    st.subheader("Earlier runs" if current else "Runs", anchor=False)
    everything = len(runs) > LISTED and st.toggle(f"Show all {len(runs)}", key="runs.all")
    for status in runs if everything else runs[:LISTED]:
        _line(status)


@st.fragment(run_every=1.0)
def _live(run_id: str, more: Callable[[jobs.JobStatus], None] | None) -> None:
    with state.shown_errors():
        status = jobs.status(run_id)
        if not status.active:
            st.rerun()
        _draw(status)
        if more is not None:
            more(status)


def _draw(status: jobs.JobStatus) -> None:
    with st.container(horizontal=True, vertical_alignment="center", horizontal_alignment="distribute"):
        st.markdown(f"**{shielded(state.model_of(status))}** &nbsp; {badge(status.state)}", width="content")
        if not status.recipes:
            st.markdown(shielded(describe(status.request)), width="content")
        st.caption(f"run {status.run_id} · started {clock(status.created_at)}", width="content")
    if status.active:
        st.progress(status.fraction, text=_doing(status))
        st.caption(_times(status))
    if status.error:
        st.error(verbatim(status.error), icon=":material/error:")
    elif status.state == "cancelled":
        resumes = status.kind in KINDS and KINDS[status.kind].resumes
        again = " Run it again to resume." if resumes else ""
        st.info(f"Cancelled. Finished results were kept.{again}", icon=":material/cancel:")
    elif status.state == "done":
        st.success(
            f"Finished in {seconds((status.finished_at or 0) - (status.started_at or 0))}.",
            icon=":material/check_circle:",
        )
    _recipes(status)
    with st.container(horizontal=True, vertical_alignment="center"):
        _actions(status)
    if status.log_tail and status.state in ("failed", "interrupted"):
        with st.expander("End of the log"):
            st.code(visible(status.log_tail), language=None)


def _doing(status: jobs.JobStatus) -> str:
    """Return the state in words: the bar must not be the only indicator."""
    steps = f" · {status.done} of {status.total}" if status.total > 1 else ""
    return f"{status.fraction:.0%} · {shielded(status.phase or status.state)}{steps}"


def _times(status: jobs.JobStatus) -> str:
    if status.state == "queued":
        return "In the queue." + (
            f" {status.place} ahead. Runs take turns, so that they do not slow each other down."
            if status.place
            else ""
        )
    elapsed = time.time() - (status.started_at or status.created_at or time.time())
    left = f" · about {rough(status.eta_s)} left" if status.eta_s is not None else ""
    return f"{rough(max(1.0, elapsed))} elapsed{left}. It continues if this page is closed."


def _recipes(status: jobs.JobStatus) -> None:
    parts = []
    for recipe in status.recipes:
        color, icon = STATES.get(recipe["state"], ("gray", "help"))
        parts.append(
            f"{families.badge(recipe['recipe'])}&nbsp;:{color}[:material/{icon}:&nbsp;{recipe['state']}]"
        )
    st.markdown(" &emsp; ".join(parts))


def _actions(status: jobs.JobStatus) -> None:
    finished = sum(recipe["state"] == "ok" for recipe in status.recipes)
    if status.state == "done" and status.kind in PAGES:
        st.page_link(
            PAGES[status.kind],
            label="See the result",
            icon=":material/bar_chart:",
            query_params={"run": status.run_id},
        )
    if status.recipes and (finished or status.state == "failed"):
        label = (
            "See the comparison"
            if not status.active
            else f"See the finished recipes ({finished} of {len(status.recipes)})"
        )
        st.page_link(
            "pages/compare.py", label=label, icon=":material/bar_chart:", query_params={"run": status.run_id}
        )
    if not jobs.is_own(status):
        return
    if status.active and st.button("Cancel", icon=":material/stop_circle:", key=f"cancel.{status.run_id}"):
        with st.spinner("Cancelling…"):
            jobs.cancel(status.run_id)
        st.rerun()
    if status.active:
        return
    again = status.state != "done" and st.button(
        "Run again", icon=":material/replay:", key=f"again.{status.run_id}"
    )
    if again:
        st.query_params["run"] = jobs.repeat(status.run_id)
        st.rerun()
    if st.button("Delete", icon=":material/delete:", key=f"delete.{status.run_id}", type="tertiary"):
        jobs.delete(status.run_id)
        st.query_params.clear()
        st.rerun()


def _line(status: jobs.JobStatus) -> None:
    names = [families.badge(recipe["recipe"]) for recipe in status.recipes]
    more = f" :gray[and {len(names) - NAMED} more]" if len(names) > NAMED else ""
    what = f"{' '.join(names[:NAMED])}{more}" if names else shielded(describe(status.request))
    with st.container(horizontal=True, vertical_alignment="center", border=False):
        st.page_link(
            "pages/quantize.py",
            label=clock(status.created_at),
            icon=":material/history:",
            query_params={"run": status.run_id},
        )
        st.markdown(f"{badge(status.state)} **{shielded(state.model_of(status))}** {what}", width="content")
