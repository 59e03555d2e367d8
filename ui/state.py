"""Shared by all pages: page head, limits of public mode, errors as boxes, cached results."""

from collections.abc import Callable, Hashable, Iterator
from contextlib import contextmanager
from typing import Any

import plotly.graph_objects as go
import streamlit as st

from qcore.base.errors import QcoreError
from qcore.base.home import home, is_public
from qcore.jobs import public
from qcore.results.store import Store
from ui import jobs, navigation
from ui.memo import Memo
from ui.redaction import redacted
from ui.text import shielded, verbatim

INK = {"light": "#1f2430", "dark": "#e4e6ea"}  # as in .streamlit/config.toml
KEPT = 64  # cached results, over all sessions
PUBLIC_LIMITS = public.LARGEST["compare"]
PUBLIC_RECIPES = public.RECIPES
PUBLIC_UPLOAD = public.UPLOAD


def page(title: str, lead: str) -> bool:
    """Draw the head of a page and, in the sidebar, the run in progress. Return whether a run is in
    progress."""
    navigation.enter()
    st.title(title, anchor=False)
    st.markdown(lead)
    with shown_errors():
        running = [status for status in jobs.list_runs() if status.active]
        if running:
            with st.sidebar:
                _under_way(running[-1].run_id)
            return True
    return False


def plot(figure: go.Figure, key: str, alt: str) -> None:
    """Draw a Plotly figure with labels in the text color of the page's theme."""
    ink = INK.get(st.context.theme.type)
    if ink:
        figure.update_layout(font={"color": ink})
        figure.update_traces(textfont={"color": ink}, selector={"type": "heatmap"})
        figure.update_xaxes(tickfont={"color": ink}, title={"font": {"color": ink}})
        figure.update_yaxes(tickfont={"color": ink}, title={"font": {"color": ink}})
    st.plotly_chart(figure, key=key, alt=alt, config={"displayModeBar": False, "scrollZoom": False})


def notices() -> None:
    """Show the notice that the database was replaced, until the user dismisses it."""
    if is_public():
        return  # of no use to a visitor, who must not dismiss it either
    with shown_errors():
        store = _store(str(home()))
        if store.notice:
            st.warning(verbatim(store.notice), icon=":material/database:")
            st.button("Dismiss", key="notice.seen", on_click=store.clear_notice)


@st.cache_resource(show_spinner=False, max_entries=1)
def _store(folder: str) -> Store:
    """Return the database in the cache folder, checked once per server."""
    return Store()


@contextmanager
def shown_errors() -> Iterator[None]:
    """Show a `QcoreError` raised inside the block in a red box, and continue after the block."""
    try:
        yield
    except QcoreError as error:
        st.error(verbatim(redacted(str(error))), icon=":material/error:")


@st.cache_resource(show_spinner=False)
def _memo() -> Memo:
    return Memo(KEPT)


def remember(key: Hashable, compute: Callable[[], Any]) -> Any:
    """Return the result of `compute` for `key`, computed once and cached for all sessions; see `Memo`."""
    return _memo().remember(key, compute)


def forget(key: Hashable) -> None:
    """Drop the cached result for `key`."""
    _memo().forget(key)


def recall(key: Hashable) -> Any | None:
    """Return the cached result for `key`, or None."""
    return _memo().recall(key)


def rows(status: jobs.JobStatus) -> list[dict]:
    """Return the rows of a run. Rows of a run that has ended are read once."""
    if status.active:
        return jobs.rows(status.run_id)
    return remember(("rows", status.run_id, status.finished_at), lambda: jobs.rows(status.run_id))


def model_of(status: jobs.JobStatus) -> str:
    """Return the name of a run's model for a heading: the last part of a path."""
    name = status.request.get("model", "unknown model")
    return name.rstrip("/").rpartition("/")[2] if name.startswith(("/", "~", ".")) else name


@st.fragment(run_every=2.0)
def _under_way(run_id: str) -> None:
    status = jobs.status(run_id)
    if not status.active:
        st.toast(f"The run of {shielded(model_of(status))} is {status.state}.", icon=":material/flag:")
        st.rerun()
    st.page_link(
        "pages/quantize.py",
        label=shielded(model_of(status)),
        icon=":material/progress_activity:",
        query_params={"run": run_id},
    )
    st.progress(status.fraction, text=shielded(status.phase or status.state))
