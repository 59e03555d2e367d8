"""GGUF files of a tiny model, written with the gguf library."""

import gguf
import numpy as np
import torch
from transformers import LlamaConfig

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


def write(path, model, kind=None):
    """Write `model` as GGUF: in fp32, or its matrices as `kind`. Returns the weights that such a file holds,
    by our names."""
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
