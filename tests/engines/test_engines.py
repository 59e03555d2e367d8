"""Other libraries' recipes on tiny models: really applied, to the selected layers, with every byte
counted."""

import gc
import math
import sys
import weakref

import pytest
import tiny
import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from qcore import engines, recipes
from qcore.base import quiet
from qcore.base.errors import InputError, NotAppliedError, UnavailableError
from qcore.layers.select import select
from qcore.quantization import convert

quiet.silence()

NAMES = [
    name for name in recipes.engines.recipes() if not name.startswith("onnx-")
]  # those are a graph afterwards: tests/engines/onnx
# Relative error of the logits that each width may cause: a few times half a step of the format, 2 layers
# deep.
TOLERANCE = {name: 0.25 if "4" in name else 0.06 if name.startswith("torch-") else 0.02 for name in NAMES}
IDS = torch.randint(0, 256, (2, 12), generator=torch.Generator().manual_seed(1))


def quantized(kind: str, name: str, **modules):
    model = tiny.model(kind)
    return model, convert.quantize(model, recipes.parse(name).with_modules(**modules))


def relative(got: torch.Tensor, wanted: torch.Tensor) -> float:
    return ((got - wanted).norm() / wanted.norm()).item()


def expected_bytes(name: str, rows: int, columns: int) -> int:
    """The stored bytes of one (N, K) weight, counted by hand from each library's layout."""
    weights, blocks = rows * columns, math.ceil(rows * columns / 64)
    groups = (
        weights // 128 if columns % 128 == 0 and columns > 128 else rows
    )  # of quanto: one per channel up to 128 inputs
    return {
        "bnb-int8": weights + 4 * rows,
        "bnb-nf4": weights // 2 + 4 * blocks + 16 * 4,
        "bnb-nf4-dq": weights // 2 + blocks + 4 * math.ceil(blocks / 256) + 4 + 16 * 4 + 256 * 4,
        "bnb-fp4": weights // 2 + 4 * blocks + 16 * 4,
        "bnb-fp4-dq": weights // 2 + blocks + 4 * math.ceil(blocks / 256) + 4 + 16 * 4 + 256 * 4,
        "torchao-int8": weights + 4 * rows + rows,
        "torchao-int8-dynamic": weights + 4 * rows + rows,
        "torch-dynamic-int8": weights + 4 + 4,
        "quanto-int8": weights + 4 * rows,
        "quanto-int4": weights // 2 + 8 * groups,
    }[name]


@pytest.mark.parametrize("kind", ["llama", "llama-tied", "gpt2"])
@pytest.mark.parametrize("name", NAMES)
def test_every_linear_layer_is_quantized_and_the_logits_stay_near(name, kind):
    with torch.no_grad():
        wanted = tiny.model(kind)(IDS).logits
    model, ledger = quantized(kind, name)
    with torch.inference_mode():
        inside = model(IDS).logits
    with torch.no_grad():
        outside = model(IDS).logits
    assert torch.equal(inside, outside)
    assert 1e-4 < relative(outside, wanted) < TOLERANCE[name]  # below: nothing was quantized
    plain = tiny.model(kind)
    linear = {target.name for target in select(plain, recipes.parse("int8")).targets}
    head = {"lm_head.weight"} if name == "torch-dynamic-int8" else set()
    assert {row.name for row in ledger.rows if row.format} == linear | head
    assert not any(type(module) is Conv1D for module in model.modules())


@pytest.mark.parametrize("kind", ["llama", "llama-tied", "gpt2"])
@pytest.mark.parametrize("name", NAMES)
def test_stored_bytes_equal_a_count_by_hand(name, kind):
    plain = tiny.model(kind)
    parameters = dict(plain.named_parameters())
    targets = {target.name: target for target in select(plain, recipes.parse("int8")).targets}
    if name == "torch-dynamic-int8":
        targets["lm_head.weight"] = None
    total = 0
    for full, parameter in parameters.items():
        target = targets.get(full)
        shape = tuple(parameter.shape)[::-1] if target and target.kind == "conv1d" else tuple(parameter.shape)
        total += expected_bytes(name, *shape) if full in targets else parameter.nbytes
    if (
        name == "torch-dynamic-int8" and "lm_head.weight" not in parameters
    ):  # tied: the head becomes a copy of its own
        total += expected_bytes(name, *plain.lm_head.weight.shape)
    _, ledger = quantized(kind, name)
    assert ledger.stored_bytes == total
    assert {row.name for row in ledger.rows} >= parameters.keys()
    assert sum(row.bytes_before for row in ledger.rows) == sum(
        parameter.nbytes for parameter in parameters.values()
    )


@pytest.mark.parametrize("name", NAMES)
def test_generation_runs(name):
    model, _ = quantized("llama", name)
    tokens = model.generate(IDS[:1], max_new_tokens=4, do_sample=False, min_new_tokens=4)
    assert tokens.shape == (1, 16)


@pytest.mark.parametrize("name", NAMES)
def test_the_originals_are_freed(name):
    model = tiny.model("llama")
    original = weakref.ref(model.model.layers[0].mlp.up_proj.weight)
    convert.quantize(model, recipes.parse(name))
    gc.collect()
    assert original() is None


@pytest.mark.parametrize("name", NAMES)
def test_skip_patterns_are_honoured_and_said(name):
    model, ledger = quantized("llama", name, skip=("layers.0", "down_proj"))
    rows = {row.name: row for row in ledger.rows}
    for full, row in rows.items():
        if "layers.0." in full or "down_proj" in full:
            assert row.format is None and row.bytes_after == row.bytes_before
    assert "layers.0" in rows["model.layers.0.mlp.up_proj.weight"].reason
    assert type(model.model.layers[0].self_attn.q_proj) is nn.Linear
    assert model.model.layers[0].self_attn.q_proj.weight.dtype == torch.float32
    assert rows["model.layers.1.mlp.up_proj.weight"].format


@pytest.mark.row("21")
@pytest.mark.parametrize("name", NAMES)
def test_a_skip_pattern_that_matches_nothing_is_an_error(name):
    with pytest.raises(InputError, match="nosuch"):
        quantized("llama", name, skip=("nosuch",))


@pytest.mark.parametrize("name", NAMES)
def test_the_head_is_quantized_on_request(name):
    _, ledger = quantized("llama", name, head="same")
    assert next(row for row in ledger.rows if row.name == "lm_head.weight").format


def test_torch_dynamic_says_that_it_took_the_head_and_lets_it_be_skipped():
    _, ledger = quantized("llama", "torch-dynamic-int8")
    row = next(row for row in ledger.rows if row.name == "lm_head.weight")
    assert row.format == "torch-dynamic-int8" and "default" in row.reason
    _, ledger = quantized("llama", "torch-dynamic-int8", skip=("lm_head",))
    row = next(row for row in ledger.rows if row.name == "lm_head.weight")
    assert row.format is None and "lm_head" in row.reason


def test_torch_dynamic_gives_a_tied_head_a_copy_of_its_own():
    model, ledger = quantized("llama-tied", "torch-dynamic-int8")
    rows = {row.name: row for row in ledger.rows}
    embedding, head = rows["model.embed_tokens.weight"], rows["lm_head.weight"]
    assert (
        embedding.format is None
        and embedding.bytes_after == model.model.embed_tokens.weight.nbytes
        and "copy" in embedding.reason
    )
    assert head.bytes_before == 0 and head.bytes_after == 258 * 64 + 8


@pytest.mark.parametrize(
    "modules", [{"head": "int8"}, {"embeddings": "same"}, {"embeddings": "int8"}], ids=str
)
def test_what_a_library_cannot_store_is_an_error(modules):
    with pytest.raises(InputError, match=next(iter(modules))):
        quantized("llama", "bnb-nf4", **modules)


@pytest.mark.parametrize("name", NAMES)
def test_fused_experts_turn_the_run_red_unless_they_are_skipped_on_purpose(name):
    with pytest.raises(NotAppliedError, match="experts"):
        quantized("moe", name)
    model, ledger = quantized("moe", name, skip=("experts",))
    assert ledger.quantized and model(IDS).logits.isfinite().all()


@pytest.mark.parametrize("name", NAMES)
def test_a_quantized_model_is_not_quantized_again(name):
    model, _ = quantized("llama", name)
    with pytest.raises((InputError, NotAppliedError), match="already|changed nothing"):
        convert.quantize(model, recipes.parse(name))


@pytest.mark.row("9")
@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("value", [0.0, 1e-20, 1e-40], ids=str)
def test_vanishing_rows_stay_finite(name, value):
    model = tiny.model("llama")
    with torch.no_grad():
        model.model.layers[0].mlp.up_proj.weight[:5] = value
    convert.quantize(model, recipes.parse(name))
    with torch.no_grad():
        assert model(IDS).logits.isfinite().all()


@pytest.mark.parametrize("name", NAMES)
def test_biases_are_applied(name):
    """GPT-2's layers have biases; with a zero input each layer must return exactly its bias."""
    model, _ = quantized("gpt2", name)
    layer = model.transformer.h[0].mlp.c_fc
    bias = torch.linspace(-1, 1, 256)
    with torch.no_grad():
        if name == "torch-dynamic-int8":
            layer.set_weight_bias(layer.weight(), bias)
        else:
            layer.bias.data = bias
        assert torch.allclose(layer(torch.zeros(1, 64)), bias, atol=1e-6)


def test_progress_names_each_layer_and_ends_complete():
    seen = []
    convert.quantize(
        tiny.model("llama"),
        recipes.parse("torchao-int8"),
        progress=lambda done, total, name: seen.append((done, total, name)),
    )
    assert [done for done, _, _ in seen] == list(range(15))
    assert seen[0][2] == "model.layers.0.self_attn.q_proj.weight" and seen[-1] == (14, 14, "")


# -- a library that does nothing, is missing, or does not load -----------------------------------------------


def test_a_silent_no_op_of_torchao_is_noticed(monkeypatch):
    monkeypatch.setattr("torchao.quantization.quantize_", lambda model, config: None)
    with pytest.raises(
        NotAppliedError, match="q_proj.weight: torchao returned a layer that is not quantized"
    ):
        quantized("llama", "torchao-int8")


def test_a_silent_no_op_of_quanto_is_noticed(monkeypatch):
    monkeypatch.setattr("optimum.quanto.freeze", lambda model: None)
    with pytest.raises(NotAppliedError, match="optimum-quanto"):
        quantized("llama", "quanto-int8")


def test_a_silent_no_op_of_torch_is_noticed(monkeypatch):
    monkeypatch.setattr("torch.ao.quantization.quantize_dynamic", lambda model, *args, **options: model)
    with pytest.raises(NotAppliedError, match="torch.ao"):
        quantized("llama", "torch-dynamic-int8")


@pytest.mark.parametrize("name, kind", [("bnb-int8", "Int8Params"), ("bnb-nf4", "Params4bit")])
def test_a_silent_no_op_of_bitsandbytes_is_noticed(monkeypatch, name, kind):
    monkeypatch.setattr(f"bitsandbytes.nn.{kind}._quantize", lambda self, device: self)
    with pytest.raises(NotAppliedError, match="bitsandbytes"):
        quantized("llama", name)


@pytest.mark.row("39")
@pytest.mark.parametrize("library", list(engines.ENGINES))
def test_a_missing_library_says_how_to_get_it(monkeypatch, library):
    assert engines.available(library) is None
    monkeypatch.setattr(engines, "find_spec", lambda package: None)
    assert "pip install" in engines.available(library)
    with pytest.raises(UnavailableError, match="not installed"):
        engines.load(library)


@pytest.mark.row("39")
def test_a_missing_parent_package_counts_as_missing(monkeypatch):
    def raise_it(package):
        raise ModuleNotFoundError("No module named 'optimum'")

    monkeypatch.setattr(engines, "find_spec", raise_it)
    assert "optimum-quanto is not installed" in engines.available("quanto")


@pytest.mark.row("39")
def test_a_library_that_does_not_load_gives_its_reason(monkeypatch):
    backend = engines.load("quanto")
    monkeypatch.setitem(sys.modules, "optimum.quanto", None)
    with pytest.raises(UnavailableError, match="optimum-quanto is installed but does not load here"):
        backend.apply(tiny.model("llama"), recipes.parse("quanto-int8"), lambda *step: None)


def test_an_unknown_library_gets_a_suggestion():
    with pytest.raises(InputError, match="Did you mean torchao"):
        engines.load("torchoa")


def test_torch_dynamic_refuses_another_device():
    model = tiny.model("llama").to("meta")
    with pytest.raises(UnavailableError, match="CPU only"):
        convert.quantize(model, recipes.parse("torch-dynamic-int8"))


def test_torch_dynamic_without_kernels_is_unavailable(monkeypatch):
    monkeypatch.setattr("qcore.engines.torch_dynamic._engines", lambda: [])
    assert "no quantized kernels" in engines.available("torch_dynamic")
