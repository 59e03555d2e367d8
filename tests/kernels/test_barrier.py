"""The barrier of the native step: no thread passes early or sleeps forever, and a long wait takes no time
of the processor, which another process or a quota may need."""

import platform
import shutil
import subprocess
from pathlib import Path

import pytest

from qcore.kernels.build import SOURCES

pytestmark = pytest.mark.skipif(
    platform.machine().lower() not in ("x86_64", "amd64") or shutil.which("g++") is None,
    reason="Native kernels cannot be compiled or loaded",
)


@pytest.fixture(scope="module")
def barrier(tmp_path_factory):
    program = tmp_path_factory.mktemp("barrier") / "barrier"
    source = Path(__file__).with_name("barrier.cpp")
    flags = ["-std=c++17", "-O1", "-fopenmp", "-I", str(SOURCES)]
    subprocess.run(["g++", *flags, str(source), "-o", str(program)], check=True)

    def run(*arguments: object) -> str:
        done = subprocess.run(
            [program, *map(str, arguments)], capture_output=True, text=True, check=True, timeout=60
        )
        return done.stdout.strip()

    return run


@pytest.mark.parametrize("threads", [2, 5])
def test_a_thread_that_waits_long_sleeps(barrier, threads):
    assert float(barrier("wait", threads)) < 0.1


@pytest.mark.parametrize("threads", [1, 2, 3])
def test_all_threads_meet_in_every_round(barrier, threads):
    assert barrier("meet", threads) == "met"
