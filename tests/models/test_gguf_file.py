"""GGUF files, written here with the gguf library from a tiny model, come back as that model."""

import shutil
import struct

import gguf
import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, LlamaConfig

from qcore import models
from qcore.errors import InputError
from qcore.models import gguf_file

TOKENS = [chr(65 + i) for i in range(60)] + ["ab", "cd", "<s>", "</s>"]
CONFIG = LlamaConfig(
    hidden_size=64, intermediate_size=96, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2, vocab_size=len(TOKENS),
    max_position_embeddings=128, tie_word_embeddings=True, bos_token_id=62, eos_token_id=63,
)  # fmt: skip
NAMES = {
    "self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k", "self_attn.v_proj": "attn_v", "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up", "mlp.down_proj": "ffn_down",
    "input_layernorm": "attn_norm", "post_attention_layernorm": "ffn_norm",
}  # fmt: skip


def interleave(weight, heads):
    """GGUF keeps the two halves of each rotary pair side by side."""
    return weight.reshape(heads, 2, weight.shape[0] // heads // 2, -1).swapaxes(1, 2).reshape(weight.shape)


def write(path, model, kind=None):
    """Write `model` as GGUF: in fp32, or its matrices as `kind`. Returns the weights that such a file holds, by our names."""
    writer = gguf.GGUFWriter(str(path), "llama")
    writer.add_context_length(CONFIG.max_position_embeddings)
    writer.add_embedding_length(CONFIG.hidden_size)
    writer.add_block_count(CONFIG.num_hidden_layers)
    writer.add_feed_forward_length(CONFIG.intermediate_size)
    writer.add_head_count(CONFIG.num_attention_heads)
    writer.add_head_count_kv(CONFIG.num_key_value_heads)
    writer.add_layer_norm_rms_eps(CONFIG.rms_norm_eps)
    writer.add_rope_freq_base(10000.0)
    writer.add_vocab_size(len(TOKENS))
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(TOKENS)
    writer.add_token_types([1] * 62 + [3, 3])
    writer.add_token_merges(["a b", "c d"])
    writer.add_bos_token_id(62)
    writer.add_eos_token_id(63)
    held = {}

    def add(name, ours, weight, heads=None):
        weight = weight.detach().numpy()
        stored = interleave(weight, heads) if heads else weight
        if kind is None or weight.ndim == 1:
            writer.add_tensor(name, np.ascontiguousarray(stored))
            held[ours] = torch.from_numpy(weight)
            return
        packed = gguf.quantize(np.ascontiguousarray(stored), kind)
        writer.add_tensor(name, packed, raw_dtype=kind)
        held[ours] = gguf.dequantize(packed, kind)

    state = dict(model.named_parameters())
    add("token_embd.weight", "model.embed_tokens.weight", state["model.embed_tokens.weight"])
    add("output_norm.weight", "model.norm.weight", state["model.norm.weight"])
    for layer in range(CONFIG.num_hidden_layers):
        for ours, theirs in NAMES.items():
            heads = {"self_attn.q_proj": 4, "self_attn.k_proj": 2}.get(ours)
            name = f"model.layers.{layer}.{ours}.weight"
            add(f"blk.{layer}.{theirs}.weight", name, state[name], heads)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return held


@pytest.fixture
def model(monkeypatch, tmp_path):
    monkeypatch.setenv("QCORE_HOME", str(tmp_path / "home"))
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(CONFIG, dtype=torch.float32).eval()


def test_a_float_file_is_the_model_bit_by_bit(model, tmp_path):
    write(tmp_path / "tiny.gguf", model)
    loaded = models.load(tmp_path / "tiny.gguf")
    ids = torch.arange(30)[None]
    assert torch.equal(loaded.model(ids).logits, model(ids).logits)
    assert loaded.checkpoint.source == "gguf"
    assert loaded.checkpoint.description == "A GGUF file in floating point, converted to fp32."
    assert "quantization_config" not in loaded.checkpoint.config
    assert loaded.tokenizer("abcd")["input_ids"][-2:] == [60, 61]


@pytest.mark.parametrize("kind", [gguf.GGMLQuantizationType.Q8_0, gguf.GGMLQuantizationType.Q4_1], ids=lambda kind: kind.name)
def test_a_quantized_file_is_dequantized_exactly_and_said_so(model, tmp_path, kind):
    held = write(tmp_path / "tiny.gguf", model, kind)
    checkpoint = models.resolve(tmp_path / "tiny.gguf")
    assert f"quantized as {kind.name} and dequantized to fp32" in checkpoint.description
    loaded = models.load(checkpoint).model
    for name in ("model.embed_tokens.weight", "model.layers.1.mlp.down_proj.weight", "model.layers.0.self_attn.v_proj.weight"):
        assert torch.equal(loaded.get_parameter(name), torch.as_tensor(held[name])), name


def test_it_is_converted_once(model, tmp_path, monkeypatch):
    write(tmp_path / "tiny.gguf", model)
    first = models.resolve(tmp_path / "tiny.gguf")
    monkeypatch.setattr(gguf_file, "convert", lambda *args: pytest.fail("converted again"))
    shutil.copy(tmp_path / "tiny.gguf", tmp_path / "copy.gguf")
    assert models.resolve(tmp_path / "copy.gguf").folder == first.folder


def test_nothing_half_written_stays(model, tmp_path, monkeypatch):
    write(tmp_path / "tiny.gguf", model)

    def fail(*args):
        raise InputError("no tokenizer")

    monkeypatch.setattr(gguf_file, "_load_tokenizer", fail)
    with pytest.raises(InputError, match="no tokenizer"):
        models.resolve(tmp_path / "tiny.gguf")
    assert [path.name for path in (tmp_path / "home" / "models").iterdir() if not path.name.endswith(".lock")] == []


def test_no_gguf_file(tmp_path):
    (tmp_path / "x.gguf").write_bytes(b"PK\3\4" + b"\0" * 40)
    with pytest.raises(InputError, match="not a GGUF file"):
        models.resolve(tmp_path / "x.gguf")
    with pytest.raises(InputError, match="absent.gguf cannot be read"):
        models.resolve(tmp_path / "absent.gguf")


@pytest.mark.parametrize(
    "version, tensors, entries, message",
    [
        (1, 1, 1, "version 1"),
        (3 << 24, 1, 1, "version"),
        (3, 0, 1, "claims 0 tensors"),
        (3, 1 << 60, 1, "claims"),
        (3, 1, 1 << 60, "claims"),
    ],
    ids=["old", "big-endian", "none", "tensors", "entries"],
)
def test_impossible_starts(tmp_path, version, tensors, entries, message):
    (tmp_path / "x.gguf").write_bytes(b"GGUF" + struct.pack("<IQQ", version, tensors, entries) + b"\0" * 100)
    with pytest.raises(InputError, match=message):
        models.resolve(tmp_path / "x.gguf")


@pytest.mark.parametrize("keep", [30, 200, 1500, -4000])
def test_truncated_files(model, tmp_path, keep):
    write(tmp_path / "tiny.gguf", model)
    content = (tmp_path / "tiny.gguf").read_bytes()
    (tmp_path / "tiny.gguf").write_bytes(content[:keep])
    with pytest.raises(InputError, match="tiny.gguf"):
        models.resolve(tmp_path / "tiny.gguf")


def test_one_part_of_several(model, tmp_path):
    write(tmp_path / "tiny-00002-of-00003.gguf", model)
    with pytest.raises(InputError, match="one part of several"):
        models.resolve(tmp_path / "tiny-00002-of-00003.gguf")
