"""The environment's record is complete, JSON-ready, and cheap."""

import json
import platform
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from qcore.base import cpu
from qcore.kernels.precision import computes_fast
from qcore.measurement import environment as env


def test_the_record():
    record = json.loads(json.dumps(env.environment()))
    assert set(record) == {
        "cpu",
        "flags",
        "cores",
        "cpu_quota",
        "threads",
        "fast_bf16",
        "memory_total",
        "memory_available",
        "os",
        "machine",
        "python",
        "libraries",
        "extensions",
        "commit",
        "gpu",
    }
    assert record["cpu"] and record["cores"] >= 1 and record["python"] == platform.python_version()
    assert 0 < record["memory_available"] <= record["memory_total"]
    import torch

    assert record["libraries"]["torch"] == torch.__version__ and record["threads"] == torch.get_num_threads()


def test_nothing_heavy_is_imported():
    code = "import sys; from qcore.measurement.environment import environment; environment(); "
    code += "print(*(name in sys.modules for name in ('torch', 'numpy')))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False", "False"]


@pytest.mark.parametrize(
    ("flags", "fast"),
    [
        ("fpu avx2 fma", False),
        ("avx512f avx512_bf16", True),
        ("amx_tile amx_bf16", True),
        ("fp asimd bf16 i8mm", True),
        ("", False),
    ],
)
def test_bf16_needs_instructions_of_its_own(monkeypatch, flags, fast):
    monkeypatch.setattr(cpu, "_cpuinfo", lambda: {"flags": flags})
    assert (
        cpu.has_fast_bf16() is fast
        and computes_fast(torch.bfloat16) is fast
        and not computes_fast(torch.float16)
    )


def test_flags_are_those_of_either_architecture(monkeypatch):
    monkeypatch.setattr(cpu, "_cpuinfo", lambda: {"Features": "fp asimd i8mm crc32"})
    assert cpu.cpu_flags() == ["asimd", "i8mm"]
    monkeypatch.setattr(cpu, "_cpuinfo", dict)
    assert cpu.cpu_flags() == [] and cpu.cpu_name()


def test_outside_of_a_checkout_there_is_no_commit(monkeypatch, tmp_path):
    monkeypatch.setattr(env, "__file__", str(tmp_path / "a" / "b" / "c.py"))
    assert env.commit.__wrapped__() is None


def test_the_commit_and_whether_files_differ(monkeypatch, tmp_path):
    file = tmp_path / "qcore" / "measure" / "environment.py"
    file.parent.mkdir(parents=True)
    file.write_text("1")
    git = ["git", "-C", str(tmp_path), "-c", "user.name=t", "-c", "user.email=t@example.org"]
    for command in (["init", "-q"], ["add", "."], ["commit", "-q", "-m", "x"]):
        subprocess.run([*git, *command], check=True)
    monkeypatch.setattr(env, "__file__", str(file))
    clean = env.commit.__wrapped__()
    assert len(clean) == 40
    Path(file).write_text("2")
    assert env.commit.__wrapped__() == clean + "+changes"


def test_read_bandwidth_is_that_of_memory():
    assert 1e8 < env.read_bandwidth(repeats=2) < 1e13


def test_every_reader_reads_every_word():
    words = torch.arange(100_003)  # not a whole number of cache lines
    assert [int(read(words)) for read in env.readers()] == [int(words.sum())] * len(env.readers())
