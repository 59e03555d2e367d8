"""The worker process, which answers what the pages need torch or transformers for.

The server imports neither of them: pages call the functions of `qcore.jobs.answers` through `ask`.
"""

from collections.abc import Callable
from typing import ParamSpec, TypeVar

import streamlit as st

from qcore.jobs.resident import WorkerProcess

P = ParamSpec("P")
R = TypeVar("R")


@st.cache_resource(show_spinner=False, on_release=WorkerProcess.close)
def process() -> WorkerProcess:
    """Return the worker process of this server. It starts with the first request and ends when idle."""
    return WorkerProcess()


def ask(answer: Callable[P, R], *args: P.args, **kwargs: P.kwargs) -> R:
    """Return what `answer` returns in the worker process; see `WorkerProcess.call`."""
    worker = process()
    if worker.pid is not None:
        return worker.call(answer, *args, **kwargs)
    with st.spinner("Starting the engine, which takes a few seconds…"):
        return worker.call(answer, *args, **kwargs)
