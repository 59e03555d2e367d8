"""Logging: set up in one place, by one variable, for every process."""

import logging
import os
import subprocess
import sys

import pytest

from qcore.base import logs


@pytest.fixture(autouse=True)
def level():
    """Restore the level of qcore's loggers."""
    log = logging.getLogger("qcore")
    before = log.level
    yield log
    log.setLevel(before)


@pytest.mark.parametrize(
    ("asked", "level_name"), [("debug", "DEBUG"), (" Info ", "INFO"), ("", "WARNING"), (None, "WARNING")]
)
def test_the_variable_sets_the_level(asked, level_name, level, monkeypatch):
    monkeypatch.delenv(logs.VARIABLE, raising=False)
    if asked is not None:
        monkeypatch.setenv(logs.VARIABLE, asked)
    logs.configure()
    assert logging.getLevelName(level.level) == level_name


def test_an_unknown_level_is_named_and_the_usual_one_used(level, monkeypatch, caplog):
    monkeypatch.setenv(logs.VARIABLE, "loud")
    logs.configure("info")
    assert (
        "QCORE_LOG is 'loud', but it must be one of debug, info" in caplog.text
        and level.level == logging.INFO
    )


def test_other_libraries_stay_at_warnings():
    code = (
        "import logging; from qcore.base import logs; logs.configure(); "
        "logging.getLogger('another').info('other news'); logging.getLogger('qcore.x').debug('our news')"
    )
    environment = {**os.environ, logs.VARIABLE: "debug"}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment)
    assert "our news" in done.stderr and "DEBUG qcore.x" in done.stderr and "other news" not in done.stderr


def test_verbose_is_passed_on_to_processes_that_are_started(said, monkeypatch):
    monkeypatch.setenv(logs.VARIABLE, "error")
    assert said("--verbose", "models")[0] == 0
    assert os.environ[logs.VARIABLE] == "debug"
