"""Fixtures of the tests of pages in Streamlit's test runner."""

import pytest
import streamlit


@pytest.fixture
def home(tmp_path, monkeypatch):
    """A cache folder per test, on a server that is not public, without cached results of other tests."""
    monkeypatch.setenv("QCORE_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("QCORE_PUBLIC", "0")
    streamlit.cache_resource.clear()
    return tmp_path / "home"
