"""The pages, and a way into them from any address."""

import runpy
from pathlib import Path

import streamlit as st

APP = Path(__file__).resolve().parents[1] / "app.py"
_opened = False


def pages() -> list[st.Page]:
    """The pages in the order of the menu."""
    global _opened
    _opened = True
    return [
        st.Page("pages/home.py", title="Home", icon=":material/home:", default=True),
        st.Page("pages/plan.py", title="Plan", icon=":material/straighten:"),
        st.Page("pages/quantize.py", title="Quantize", icon=":material/compress:"),
        st.Page("pages/compare.py", title="Compare", icon=":material/bar_chart:"),
        st.Page("pages/playground.py", title="Playground", icon=":material/forum:"),
        st.Page("pages/layers.py", title="Layers", icon=":material/layers:"),
        st.Page("pages/sensitivity.py", title="Sensitivity", icon=":material/grid_on:"),
        st.Page("pages/train.py", title="Train & prune", icon=":material/model_training:"),
        st.Page("pages/learn.py", title="Learn", icon=":material/school:"),
    ]


def enter() -> None:
    """Make sure that the page that calls this runs inside of `app.py`.

    Until `st.navigation` was called once, Streamlit takes a folder called pages for its older kind of app. If
    the first visit to a fresh server asks for a page (a tab that was left open, say), it runs that page's
    file alone, without menu and settings; so the page opens the app, which comes back to it.
    """
    if not _opened:
        runpy.run_path(str(APP))
        st.stop()
