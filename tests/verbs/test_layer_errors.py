"""qcore.verbs.layer_errors: error per layer and histograms, computed from the files, equal those of the
quantized model."""

import json
import math

import pytest
import tiny
import torch
from safetensors.torch import load_file, save_file

from qcore import library, recipes
from qcore.base.errors import InputError
from qcore.formats.codebook import Codebook
from qcore.formats.uniform import Uniform
from qcore.layers.modules import QuantExperts, QuantizedModule
from qcore.layers.select import select
from qcore.quantization import convert, methods
from qcore.verbs import layer_errors

KINDS = ["llama", "llama-tied", "gpt2", "moe"]


@pytest.fixture
def checkpoint(tmp_path):
    def make(kind: str):
        return library.resolve(str(tiny.checkpoint(kind, tmp_path / kind)))

    return make


def plain_error(original: torch.Tensor, restored: torch.Tensor) -> float:
    return ((restored.double() - original.double()).norm() / original.double().norm()).item()


@pytest.mark.parametrize("kind", ["llama", "llama-tied", "gpt2"])
@pytest.mark.parametrize("name", ["int8", "int4-g64", "nf4-g64-dq", "kmeans4", "int4-g32-head8"])
def test_errors_equal_those_of_the_quantized_model(checkpoint, kind, name):
    """The oracle: quantize the model in memory and compare its modules' weights with the original's."""
    found = layer_errors.errors(checkpoint(kind), recipes.parse(name))
    original = tiny.model(kind)
    originals = dict(original.named_parameters())
    targets = [target for target in select(original, recipes.parse(name)).targets if target.name in originals]
    assert [error.name for error in found] == [target.name for target in targets]
    model = tiny.model(kind)
    ledger = convert.quantize(model, recipes.parse(name))
    rows = {row.name: row for row in ledger.rows}
    for error, target in zip(found, targets, strict=True):
        module = model.get_submodule(target.module)
        assert isinstance(module, QuantizedModule)
        before = originals[target.name].T if target.kind == "conv1d" else originals[target.name]
        assert error.relative_error == pytest.approx(plain_error(before, module.weight), rel=1e-4)
        assert error.snr_db == pytest.approx(-20 * math.log10(error.relative_error))
        assert error.shape == tuple(originals[target.name].shape)
        assert error.bits_per_weight == pytest.approx(
            8 * rows[error.name].bytes_after / rows[error.name].weights
        )
        assert error.format == rows[error.name].format


def test_experts_that_the_files_keep_apart_are_measured_together(checkpoint):
    recipe = recipes.parse("int4-g64")
    found = {error.name: error for error in layer_errors.errors(checkpoint("moe"), recipe)}
    shapes = {name: error.shape for name, error in found.items() if ".experts." in name}
    assert shapes == {
        f"model.layers.{i}.mlp.experts.{name}": shape
        for i in range(2)
        for name, shape in (("gate_up_proj", (4, 128, 64)), ("down_proj", (4, 64, 64)))
    }
    model, original = tiny.model("moe"), tiny.model("moe")
    convert.quantize(model, recipe)
    for name in shapes:
        held = model.get_submodule(name)
        assert isinstance(held, QuantExperts)
        restored = torch.stack([held[i] for i in range(4)])
        assert found[name].relative_error == pytest.approx(
            plain_error(original.get_parameter(name), restored), rel=1e-4
        )


def test_names_are_the_models_whatever_the_files_call_them(tmp_path):
    """The rules of transformers map stored tensors to parameters."""
    path = tiny.checkpoint("moe", tmp_path / "m")
    stored = set(load_file(path / "model.safetensors"))
    found = layer_errors.names(library.resolve(str(path)), recipes.parse("int8"))
    assert not stored & {name for name in found if "experts" in name}, "every name is the model's"
    weight = layer_errors.weight(library.resolve(str(path)), "model.layers.0.mlp.experts.gate_up_proj")
    assert torch.equal(weight, tiny.model("moe").model.layers[0].mlp.experts.gate_up_proj[0])


def test_split_experts_of_a_skipped_block_are_left_out(checkpoint):
    recipe = recipes.parse("int4-g64").with_modules(skip=("layers.0",))
    assert not any("layers.0." in name for name in layer_errors.names(checkpoint("moe"), recipe))
    assert sum(".experts." in name for name in layer_errors.names(checkpoint("moe"), recipe)) == 2
    recipe = recipes.parse("int4-g64").with_modules(skip=("experts",))
    assert not any(".experts." in name for name in layer_errors.names(checkpoint("moe"), recipe))


def test_experts_stored_in_one_tensor(tmp_path):
    """A file may store (experts, N, K) itself: each expert is quantized separately, and the errors are
    summed."""
    path = tiny.checkpoint("moe", tmp_path / "m")
    tensors = load_file(path / "model.safetensors")
    for block in range(2):
        old = f"model.layers.{block}.block_sparse_moe"
        stack = {
            w: torch.stack([tensors.pop(f"{old}.experts.{i}.{w}.weight") for i in range(4)])
            for w in ("w1", "w2", "w3")
        }
        tensors[f"model.layers.{block}.mlp.experts.gate_up_proj"] = torch.cat(
            (stack["w1"], stack["w3"]), dim=1
        )
        tensors[f"model.layers.{block}.mlp.experts.down_proj"] = stack["w2"]
        tensors[f"model.layers.{block}.mlp.gate.weight"] = tensors.pop(f"{old}.gate.weight")
    save_file(tensors, path / "model.safetensors", metadata={"format": "pt"})
    recipe = recipes.parse("int8")
    found = {error.name: error for error in layer_errors.errors(library.resolve(str(path)), recipe)}
    error = found["model.layers.0.mlp.experts.gate_up_proj"]
    weight = tensors["model.layers.0.mlp.experts.gate_up_proj"]
    restored = torch.stack([methods.quantize(each, recipe.weights, "rtn").dequantize() for each in weight])
    assert error.shape == (4, 128, 64)
    assert error.relative_error == pytest.approx(plain_error(weight, restored), rel=1e-4)


def test_a_bare_model_without_its_prefix(tmp_path):
    """GPT-2 on the hub is stored as "h.0…", but the language model's name is "transformer.h.0…"."""
    path = tiny.checkpoint("gpt2", tmp_path / "m")
    tensors = load_file(path / "model.safetensors")
    save_file(
        {name.removeprefix("transformer."): each for name, each in tensors.items()},
        path / "model.safetensors",
        {"format": "pt"},
    )
    found = layer_errors.errors(library.resolve(str(path)), recipes.parse("int8"))
    assert len(found) == 8 and found[0].name == "transformer.h.0.attn.c_attn.weight"


def test_a_lossless_layer_has_no_error_and_infinite_snr(tmp_path):
    path = tiny.checkpoint("llama", tmp_path / "m")
    tensors = load_file(path / "model.safetensors")
    codes = torch.randint(-8, 8, (128, 64))
    codes[:, 0], codes[:, 1] = -8, 7  # every group spans the grid, so the grid is found exactly
    name = "model.layers.0.mlp.up_proj.weight"
    tensors[name] = codes * 0.25
    tensors["model.layers.0.mlp.gate_proj.weight"] = torch.zeros(128, 64)
    save_file(tensors, path / "model.safetensors", metadata={"format": "pt"})
    found = {
        error.name: error
        for error in layer_errors.errors(library.resolve(str(path)), recipes.parse("int4-g64"))
    }
    for each in (found[name], found["model.layers.0.mlp.gate_proj.weight"]):
        assert each.relative_error == 0 and each.snr_db == math.inf


def test_more_bits_less_error(checkpoint):
    model = checkpoint("llama")
    mean = [
        sum(error.snr_db for error in layer_errors.errors(model, recipes.parse(name))) / 14
        for name in ("int2", "int3", "int4-g64", "int8-g64")
    ]
    steps = [b - a for a, b in zip(mean, mean[1:], strict=False)]
    assert all(step > 4.5 for step in steps) and 4 * 4.5 < steps[2] < 4 * 7.5  # about 6 dB per bit


def test_sixteen_bit_and_sharded_files_are_read(tmp_path):
    model = tiny.model("llama").to(torch.bfloat16)
    model.save_pretrained(tmp_path / "m", max_shard_size="100KB")
    tiny.tokenizer().save_pretrained(tmp_path / "m")
    checkpoint = library.resolve(str(tmp_path / "m"))
    assert len({tensor.file for tensor in checkpoint.tensors.values()}) > 1
    assert all(
        0 < error.relative_error < 0.01 for error in layer_errors.errors(checkpoint, recipes.parse("int8"))
    )


def test_progress_ends_complete(checkpoint):
    seen = []
    layer_errors.errors(
        checkpoint("llama"), recipes.parse("int8"), lambda done, total, name: seen.append((done, total, name))
    )
    assert seen[0] == (0, 14, "model.layers.0.self_attn.q_proj.weight") and seen[-1] == (14, 14, "")


# -- histograms ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name", ["int4-g64", "int4-g64-sym", "int8", "nf4-g64", "fp4-g64-dq", "kmeans4", "kmeans4-g64"]
)
def test_a_histogram_counts_every_weight_once(checkpoint, name):
    result = layer_errors.histogram(
        checkpoint("llama"), "model.layers.0.mlp.up_proj.weight", recipes.parse(name), bins=50
    )
    assert len(result.edges) == 51 and sum(result.before) == sum(result.after) == 128 * 64
    weight = tiny.model("llama").model.layers[0].mlp.up_proj.weight.detach()
    assert result.edges[0] <= weight.min() and result.edges[-1] >= weight.max()
    inside = ((weight >= result.edges[20]) & (weight < result.edges[21])).sum()
    assert abs(result.before[20] - inside) <= 1
    json.dumps(result.__dict__)


@pytest.mark.parametrize(
    "kind, name",
    [("gpt2", "transformer.h.1.mlp.c_fc.weight"), ("moe", "model.layers.0.mlp.experts.down_proj")],
)
def test_histograms_of_conv1d_and_experts(checkpoint, kind, name):
    result = layer_errors.histogram(checkpoint(kind), name, recipes.parse("int3"))
    assert sum(result.before) == sum(result.after) == 64 * 256 and len(result.before) == 200


@pytest.mark.parametrize(
    "format, method, size",
    [
        (Uniform(4, 64, False), "rtn", 16),
        (Uniform(4, 64, True), "rtn", 15),
        (Uniform(8, None, True), "rtn", 255),
        (Codebook("nf4", 64), "rtn", 16),
    ]
    + [(Codebook("kmeans4", None), "kmeans", 16), (Codebook("kmeans4", 64), "kmeans", 16)],
    ids=lambda value: getattr(value, "label", None),
)
def test_the_grid_holds_the_values_of_one_group(format, method, size):
    weight = torch.randn(
        1, 64, generator=torch.Generator().manual_seed(0)
    )  # one group only, so the grid is that group's
    quantized = methods.quantize(weight, format, method)
    values = layer_errors.grid(quantized)
    assert len(values) == size and list(values) == sorted(values)
    assert set(quantized.dequantize().flatten().tolist()) <= set(values)


def test_a_constant_weight_has_a_histogram(tmp_path):
    path = tiny.checkpoint("llama", tmp_path / "m")
    tensors = load_file(path / "model.safetensors")
    name = "model.layers.0.mlp.up_proj.weight"
    tensors[name] = torch.zeros(128, 64)
    save_file(tensors, path / "model.safetensors", metadata={"format": "pt"})
    result = layer_errors.histogram(library.resolve(str(path)), name, recipes.parse("int8"), bins=10)
    assert sum(result.before) == sum(result.after) == 128 * 64


# -- invalid input -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["fp32", "bf16", "onnx-fp32"])
def test_floating_point_recipes_have_no_codes(checkpoint, name):
    with pytest.raises(InputError, match="floating point"):
        layer_errors.errors(checkpoint("llama"), recipes.parse(name))


@pytest.mark.parametrize("name", [name for name in recipes.engines.recipes() if name != "onnx-fp32"])
def test_an_engine_names_the_nearest_recipe_of_ours(checkpoint, name):
    with pytest.raises(InputError, match="another library") as caught:
        layer_errors.errors(checkpoint("llama"), recipes.parse(name))
    nearest = str(caught.value).rsplit(" ", 1)[1].rstrip(".")
    assert recipes.parse(nearest).quantizes


def test_a_quantized_checkpoint_is_refused(checkpoint, tmp_path):
    from qcore.library import safetensors

    model, recipe = tiny.model("llama"), recipes.parse("int8")
    safetensors.save(model, tiny.tokenizer(), recipe, convert.quantize(model, recipe), tmp_path / "q")
    with pytest.raises(InputError, match="quantized already"):
        layer_errors.errors(library.resolve(str(tmp_path / "q")), recipe)


def test_a_typo_in_a_layer_gets_a_suggestion(checkpoint):
    with pytest.raises(InputError, match="Did you mean model.layers.0.mlp.up_proj.weight"):
        layer_errors.histogram(
            checkpoint("llama"), "model.layers.0.mlp.up_porj.weight", recipes.parse("int8")
        )


@pytest.mark.parametrize("name", ["model.norm.weight", "lm_head.weight", "model.embed_tokens.weight"])
def test_a_kept_tensor_says_why(checkpoint, name):
    with pytest.raises(InputError, match="is not changed by int8. .*kept"):
        layer_errors.histogram(checkpoint("llama"), name, recipes.parse("int8"))


@pytest.mark.parametrize("bins", [0, -1, 10**6, 2.5], ids=str)
def test_bins_are_checked(checkpoint, bins):
    with pytest.raises(InputError, match="bins"):
        layer_errors.histogram(
            checkpoint("llama"), "model.layers.0.mlp.up_proj.weight", recipes.parse("int8"), bins
        )


def test_a_skip_pattern_that_matches_nothing(checkpoint):
    with pytest.raises(InputError, match="nosuch"):
        layer_errors.errors(checkpoint("llama"), recipes.parse("int8").with_modules(skip=("nosuch",)))


@pytest.mark.parametrize("value", [math.nan, math.inf], ids=str)
def test_broken_weights_are_named(tmp_path, value):
    path = tiny.checkpoint("llama", tmp_path / "m")
    tensors = load_file(path / "model.safetensors")
    tensors["model.layers.1.mlp.up_proj.weight"][3, 4] = value
    save_file(tensors, path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(InputError, match=r"model.layers.1.mlp.up_proj.weight\[3, 4\]"):
        layer_errors.errors(library.resolve(str(path)), recipes.parse("int8"))


def test_a_file_that_vanished_is_an_error(checkpoint):
    found = checkpoint("llama")
    (found.folder / "model.safetensors").unlink()
    with pytest.raises(InputError, match="can no longer be read"):
        layer_errors.errors(found, recipes.parse("int8"))
