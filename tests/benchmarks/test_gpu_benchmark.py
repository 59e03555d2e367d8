"""The script for machines with a GPU, on a simulated one (`tests/accelerator.py`)."""

import json

import pytest
import tiny

from benchmarks import gpu
from tests.accelerator import simulated


@pytest.fixture
def small(monkeypatch, own_home):
    monkeypatch.setattr(gpu, "FORMATS", ("int4-g32", "int8", "kmeans4-g32"))
    monkeypatch.setattr(gpu, "INPUTS", 64)
    monkeypatch.setattr(gpu, "OUTPUTS", 16)
    monkeypatch.setattr(gpu, "PROMPT", 4)
    monkeypatch.setattr(gpu, "NEW", 3)
    monkeypatch.setattr(gpu, "seconds", lambda run, device: run() is None or 1e-6)


@pytest.mark.slow
def test_every_check_runs_and_a_recipe_that_fails_is_a_row(small, tmp_path, capsys):
    model = str(tiny.checkpoint("llama", tmp_path / "tiny"))
    words = ["--model", model, "--tokens", "64", "--recipes", "int4-g32,int4-g32-head9"]
    with simulated():
        assert gpu.main([*words, "--json", str(tmp_path / "out.json")]) == 1
    result = json.loads((tmp_path / "out.json").read_text())
    assert [row["kernel"].partition(" ")[0] for row in result["kernels"]] == [
        "PyTorch's",
        "PyTorch's",
        "plain",
    ]
    assert result["rows"][0]["device_bytes"] == 2345 and "error" in result["rows"][1]
    assert result["problems"] == [f"int4-g32-head9: {result['rows'][1]['error']}"]
    said = capsys.readouterr().out
    assert "| int4-g32 | 0 MB |" in said and "int4-g32: PyTorch's int4 kernel" in said


def test_checks_that_do_not_hold_are_told():
    kernel = {"format": "int8", "error": 0.1, "bound": 0.01}
    row = {"recipe": "int8", "perplexity": 22.0, "perplexity_cpu": 20.0}
    found = gpu.problems([kernel, kernel | {"error": float("nan")}], [row, row | {"perplexity": 20.1}])
    assert [sentence.partition(":")[0] for sentence in found] == ["int8"] * 3


def test_without_a_gpu_it_ends_with_one_sentence(monkeypatch, capsys):
    monkeypatch.setattr("torch.accelerator.is_available", lambda: False)
    assert gpu.main([]) == 2
    assert capsys.readouterr().err == "The device 'cuda' is not available on this machine; use cpu.\n"
