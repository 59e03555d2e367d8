"""The benchmark of GGUF's types: its table, rows over some layers only, and the model that it trains."""

import pytest
import tiny
import torch

from benchmarks import gguf_table, gguf_types, make_trained, quality_row
from qcore.recipes import parse


def row(ours: float, bar: float = 1.0, layers: str | None = None) -> dict:
    return {
        "type": "Q4_0",
        "layers": layers,
        "bar": bar,
        "theirs": {"name": "llama.cpp Q4_0", "kl_mean": 0.2, "stored_bytes": 60_000_000},
        "ours": {"name": "gguf-q4_0-gptq", "kl_mean": ours, "stored_bytes": 59_000_000},
    }


@pytest.mark.parametrize(
    ("ours", "bar", "holds"), [(0.1, 1.0, True), (0.2, 1.0, False), (0.08, 0.4, True), (0.09, 0.4, False)]
)
def test_a_bar_of_one_means_lower(ours, bar, holds):
    assert gguf_table.holds(row(ours, bar)) is holds
    assert ("holds" if holds else "MISSED") in gguf_table.line(row(ours, bar))


def test_the_page_names_both_sides_bytes_and_the_layers():
    result = {
        "models": [
            {
                "model": "smollm2",
                "baseline": {"perplexity": 20.0},
                "pairs": [row(0.08, 0.42), row(0.1, layers="down_proj")],
                "conditions": {
                    "model": "smollm2",
                    "tokens": 8192,
                    "text": "wiki",
                    "window": 512,
                    "calibration_tokens": 16384,
                    "calibration": "valid",
                },
            }
        ],
        "environment": {"cpu": "Some CPU", "libraries": {"torch": "2"}},
        "started_at": 0,
    }
    page = gguf_table.page(result)
    assert (
        "| Q4_0 | all | 60.000 | 0.20000 | `gguf-q4_0-gptq` | 59.000 | 0.08000 | 0.400 x | 0.42 x | holds |"
        in page
    )
    assert "`down_proj`" in page
    assert gguf_table.file_name(result).startswith("gguf-types-some-cpu-19")


def test_every_recipe_and_type_is_known():
    for pair in (*gguf_types.DEFAULT, *gguf_types.TRAINED):
        assert parse(pair.ours).method == "gptq"
        assert pair.layers is None or pair.theirs.endswith("pure"), "a mixture would choose by the layer"


def test_a_row_may_cover_some_layers_and_never_the_head(tmp_path):
    (tmp_path / "scored.txt").write_text("The quick brown fox jumps over the lazy dog, again and again. " * 4)
    options = {
        "model": str(tiny.checkpoint("llama", tmp_path / "model")),
        "text": str(tmp_path / "scored.txt"),
        "calibration": None,
        "tokens": 96,
        "window": 32,
        "calibration_tokens": 64,
        "minutes": None,
        "threads": 1,
        "seed": 0,
        "reference": str(tmp_path / "kept" / "reference.safetensors"),
        "module": "own",
    }
    quality_row.row({**options, "item": "fp32"}, print)
    down = quality_row.row({**options, "item": "gguf-q4_0", "layers": "down_proj"}, print)
    assert down["weights"] == 2 * 64 * 128 and down["bits_per_weight"] == 4.5
    mixed = quality_row.row({**options, "item": "gguf-q4_k_m"}, print)
    assert mixed["weights"] == 2 * 36864


def test_training_lowers_the_loss():
    model = tiny.model("llama").train()
    ids = torch.tensor(list(b"one two three four five six seven eight nine ten. " * 40))
    before = float(model(ids[None, :256], labels=ids[None, :256]).loss.detach())
    assert make_trained.train(model, ids, 12) < before - 0.01
