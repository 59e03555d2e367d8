"""Sizes below are counted by hand from the tiny models' shapes: hidden 64, MLP 128, 2 layers, 4 heads, 2 KV
heads, vocabulary 258."""

import pytest
import tiny
import torch
from torch.multiprocessing.reductions import StorageWeakRef

from qcore.base.errors import InputError, NotAppliedError
from qcore.quantization.convert import quantize
from qcore.recipes import common, parse
from qcore.recipes.ledger import Ledger

LINEAR = 2 * (64 * 64 + 2 * 32 * 64 + 64 * 64 + 3 * 128 * 64)  # q, k + v, o, gate + up + down of both layers
ROWS = 2 * (64 + 32 + 32 + 64 + 128 + 128 + 64)  # output channels of the same
GROUPS_64 = LINEAR // 64
NORMS = 5 * 64
EMBEDDING = 258 * 64

BY_HAND = {
    ("llama", "fp32"): 4 * (LINEAR + NORMS + 2 * EMBEDDING),
    ("llama-tied", "fp32"): 4 * (LINEAR + NORMS + EMBEDDING),
    ("llama-tied", "bf16"): 2 * (LINEAR + NORMS + EMBEDDING),
    ("llama", "int8"): LINEAR + 2 * ROWS + 4 * (NORMS + 2 * EMBEDDING),
    ("llama-tied", "int8"): LINEAR + 2 * ROWS + 4 * (NORMS + EMBEDDING),
    ("llama", "int4-g64"): LINEAR // 2 + GROUPS_64 * 5 // 2 + 4 * (NORMS + 2 * EMBEDDING),
    ("llama-tied", "int4-g64"): LINEAR // 2 + GROUPS_64 * 5 // 2 + 4 * (NORMS + EMBEDDING),
    ("llama-tied", "nf4-g64"): LINEAR // 2 + GROUPS_64 * 2 + 4 * (NORMS + EMBEDDING),
    ("llama-tied", "int8-head8"): LINEAR + 2 * ROWS + 4 * NORMS + EMBEDDING + 2 * 258,
    ("llama", "int8-head8"): LINEAR + 2 * ROWS + 4 * NORMS + 2 * (EMBEDDING + 2 * 258),
}


def ids() -> torch.Tensor:
    return torch.randint(0, 256, (2, 24), generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize(("kind", "name"), BY_HAND, ids=lambda value: str(value))
def test_stored_bytes_equal_a_count_by_hand(kind, name):
    assert quantize(tiny.model(kind), parse(name)).stored_bytes == BY_HAND[kind, name]


@pytest.mark.parametrize("kind", tiny.CONFIGS)
@pytest.mark.parametrize("name", common())
def test_every_recipe_quantizes_every_architecture_for_real(kind, name):
    model = tiny.model(kind)
    before = {full: parameter.numel() for full, parameter in model.named_parameters()}
    baseline = model(ids()).logits
    ledger = quantize(model, parse(name))
    error = (model(ids()).logits - baseline).norm() / baseline.norm()
    assert {row.name: row.weights for row in ledger.rows if row.bytes_after} == before, (
        "logical weights never change"
    )
    if name == "fp32":
        assert error == 0 and ledger.coverage == 0 and ledger.bits_per_weight == 32
        return
    assert 0 < error < {2: 0.7, 3: 0.4, 4: 0.2, 5: 0.1}.get(getattr(parse(name).weights, "bits", 8), 0.02)
    quantized = {row.name for row in ledger.quantized}
    assert all(
        any(part in full for full in quantized)
        for part in {"moe": ("experts.gate_up_proj", "experts.down_proj")}.get(kind, ("mlp",))
    )
    assert ledger.stored_bytes < sum(row.bytes_before for row in ledger.rows)


def test_dequantized_weights_in_a_plain_model_give_the_same_logits():
    """The oracle for weight-only recipes: the quantized model computes with exactly its dequantized
    weights."""
    for kind in ("llama", "gpt2"):
        quantized, plain = tiny.model(kind), tiny.model(kind)
        quantize(quantized, parse("int4-g32"))
        for name, module in quantized.named_modules():
            if hasattr(module, "quantized"):
                weight = module.quantized.dequantize()
                target = plain.get_submodule(name).weight
                target.data.copy_(weight.T if kind == "gpt2" else weight)
        torch.testing.assert_close(quantized(ids()).logits, plain(ids()).logits, atol=2e-5, rtol=1e-4)


def test_a_tied_head_and_embedding_stay_one_tensor():
    model = tiny.model("llama-tied")
    ledger = quantize(model, parse("int8-head8"))
    assert model.lm_head.codes.data_ptr() == model.model.embed_tokens.codes.data_ptr()
    shared = [row for row in ledger.rows if row.bytes_before == 0]
    assert [row.name for row in shared] == ["lm_head.weight"] and "Shares" in shared[0].reason


@pytest.mark.parametrize(
    ("pattern", "skipped"),
    [
        ("layers.0", lambda name: ".layers.0." in name),
        ("mlp.down_proj", lambda name: "down_proj" in name),
        ("self_attn.?_proj", lambda name: "self_attn" in name),
        ("layers.*.mlp", lambda name: ".mlp." in name),
    ],
)
def test_skip_patterns_match_whole_segments(pattern, skipped):
    ledger = quantize(tiny.model("llama"), parse("int8").with_modules(skip=(pattern,)))
    for row in ledger.rows:
        if "_proj" in row.name:
            assert (row.format is None) == skipped(row.name)
            assert (f"pattern {pattern!r}" in (row.reason or "")) == skipped(row.name)


@pytest.mark.row("21")
@pytest.mark.parametrize("pattern", ["layers.7", "yer.0", "down", "lm_heads", ""])
def test_a_pattern_that_matches_nothing_is_an_error(pattern):
    with pytest.raises(InputError, match="matches no module"):
        quantize(tiny.model("llama"), parse("int8").with_modules(skip=(pattern,)))


def test_skipping_everything_turns_the_run_red():
    with pytest.raises(NotAppliedError, match="changed nothing"):
        quantize(tiny.model("llama"), parse("int8").with_modules(skip=("layers",)))


def test_experts_whose_layout_is_unknown_turn_the_run_red():
    model = tiny.model("moe")
    experts = model.model.layers[0].mlp.experts
    del experts.is_transposed
    experts.mystery = experts.gate_up_proj  # the sizes of a known name would tell the layout
    del experts.gate_up_proj
    with pytest.raises(NotAppliedError, match="layers.0.mlp.experts.mystery"):
        quantize(model, parse("int4-g64"))


@pytest.mark.row("12")
def test_quantizing_twice_is_refused():
    model = tiny.model("llama")
    quantize(model, parse("int8"))
    with pytest.raises(InputError, match="quantized already"):
        quantize(model, parse("int4-g64"))


def test_weights_beyond_fp16_are_refused_by_name():
    model = tiny.model("llama")
    model.model.layers[1].mlp.up_proj.weight.data[0, 0] = 1e6
    with pytest.raises(InputError, match="layers.1.mlp.up_proj.weight holds values above"):
        quantize(model, parse("fp16"))


def test_routers_norms_and_the_head_are_kept_and_say_why():
    reasons = {row.name: row.reason for row in quantize(tiny.model("moe"), parse("int4-g64")).rows}
    assert "Routers" in reasons["model.layers.0.mlp.gate.weight"]
    assert "Norms" in reasons["model.norm.weight"]
    assert "head is kept" in reasons["lm_head.weight"]
    assert reasons["model.layers.0.self_attn.q_proj.weight"] is None


def test_progress_ends_complete():
    seen = []
    quantize(tiny.model("llama"), parse("int8"), progress=lambda *event: seen.append(event))
    assert seen[0] == (0, 14, "model.layers.0.self_attn.q_proj.weight") and seen[-1][:2] == (14, 14)


def test_a_ledger_survives_json_and_a_damaged_one_is_refused():
    ledger = quantize(tiny.model("gpt2"), parse("nf4-g64"))
    assert Ledger.from_dict(ledger.to_dict()) == ledger
    with pytest.raises(InputError, match="cannot be read"):
        Ledger.from_dict({"recipe": "int8", "rows": [{"name": "x"}]})


@pytest.mark.parametrize("name", ["int4-g64", "int8-head8", "nf4-g64-dq"])
@pytest.mark.parametrize("kind", ["llama", "llama-tied", "gpt2"])
def test_each_original_is_freed_before_the_next_is_read(kind, name):
    """So the peak is the model plus one layer, see tests/quantization/methods/test_rtn.py."""
    model, done = tiny.model(kind), []
    storages = {
        full: StorageWeakRef(parameter.untyped_storage()) for full, parameter in model.named_parameters()
    }

    def progress(i: int, total: int, at: str) -> None:
        held = {
            parameter.untyped_storage()._cdata for parameter in model.parameters()
        }  # the other half of a tied pair comes later
        assert not [
            full for full in done if not storages[full].expired() and storages[full].cdata not in held
        ]
        done.append(at) if at in storages else None

    quantize(model, parse(name), progress=progress)
    assert len(done) > 6 and all(storages[full].expired() for full in done)
