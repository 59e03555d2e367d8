"""The process of a task."""

import json
import subprocess
import sys

import pytest

from qcore.base.process import environment

MAIN = """
import sys
from qcore.jobs import child
from qcore.measurement import memory

memory.is_exhausting = lambda total: True
sys.exit(child.main(sys.argv[1:]))
"""


@pytest.mark.row("46")
def test_a_task_that_takes_all_memory_of_a_public_server_ends_with_a_sentence(tmp_path):
    """Otherwise the system ends any process, such as the server."""
    events, run = tmp_path / "events", tmp_path / "runs" / "20261130-000000-abcdef"
    run.mkdir(parents=True)
    (run / "spec.json").write_text("{}")
    command = [sys.executable, "-c", MAIN, run.name, "00", str(events)]
    surroundings = environment() | {"QCORE_PUBLIC": "1", "QCORE_HOME": str(tmp_path)}
    # it ends when its standard input is closed
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=surroundings
    ) as process:
        assert process.wait(60) == 1
    (event,) = map(json.loads, events.read_text().splitlines())
    assert event["kind"] == "RunError"
    assert event["message"].endswith("took nearly all memory of this server. Choose a smaller model.")
