"""Every setting and every tensor of a GGUF file that changes predictions is used, or the file is refused and
the sentence names it: as an original (converted) and with its own codes."""

import gguf
import numpy as np
import pytest
import torch
from gguf_models import CONFIG, write
from transformers import AutoModelForCausalLM, LlamaConfig

from qcore import library
from qcore.base.errors import InputError

IDS = torch.arange(40)[None]
Q8_0 = gguf.GGMLQuantizationType.Q8_0
ROPE = gguf.RopeScalingType
SIZES = {"attn_q": 64, "attn_k": 32, "attn_v": 32, "attn_output": 64}
FEED = {"ffn_gate": 96, "ffn_up": 96, "ffn_down": 64}
OURS = {
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
pytestmark = pytest.mark.usefixtures("own_home")


def make(config=CONFIG):
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()
    for parameter in model.parameters():
        if parameter.ndim > 1:
            parameter.data *= 6  # so that predictions depend on positions
    return model


def logits(path, as_stored):
    return library.load(library.resolve(path, as_stored=as_stored)).model(IDS).logits


def check_codes(path):
    """With its own codes, the file predicts the same as dequantized."""
    wanted = logits(path, False)
    assert (logits(path, True) - wanted).abs().max() <= 1e-3 * wanted.abs().max()


def rope(**parameters):
    return LlamaConfig(**{**CONFIG.to_dict(), "rope_parameters": {"rope_theta": 10000.0, **parameters}})


SCALED = {
    "linear": (
        lambda w: (w.add_rope_scaling_type(ROPE.LINEAR), w.add_rope_scaling_factor(4.0)),
        rope(rope_type="linear", factor=4.0),
    ),
    "a factor without a kind": (
        lambda w: w.add_rope_scaling_factor(4.0),
        rope(rope_type="linear", factor=4.0),
    ),
    "the older key": (
        lambda w: w.add_float32("llama.rope.scale_linear", 4.0),
        rope(rope_type="linear", factor=4.0),
    ),
    "yarn": (
        lambda w: (
            w.add_rope_scaling_type(ROPE.YARN),
            w.add_rope_scaling_factor(4.0),
            w.add_rope_scaling_orig_ctx_len(32),
        ),
        rope(rope_type="yarn", factor=4.0, original_max_position_embeddings=32),
    ),
    "switched off": (lambda w: (w.add_rope_scaling_type(ROPE.NONE), w.add_rope_scaling_factor(4.0)), CONFIG),
}


@pytest.mark.parametrize(("settings", "config"), SCALED.values(), ids=SCALED)
def test_scalings_of_the_rotary_embedding_are_used(tmp_path, settings, config):
    write(tmp_path / "t.gguf", make(), settings=settings)
    wanted = make(config)(IDS).logits
    assert torch.allclose(logits(tmp_path / "t.gguf", False), wanted, atol=1e-5)
    write(tmp_path / "q.gguf", make(), Q8_0, settings=settings)
    check_codes(tmp_path / "q.gguf")


def test_a_linear_scaling_and_factors_are_multiplied(tmp_path):
    factors = np.linspace(1, 3, 8, dtype=np.float32)
    settings = SCALED["a factor without a kind"][0]
    write(tmp_path / "both.gguf", make(), extra={"rope_freqs.weight": factors}, settings=settings)
    write(tmp_path / "one.gguf", make(), extra={"rope_freqs.weight": 4 * factors})
    assert torch.equal(logits(tmp_path / "both.gguf", False), logits(tmp_path / "one.gguf", False))


BIASED = {
    "q, k, v": [(layer, name) for layer in range(2) for name in ("attn_q", "attn_k", "attn_v")],
    "only in the second block": [(1, "attn_q")],
    "attention's output": [(layer, "attn_output") for layer in range(2)],
    "feed-forward": [(layer, name) for layer in range(2) for name in FEED],
}


@pytest.mark.parametrize("held", BIASED.values(), ids=BIASED)
def test_biases_of_a_llama_are_used_and_absent_ones_are_zero(tmp_path, held):
    attention = held[0][1] in SIZES
    biases = {"attention_bias": attention, "mlp_bias": not attention}
    model, values = make(LlamaConfig(**{**CONFIG.to_dict(), **biases})), np.random.default_rng(0)
    extra = {}
    for layer, name in held:
        bias = values.standard_normal((SIZES | FEED)[name]).astype(np.float32)
        module = model.get_submodule(f"model.layers.{layer}.{OURS[name]}")
        module.bias.data = torch.from_numpy(bias)
        heads = {"attn_q": 4, "attn_k": 2}.get(name)
        paired = bias if heads is None else bias.reshape(heads, 2, 8).swapaxes(1, 2).reshape(-1)
        extra[f"blk.{layer}.{name}.bias"] = paired
    wanted = model(IDS).logits
    write(tmp_path / "t.gguf", model, extra=extra)
    assert torch.allclose(logits(tmp_path / "t.gguf", False), wanted, atol=1e-5)
    write(tmp_path / "q.gguf", model, Q8_0, extra=extra)
    check_codes(tmp_path / "q.gguf")


REFUSED = {
    "an unknown tensor": (None, {"blk.0.attn_sinks.weight": np.ones(4, np.float32)}, "attn_sinks"),
    "a third block": (None, {"blk.2.attn_norm.weight": np.ones(64, np.float32)}, "blk.2.attn_norm"),
    "logit_scale": (lambda w: w.add_logit_scale(0.25), None, r"llama.logit_scale \(0.25\)"),
    "embedding_scale": (lambda w: w.add_embedding_scale(3.0), None, "llama.embedding_scale"),
    "soft caps": (lambda w: w.add_final_logit_softcapping(3.0), None, "llama.final_logit_softcapping"),
    "keys of 8": (lambda w: w.add_key_length(8), None, r"\(64, 64\), but its settings demand \(32, 64\)"),
    "values of 8": (lambda w: w.add_value_length(8), None, "llama.attention.value_length = 8"),
    "partial rotation": (lambda w: w.add_rope_dimension_count(8), None, "rotates 8 of the 16 numbers"),
    "window": (lambda w: w.add_sliding_window(8), None, "llama.attention.sliding_window"),
    "not causal": (lambda w: w.add_causal_attention(False), None, "llama.attention.causal"),
    "a list": (
        lambda w: w.add_array("llama.attention.sliding_window_pattern", [True, False]),
        None,
        "a list",
    ),
    "anything new": (lambda w: w.add_float32("llama.mystery", 3.0), None, "llama.mystery"),
}


@pytest.mark.parametrize(("settings", "extra", "message"), REFUSED.values(), ids=REFUSED)
@pytest.mark.parametrize("kind", [None, Q8_0], ids=["floats", "codes"])
def test_what_cannot_be_used_is_refused_by_name(tmp_path, kind, settings, extra, message):
    write(tmp_path / "t.gguf", make(), kind, settings=settings, extra=extra)
    for as_stored in (False, True):
        with pytest.raises(InputError, match=message):
            library.resolve(tmp_path / "t.gguf", as_stored=as_stored)


def test_settings_that_change_nothing_are_no_reason_to_refuse(tmp_path):
    def settings(writer):
        writer.add_logit_scale(1.0)
        writer.add_causal_attention(True)
        writer.add_sliding_window(128)
        writer.add_key_length(16)
        writer.add_value_length(16)
        writer.add_rope_dimension_count(16)
        writer.add_expert_count(0)
        writer.add_string("llama.tensor_data_layout", "Meta AI original pth")
        writer.add_string("quantize.imatrix.file", "x.dat")

    model = make()
    write(tmp_path / "t.gguf", model, settings=settings)
    assert torch.equal(logits(tmp_path / "t.gguf", False), model(IDS).logits)


def test_a_size_per_layer_is_refused(tmp_path):
    write(tmp_path / "t.gguf", make())
    content = (tmp_path / "t.gguf").read_bytes()
    old = b"llama.attention.head_count_kv" + np.array([4, 2], "<u4").tobytes()
    new = b"llama.attention.head_count_kv" + np.array([9, 4, 2, 0, 2, 2], "<u4").tobytes()
    assert content.count(old) == 1
    (tmp_path / "t.gguf").write_bytes(content.replace(old, new))
    with pytest.raises(InputError, match="llama.attention.head_count_kv as a list, one value per layer"):
        library.resolve(tmp_path / "t.gguf")
