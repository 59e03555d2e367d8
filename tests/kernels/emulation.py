"""The kernels of every instruction set on one machine: compiled in terms of AVX2 through the headers of
SIMDe, for tests only."""

import ctypes
from functools import cache

import pytest

from qcore.base.errors import UnavailableError
from qcore.kernels import library
from qcore.kernels.build import build

INSTRUCTIONS = ("avx512vnni", "avxvnni", "neon", "dotprod")


@cache
def functions() -> ctypes.CDLL:
    """The library with the functions of all `INSTRUCTIONS` and of AVX2. Raises `UnavailableError` if it
    cannot be compiled."""
    loaded = ctypes.CDLL(str(build(emulate=True)))
    library.declare(loaded)
    return loaded


def use(instructions: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let this test's products run with `instructions`; may be called again for others. Fails where SIMDe is
    missing."""
    try:
        loaded = functions()
    except UnavailableError as error:
        if "simde" not in str(error):
            raise
        pytest.fail(
            "The kernels of other processors are tested with SIMDe's headers, which are missing: install libsimde-dev.",
            pytrace=False,
        )
    assert loaded.qcore_choose(instructions.encode()), f"the library has nothing for {instructions}"
    monkeypatch.setattr(library, "functions", lambda: loaded)
