"""GGUF files of tiny Llama models, written with the gguf library."""

import gguf
import numpy as np
import torch
from transformers import LlamaConfig

from qcore.interop import ggml
from qcore.quantization import methods

TOKENS = [chr(65 + i) for i in range(60)] + ["ab", "cd", "<s>", "</s>"]
CONFIG = LlamaConfig(
    hidden_size=64,
    intermediate_size=96,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    vocab_size=len(TOKENS),
    max_position_embeddings=128,
    tie_word_embeddings=True,
    bos_token_id=62,
    eos_token_id=63,
)
WIDE = LlamaConfig(**{**CONFIG.to_dict(), "hidden_size": 256, "intermediate_size": 256, "head_dim": 64})
"""A model of whole super-blocks."""
NAMES = {
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
}


def interleave(weight, heads):
    """GGUF keeps the two halves of each rotary pair side by side."""
    return weight.reshape(heads, 2, weight.shape[0] // heads // 2, -1).swapaxes(1, 2).reshape(weight.shape)


def pack(weight, kind):
    """The bytes (rows, bytes per row) of a matrix in the type `kind`. The gguf library writes some types:
    the codes of others come from qcore's rounding, or are random where it has no format."""
    try:
        return gguf.quantize(np.ascontiguousarray(weight), kind)
    except NotImplementedError:
        pass
    if kind.name in ggml.FORMATS:
        codes = methods.quantize(
            torch.from_numpy(np.ascontiguousarray(weight)), ggml.FORMATS[kind.name], "rtn"
        )
        return ggml.encode(codes).numpy()
    block, nbytes = gguf.GGML_QUANT_SIZES[kind]
    blocks = np.random.default_rng(0).integers(0, 256, (weight.size // block, nbytes), dtype=np.uint8)
    blocks[:, :2] = np.frombuffer(
        np.float16(1e-4).tobytes(), np.uint8
    )  # the scale that these types begin with
    return blocks.reshape(weight.shape[0], -1)


def described(path, config):
    """A writer of a file with the settings of `config` and the tokens of these models."""
    writer = gguf.GGUFWriter(str(path), "llama")
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(10000.0)
    writer.add_vocab_size(len(TOKENS))
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list(TOKENS)
    writer.add_token_types([1] * 62 + [3, 3])
    writer.add_token_merges(["a b", "c d"])
    writer.add_bos_token_id(62)
    writer.add_eos_token_id(63)
    return writer


def write_random(path, config, kind):
    """Write a model of any size in seconds: matrices of random codes with one small scale, norms of ones. The
    blocks of the type `kind` begin with their scale."""
    writer, rng = described(path, config), np.random.default_rng(0)
    width, values = config.hidden_size, config.hidden_size // config.num_attention_heads
    narrow, inner = values * config.num_key_value_heads, config.intermediate_size
    shapes = {
        "attn_q": (width, width),
        "attn_k": (narrow, width),
        "attn_v": (narrow, width),
        "attn_output": (width, width),
        "ffn_gate": (inner, width),
        "ffn_up": (inner, width),
        "ffn_down": (width, inner),
    }
    size, nbytes = gguf.GGML_QUANT_SIZES[kind]
    writer.add_tensor("token_embd.weight", rng.standard_normal((len(TOKENS), width), np.float32))
    writer.add_tensor("output_norm.weight", np.ones(width, np.float32))
    for layer in range(config.num_hidden_layers):
        for name, (rows, columns) in shapes.items():
            blocks = rng.integers(0, 256, (rows * columns // size, nbytes), dtype=np.uint8)
            blocks[:, :2] = np.frombuffer(np.float16(2e-3).tobytes(), np.uint8)
            writer.add_tensor(f"blk.{layer}.{name}.weight", blocks.reshape(rows, -1), raw_dtype=kind)
        for name in ("attn_norm", "ffn_norm"):
            writer.add_tensor(f"blk.{layer}.{name}.weight", np.ones(width, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def write(path, model, kind=None, *, extra=None, settings=None):
    """Write `model` as GGUF: in fp32, or its matrices as `kind`, a type or a function of the name there to a
    type. `extra` are further tensors by name, `settings` adds further settings to the writer. Returns the
    matrices that such a file holds, by our names, in the file's order of rows."""
    config = model.config
    writer = described(path, config)
    if settings is not None:
        settings(writer)
    held = {}

    def add(name, ours, weight, heads=None):
        weight = weight.detach().numpy()
        stored = interleave(weight, heads) if heads else weight
        chosen = kind(name) if callable(kind) else kind
        if chosen is None or weight.ndim == 1:
            writer.add_tensor(name, np.ascontiguousarray(stored))
            held[ours] = torch.from_numpy(weight)
            return
        packed = pack(stored, chosen)
        writer.add_tensor(name, packed, raw_dtype=chosen)
        held[ours] = gguf.dequantize(packed, chosen)

    state = dict(model.named_parameters())
    add("token_embd.weight", "model.embed_tokens.weight", state["model.embed_tokens.weight"])
    add("output_norm.weight", "model.norm.weight", state["model.norm.weight"])
    if not config.tie_word_embeddings:
        add("output.weight", "lm_head.weight", state["lm_head.weight"])
    for layer in range(config.num_hidden_layers):
        for ours, theirs in NAMES.items():
            heads = {
                "self_attn.q_proj": config.num_attention_heads,
                "self_attn.k_proj": config.num_key_value_heads,
            }.get(ours)
            name = f"model.layers.{layer}.{ours}.weight"
            add(f"blk.{layer}.{theirs}.weight", name, state[name], heads)
    for name, values in (extra or {}).items():
        writer.add_tensor(name, values)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return held
