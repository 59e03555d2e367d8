"""The list of pages, and the entry from a deep link."""

import runpy
import time
from pathlib import Path

import streamlit as st

from qcore.base.home import is_public

APP = Path(__file__).resolve().parents[1] / "app.py"
ASKED = "asked"  # in the session
_opened = False


def pages() -> list[st.Page]:
    """Return the pages in menu order."""
    global _opened
    _opened = True
    return [
        st.Page("pages/home.py", title="Home", icon=":material/home:", default=True),
        st.Page("pages/plan.py", title="Plan", icon=":material/straighten:"),
        st.Page("pages/quantize.py", title="Quantize", icon=":material/compress:"),
        st.Page("pages/compare.py", title="Compare", icon=":material/bar_chart:"),
        st.Page("pages/playground.py", title="Playground", icon=":material/forum:"),
        st.Page("pages/layers.py", title="Layers", icon=":material/layers:"),
        st.Page("pages/audit.py", title="Audit", icon=":material/fact_check:"),
        st.Page("pages/sensitivity.py", title="Sensitivity", icon=":material/grid_on:"),
        st.Page("pages/train.py", title="Train & prune", icon=":material/model_training:"),
        st.Page("pages/export.py", title="Export", icon=":material/ios_share:"),
        st.Page("pages/learn.py", title="Learn", icon=":material/school:"),
        *[st.Page("pages/privacy.py", title="What is kept", icon=":material/shield:")] * is_public(),
    ]


def enter() -> None:
    """Make sure that the calling page runs inside `app.py`.

    Until `st.navigation` has run once, Streamlit treats a folder named `pages` as its older multipage app. If
    the first visit to a fresh server is a deep link (an old tab, say), Streamlit runs that page's file alone,
    without menu and settings. The page then runs `app.py`, which runs the page again.

    Note when this run of the page began: a click on it is as old.
    """
    if not _opened:
        runpy.run_path(str(APP))
        st.stop()
    st.session_state[ASKED] = time.time()
