"""Fixtures of the tests of pages in Streamlit's test runner."""

import pytest
import streamlit
from answered import here

from ui import engine


@pytest.fixture
def home(tmp_path, monkeypatch):
    """A cache folder per test, on a server that is not public, without cached results of other tests and
    without a worker process."""
    monkeypatch.setenv("QCORE_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("QCORE_PUBLIC", "0")
    monkeypatch.setattr(engine, "ask", here)
    streamlit.cache_resource.clear()
    return tmp_path / "home"
