"""The limits of a public server are read from one variable."""

import re
from dataclasses import asdict
from pathlib import Path

import pytest

from qcore.base.errors import InputError
from qcore.base.limits import VARIABLE, Limits, limits

ROOT = Path(__file__).resolve().parents[2]


def test_the_owner_of_the_server_sets_the_limits(monkeypatch):
    monkeypatch.setenv(VARIABLE, "hourly=1, minutes=0.5, disk=1.5GB")
    found = limits()
    assert (found.hourly, found.minutes, found.disk, found.active) == (1, 0.5, 1.5e9, 2)
    for wrong, words in (("hourli=3", "hourly"), ("hourly=none", "above 0"), ("minutes=0", "above 0")):
        monkeypatch.setenv(VARIABLE, wrong)
        with pytest.raises(InputError, match=words):
            limits()


def test_the_documented_defaults_are_those_in_force():
    rows = re.findall(
        r"^\| `(\w+)` \| ([\d.]+)( [GM]B)? \|", (ROOT / "docs" / "deploy.md").read_text("utf-8"), re.M
    )
    units = {"": 1.0, " MB": 1e6, " GB": 1e9}
    assert {name: float(value) * units[unit] for name, value, unit in rows} == asdict(Limits())
