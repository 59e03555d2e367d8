"""The limits of a public server are read from one variable."""

import pytest

from qcore.base.errors import InputError
from qcore.base.limits import VARIABLE, limits


def test_the_owner_of_the_server_sets_the_limits(monkeypatch):
    monkeypatch.setenv(VARIABLE, "hourly=1, minutes=0.5, disk=1.5GB")
    found = limits()
    assert (found.hourly, found.minutes, found.disk, found.active) == (1, 0.5, 1.5e9, 2)
    for wrong, words in (("hourli=3", "hourly"), ("hourly=none", "above 0"), ("minutes=0", "above 0")):
        monkeypatch.setenv(VARIABLE, wrong)
        with pytest.raises(InputError, match=words):
            limits()
