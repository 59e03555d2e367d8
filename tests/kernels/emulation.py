"""The kernels of every instruction set on one machine, for tests: SIMDe's headers express them in AVX2."""

import ctypes
from functools import cache

import pytest

from qcore.base.errors import UnavailableError
from qcore.kernels import library
from qcore.kernels.build import build

INSTRUCTIONS = ("avx512vnni", "avxvnni", "neon", "dotprod")


@cache
def functions() -> ctypes.CDLL:
    """Return the library with the functions of AVX2 and of all `INSTRUCTIONS`.

    Raise `UnavailableError` if it cannot be compiled.
    """
    loaded = ctypes.CDLL(str(build(emulate=True)))
    library.declare(loaded)
    return loaded


def use(instructions: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Run the kernels of `instructions` for the rest of this test, or until the next call.

    Fail the test if SIMDe is missing.
    """
    try:
        loaded = functions()
    except UnavailableError as error:
        if "simde" not in str(error):
            raise
        pytest.fail(
            "Tests of other processors' kernels need the headers of SIMDe. Install libsimde-dev.",
            pytrace=False,
        )
    assert loaded.qcore_choose(instructions.encode()), f"the library has nothing for {instructions}"
    monkeypatch.setattr(library, "functions", lambda: loaded)
