"""The streaming benchmark on a few megabytes: every step runs, the kill is a kill, and no byte changes."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.slow
def test_every_step_on_a_tiny_checkpoint(tmp_path):
    command = [
        "benchmarks/streaming.py",
        "--size",
        "tiny",
        "--threads",
        "2",
        "--peer",
        "bitsandbytes",
        "--folder",
        str(tmp_path / "work"),
    ]
    done = subprocess.run([sys.executable, *command], cwd=ROOT, capture_output=True, text=True, timeout=1200)
    result = json.loads(done.stdout.splitlines()[-1])
    assert result["same_bytes_after_kill"] and not (tmp_path / "work").exists()
    steps = result["steps"]
    assert (
        steps["kill"]["killed"]["code"] == -9
        and 0 < steps["kill"]["shards_kept"] < steps["quantize"]["shards_made"]
    )
    assert (
        steps["copy"]["written_bytes"] == result["written_bytes"] > 0
        and steps["copy"]["read_bytes"] > result["conditions"]["bytes"]
    )
    assert [row["recipe"] for row in steps["evaluate"]["rows"]] == ["fp32", "int4-g64", "nf4-g64"]
    assert result["met"]["quantize_peak_bytes"] and result["met"]["evaluate_peak_bytes"]
    assert result["conditions"]["source_shards"] > 1
