"""A row of the quality benchmark from end to end, on a tiny model: the baseline is exact, sizes are counted,
errors are reported."""

from dataclasses import replace
from types import SimpleNamespace

import pytest
import tiny

from benchmarks import quality, quality_plan, quality_row
from benchmarks.quality_plan import Method
from qcore.base.errors import InputError, RunError


@pytest.fixture
def options(tmp_path) -> dict:
    scored, read = tmp_path / "scored.txt", tmp_path / "read.txt"
    scored.write_text("The quick brown fox jumps over the lazy dog, again and again. " * 4)
    read.write_text("Pack my box with five dozen liquor jugs, and then a sixth of them. " * 4)
    return {
        "model": str(tiny.checkpoint("llama", tmp_path / "model")),
        "text": str(scored),
        "calibration": str(read),
        "tokens": 96,
        "window": 32,
        "calibration_tokens": 64,
        "minutes": None,
        "threads": 1,
        "seed": 0,
        "reference": str(tmp_path / "kept" / "reference.safetensors"),
        "module": "own",
    }


def test_the_baseline_is_exact_and_others_are_compared_with_it(options):
    said = []
    base = quality_row.row({**options, "item": "fp32"}, said.append)
    assert (base["bits_per_weight"], base["kl_mean"], base["top1_agreement"], base["tokens_scored"]) == (
        32,
        0,
        1,
        95,
    )
    assert any("scoring" in each for each in said)
    plain = quality_row.row({**options, "item": "int4-g32-sym"}, said.append)
    assert plain["bits_per_weight"] == 4.5 and plain["kl_mean"] > 0 and plain["weights"] == 2 * 36864
    learned = quality_row.row({**options, "item": "int4-g32-sym-gptq"}, said.append)
    assert learned["bits_per_weight"] == 4.5 and learned["kl_mean"] != plain["kl_mean"]
    assert quality.LINE[1:] == tuple(name for name in quality.LINE[1:] if name in plain)


def test_calibrating_on_what_is_scored_is_refused(options):
    quality_row.row({**options, "item": "fp32"}, lambda text: None)
    with pytest.raises(InputError, match="same text"):
        quality_row.row(
            {**options, "calibration": options["text"], "item": "int4-g32-gptq"}, lambda text: None
        )


@pytest.mark.slow
def test_what_goes_wrong_in_a_row_is_one_sentence_for_the_whole_run(options):
    broken = Method("a peer", "own", "int9")
    with pytest.raises(RunError, match="a peer: .*int9"):
        quality.measure(broken, options, lambda text: None)


def test_a_failing_peer_is_left_out_and_the_rest_goes_on(monkeypatch, tmp_path):
    peers = tuple(Method(name, "own", "int8") for name in ("good peer", "bad peer"))
    monkeypatch.setattr(quality_plan, "PEERS", peers)
    shared = dict.fromkeys(("digest", "text_sha256", "tokens", "window", "threads"), 1)
    monkeypatch.setattr(quality, "conditions_of", lambda options: shared)
    measured = []

    def measure(method, settings, say):
        measured.append(method.name)
        if method.name == "bad peer":
            raise RunError("bad peer: it broke")
        return {"bits_per_weight": 8.0, "kl_mean": 0.1, "seconds": 1.0}

    monkeypatch.setattr(quality, "measure", measure)
    given = SimpleNamespace(recipes="int8", only=None, cache=tmp_path, fresh=False, threads=1)
    result = quality.run(given)
    assert [row["name"] for row in result["rows"]] == ["fp32", "int8", "good peer"]
    assert result["left_out"] == {"bad peer": "bad peer: it broke"}
    quality.run(given)
    assert measured == [
        "fp32",
        "int8",
        "good peer",
        "bad peer",
        "bad peer",
    ]  # measured rows are kept, failed rows are tried again
    monkeypatch.setattr(quality_plan, "PEERS", (replace(peers[1], own=True),))
    with pytest.raises(
        RunError, match="it broke"
    ):  # a failing recipe of ours is an error, not a row left out
        quality.run(given)
