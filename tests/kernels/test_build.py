"""Which library is loaded, with a compiler that only writes empty files."""

import platform

import pytest

from qcore.base.errors import UnavailableError
from qcore.kernels import build

COMPILER = """#!/bin/sh
while [ $# -gt 0 ]; do [ "$1" = -o ] && : > "$2"; shift; done
"""

pytestmark = pytest.mark.skipif(
    platform.machine().lower() not in build.FAMILIES, reason="the kernels do not support this processor"
)


@pytest.fixture
def compiler(tmp_path, monkeypatch):
    """The compiler's path, the only program that can be found."""
    path = tmp_path / "bin" / "g++"
    path.parent.mkdir()
    path.write_text(COMPILER)
    path.chmod(0o755)
    monkeypatch.setenv("PATH", str(path.parent))
    monkeypatch.setenv("QCORE_KERNELS", str(tmp_path / "kernels"))
    monkeypatch.delenv("CXX", raising=False)
    build._compiler.cache_clear()
    yield path
    build._compiler.cache_clear()


def gone(compiler):
    compiler.unlink()
    build._compiler.cache_clear()


def test_a_library_of_the_same_sources_and_flags_is_loaded_where_the_compiler_is_gone(compiler):
    made = build.build()
    assert made.is_file()
    gone(compiler)
    assert build.build() == made
    with pytest.raises(UnavailableError, match="need a C\\+\\+ compiler"):
        build.build(("-g",))


def test_a_library_of_other_sources_is_not(compiler):
    made = build.build()
    (made.parent / build.MADE_OF).write_text("of yesterday's sources")
    gone(compiler)
    with pytest.raises(UnavailableError, match="need a C\\+\\+ compiler"):
        build.build()


def test_a_compiler_that_was_named_and_is_missing_is_an_error(compiler, monkeypatch):
    build.build()
    gone(compiler)
    monkeypatch.setenv("CXX", "none")  # how the reference kernels are forced
    with pytest.raises(UnavailableError, match="compiler"):
        build.build()
