"""Fixtures of the tests that drive a real browser."""

import json

import dashboard
import pytest
import tiny


@pytest.fixture
def home(tmp_path):
    """A cache folder with a tiny model in place of the default model: the same journey in seconds."""
    folder = tiny.checkpoint("llama", tmp_path / "home" / "models" / "smollm2-135m")
    (folder / "source.json").write_text(json.dumps({"from": "wheel", "types": []}))
    return tmp_path / "home"


@pytest.fixture
def address(home):
    with dashboard.server(home) as address:
        yield address
        _end_runs(home)


@pytest.fixture
def page():
    with dashboard.browser() as page:
        yield page


def _end_runs(home) -> None:
    """Cancel the runs of the test at its end."""
    import os

    from qcore.jobs import jobs

    before = os.environ["QCORE_HOME"]
    os.environ["QCORE_HOME"] = str(home)
    try:
        for status in jobs.list_runs():
            jobs.cancel(status.run_id)
    finally:
        os.environ["QCORE_HOME"] = before
