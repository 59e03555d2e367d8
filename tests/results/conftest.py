"""A separate cache folder for tests of results."""

import pytest


@pytest.fixture(autouse=True)
def _own_home(own_home):
    pass
