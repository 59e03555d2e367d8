"""`compare` with real processes on a text model inside a wrapper."""

import json

import pytest
import wrapped_models

SMALL = "--tokens 120 --window 32 --prompt-tokens 8 --new-tokens 3 --repeats 1 --generate-tokens 2"
pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("own_home")]


def test_a_wrapper_is_compared_from_the_command_line(said, tmp_path):
    model, out = wrapped_models.checkpoint("qwen3_5", tmp_path / "qwen3_5"), tmp_path / "out.json"
    (tmp_path / "text.txt").write_text("It was the best of tokens, it was the worst of tokens. " * 9)
    (tmp_path / "calibration.txt").write_text("Once upon a time there was a scale. " * 90)
    status, printed, err = said(
        "compare",
        model,
        "--recipes",
        "fp32,int4-g32-gptq",
        *SMALL.split(),
        "--text",
        tmp_path / "text.txt",
        "--calibration",
        tmp_path / "calibration.txt",
        "--calibration-tokens",
        "1024",
        "--json",
        out,
    )
    assert status == 0, err
    base, row = json.loads(out.read_text())
    assert row["status"] == "ok" and row["verdict"]["sentence"] in printed
    assert 0 < row["kl_mean"] < 1 and base["perplexity"] != row["perplexity"]
    towers = [each for each in row["record"]["ledger"]["rows"] if each["name"].startswith("model.visual.")]
    assert towers and all(
        each["reason"] == "Kept: model.visual is not part of the text model." for each in towers
    )
    assert "Only its text model is quantized: model.visual" in printed + err
