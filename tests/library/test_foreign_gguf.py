"""GGUF files opened with their own codes, against the same files dequantized by transformers and gguf."""

import struct
from copy import deepcopy

import gguf
import gguf_models
import numpy as np
import pytest
import torch
from gguf_models import CONFIG, WIDE, write
from transformers import AutoModelForCausalLM, LlamaConfig

from qcore import library, planning, recipes
from qcore.base.errors import InputError
from qcore.formats.tensor import QuantizedTensor
from qcore.interop import ggml
from qcore.layers.modules import QuantEmbedding, QuantLinear
from qcore.library import foreign
from qcore.models import gguf_file
from qcore.verbs import checks

TYPE = gguf.GGMLQuantizationType
IDS = torch.arange(30)[None]
pytestmark = pytest.mark.usefixtures("own_home")


@pytest.fixture
def make(tmp_path):
    """Call it with a config, a type (see `gguf_models.write`) and further tensors: returns a file's path."""

    def make(config=CONFIG, kind=None, name="tiny.gguf", **more):
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_config(deepcopy(config), dtype=torch.float32).eval()
        for parameter in model.parameters():
            parameter.data *= 3  # so that predictions depend on the context
        write(tmp_path / name, model, kind, **more)
        return tmp_path / name

    return make


def as_stored(path):
    return library.load(library.resolve(path, as_stored=True))


def check_equal(path, tolerance=1e-3):
    """The codes of `path` are the numbers that transformers dequantizes it to, and so are the logits. Returns
    the loaded model."""
    loaded, dequantized = as_stored(path), library.load(path)
    for name, weight in dequantized.model.named_parameters(remove_duplicate=False):
        module = loaded.model.get_submodule(name.rpartition(".")[0])
        assert torch.equal(module.weight, weight), name
    wanted = dequantized.model(IDS).logits
    assert (loaded.model(IDS).logits - wanted).abs().max() <= tolerance * wanted.abs().max()
    return loaded


@pytest.mark.parametrize("kind", ggml.FORMATS)
def test_every_type_keeps_its_codes(make, kind):
    path = make(WIDE, TYPE[kind])
    # with 16-bit activations, kernels for tables round more than those for integers
    loaded = check_equal(path, 1e-2 if kind.startswith("IQ") else 1e-3)
    layers = [module for module in loaded.model.modules() if isinstance(module, QuantLinear | QuantEmbedding)]
    assert {layer.format for layer in layers} == {ggml.FORMATS[kind]} and len(layers) == 7 * 2 + 2
    assert loaded.checkpoint.foreign == "gguf" and loaded.checkpoint.is_quantized
    assert loaded.checkpoint.description == f"A GGUF file quantized as {kind}, with its own codes."
    rows = {row.name: row for row in loaded.ledger.rows}
    assert rows["model.layers.0.mlp.up_proj.weight"].format == kind
    assert rows["lm_head.weight"].shares == "model.embed_tokens.weight"
    stored = {tensor.name: tensor.n_bytes for tensor in gguf.GGUFReader(path).tensors}
    assert loaded.ledger.stored_bytes == sum(stored.values())
    assert loaded.ledger.bits_per_weight == pytest.approx(8 * ggml.row_bytes(kind, 256) / 256)
    assert loaded.recipe.name == "file:tiny.gguf" and loaded.model.config.eos_token_id == 63


def test_a_mixed_file_with_a_head_of_its_own(make):
    def kind(name):
        return {"output.weight": TYPE.Q6_K, "token_embd.weight": TYPE.Q4_K, "blk.0.attn_v.weight": None}.get(
            name, TYPE.Q4_0
        )

    loaded = check_equal(make(LlamaConfig(**{**WIDE.to_dict(), "tie_word_embeddings": False}), kind))
    formats = {row.name: row.format for row in loaded.ledger.rows}
    assert formats["lm_head.weight"] == "Q6_K" and formats["model.embed_tokens.weight"] == "Q4_K"
    assert formats["model.layers.0.self_attn.v_proj.weight"] is None


@pytest.mark.parametrize("kind", ["IQ3_S", "IQ2_XXS"])
def test_a_type_without_a_format_is_dequantized_and_said_so(make, kind):
    loaded = check_equal(make(WIDE, lambda name: TYPE[kind] if "ffn_down" in name else TYPE.Q8_0))
    rows = {row.name: row for row in loaded.ledger.rows}
    row = rows["model.layers.1.mlp.down_proj.weight"]
    assert (row.format, row.reason) == (kind, f"Dequantized to fp32: no format of qcore holds {kind}.")
    assert row.bytes_after == gguf.GGML_QUANT_SIZES[TYPE[kind]][1] * 256
    assert f"Tensors in {kind} are dequantized to fp32" in loaded.checkpoint.description
    held, codes = foreign.held_bytes(loaded.checkpoint)
    norms = 5 * 256 * 4
    assert held == codes + norms + 2 * 256 * 256 * 4


def test_sixteen_bit_floats_stay_floats(make):
    loaded = check_equal(make(CONFIG, lambda name: TYPE.Q8_0 if "ffn" in name else TYPE.BF16))
    row = next(row for row in loaded.ledger.rows if row.name == "model.embed_tokens.weight")
    assert (row.format, row.reason, row.bytes_after) == (None, "Stored as BF16.", 64 * 64 * 2)


def test_a_scaled_rotary_embedding(make):
    """The factors of Llama 3: transformers ignores them in GGUF, with other logits far from the beginning."""
    factors = np.linspace(1, 8, 8, dtype=np.float32)
    path = make(CONFIG, TYPE.Q8_0, extra={"rope_freqs.weight": factors})
    loaded, dequantized, unscaled = (
        as_stored(path),
        library.load(path),
        as_stored(make(CONFIG, TYPE.Q8_0, "b.gguf")),
    )
    plain = unscaled.model.model.rotary_emb.inv_freq
    for each in (loaded, dequantized):
        assert torch.allclose(each.model.model.rotary_emb.inv_freq, plain / torch.from_numpy(factors))
        assert each.model.model.rotary_emb.attention_scaling == 1.0
    wanted = dequantized.model(IDS).logits
    assert (loaded.model(IDS).logits - wanted).abs().max() <= 1e-3 * wanted.abs().max()
    assert (unscaled.model(IDS).logits - wanted).abs().max() > 0.01 * wanted.abs().max()


def test_the_settings_are_converted_once_and_no_weights(make, own_home, monkeypatch):
    path = make(CONFIG, TYPE.Q4_0)
    first = library.resolve(path, as_stored=True)
    monkeypatch.setattr(gguf_file, "load_tokenizer", lambda path: pytest.fail("converted again"))
    again = library.resolve(path, as_stored=True)
    assert again == first and again.stamp == first.stamp
    assert sorted(file.name for file in first.folder.iterdir() if file.suffix == ".safetensors") == []
    assert sum(file.stat().st_size for file in own_home.rglob("*") if file.is_file()) < 20_000


def test_a_file_in_floating_point_is_an_original(make):
    found = library.resolve(make(CONFIG), as_stored=True)
    assert not found.is_quantized and found.foreign is None


def test_verbs_that_run_a_model_take_its_codes_and_those_that_change_it_its_values(make):
    path = make(CONFIG, TYPE.Q4_1)
    assert checks.check_model(str(path)).foreign == "gguf"
    original = library.resolve(path)
    assert original.foreign is None and "dequantized to fp32" in original.description
    found = planning.check_fits(checks.check_model(str(path)), recipes.parse("fp32"))
    assert found.stored_bytes < original.nbytes / 5


@pytest.mark.parametrize("scale", [float("nan"), float("inf")])
def test_scales_that_are_not_finite_are_refused(make, scale):
    path = make(CONFIG, TYPE.Q8_0)
    tensor = next(each for each in gguf.GGUFReader(path).tensors if each.name == "blk.1.ffn_up.weight")
    content = bytearray(path.read_bytes())
    content[tensor.data_offset : tensor.data_offset + 2] = struct.pack("<e", scale)
    path.write_bytes(content)
    with pytest.raises(InputError, match="blk.1.ffn_up.weight of .* not finite"):
        as_stored(path)


def test_a_tensor_that_is_missing_extra_or_of_another_shape(make):
    path = make(CONFIG, TYPE.Q8_0)
    content = path.read_bytes()
    path.write_bytes(content.replace(b"blk.1.ffn_up.weight", b"blk.1.ffn_uq.weight"))
    with pytest.raises(InputError, match="blk.1.ffn_uq.weight, which has no place in a llama model"):
        as_stored(path)
    path.write_bytes(content.replace(b"blk.1.ffn_up.weight", b"rope_freqs.weight\0\0"))
    with pytest.raises(InputError):
        as_stored(path)
    shape = struct.pack("<IQQ", 2, 64, 96)
    place = content.index(b"blk.1.ffn_up.weight") + len("blk.1.ffn_up.weight")
    assert content[place : place + len(shape)] == shape
    path.write_bytes(content[:place] + struct.pack("<IQQ", 2, 96, 64) + content[place + len(shape) :])
    with pytest.raises(
        InputError, match="ffn_up.weight in the shape .64, 96., but its settings demand .96, 64."
    ):
        as_stored(path)


def test_matrices_of_one_format_are_joined_with_their_codes():
    torch.manual_seed(0)
    from qcore.quantization import methods

    for name in ("int3-g8", "int4-g32-sym", "nf4-g32", "gguf-q4_1"):
        format = recipes.parse(name).weights
        parts = [
            methods.quantize(torch.randn(rows, 40 if "g8" in name else 64), format, "rtn") for rows in (3, 5)
        ]
        whole = foreign.stacked(parts)
        assert isinstance(whole, QuantizedTensor) and whole.shape[0] == 8
        assert torch.equal(whole.dequantize(), torch.cat([part.dequantize() for part in parts]))


def test_the_writer_of_these_tests_covers_all_types():
    torch.manual_seed(0)
    for name in ggml.FORMATS:
        weight = torch.randn(4, 256).numpy()
        values = gguf.dequantize(gguf_models.pack(weight, TYPE[name]), TYPE[name])
        assert np.corrcoef(values.flatten(), weight.flatten())[0, 1] > 0.9
