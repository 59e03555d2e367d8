"""The process of the pages stays light: no torch, no transformers, no onnxruntime."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import samples
import tiny

VISIT = Path(__file__).with_name("visit_all.py")


@pytest.mark.slow
def test_every_page_is_visited_and_used_without_torch(home):
    folder = tiny.checkpoint("llama", home / "models" / "smollm2-135m")
    (folder / "source.json").write_text(json.dumps({"from": "wheel", "types": []}))
    samples.write_run(home, [samples.row(name) for name in ("fp32", "int8", "int4-g64")])
    tests = VISIT.parents[1]
    path = os.pathsep.join(map(str, (VISIT.parent, tests, tests.parent)))
    found = subprocess.run(
        [sys.executable, str(VISIT)],
        env={**os.environ, "PYTHONPATH": path},
        cwd=tests.parent,
        capture_output=True,
        text=True,
    )
    assert found.stdout.splitlines()[-1:] == ["imported:"], found.stdout + found.stderr
