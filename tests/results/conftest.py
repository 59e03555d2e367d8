"""Results in a cache folder of their own."""

import pytest


@pytest.fixture(autouse=True)
def _own_home(own_home):
    pass
