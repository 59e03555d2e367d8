"""A detached process is ended with its children, even if it ignores SIGTERM."""

import sys
import time

import psutil
import pytest

from qcore.base import process

PARENT = """
import signal, subprocess, sys, time
signal.signal(signal.SIGTERM, {handler})
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
print(child.pid, flush=True)
time.sleep(60)
"""


@pytest.mark.parametrize("handler", ["signal.SIG_DFL", "signal.SIG_IGN"], ids=["listens", "is deaf"])
def test_it_ends_with_its_children(handler, tmp_path):
    log = tmp_path / "log.txt"
    with log.open("wb") as file:
        worker = process.start_detached([sys.executable, "-c", PARENT.format(handler=handler)], file)
    while not log.read_text().endswith("\n"):
        time.sleep(0.02)
    child = process.identity(int(log.read_text()))
    process.end(psutil.Process(worker.pid), 0.5)
    assert worker.wait(5) < 0
    until = time.monotonic() + 5
    while process.living(child) and time.monotonic() < until:
        time.sleep(0.02)
    assert process.living(child) is None
