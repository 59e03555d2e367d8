"""Write a Hugging Face Llama as a GGUF file in float32 for llama.cpp to quantize: the same weights that qcore
quantizes.

Rotary embeddings rotate pairs of dimensions. Hugging Face pairs dimension i of a head with i + size/2,
llama.cpp's `llama` architecture 2i with 2i + 1, so the rows of the query and key projections are permuted;
products of queries and keys are unchanged. The file has no tokenizer ("none"), because it only receives token
ids.
"""

from collections.abc import Iterator
from pathlib import Path

import torch

LAYER = {
    "input_layernorm": "attn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}
OUTSIDE = {"model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output"}


def interleaved(weight: torch.Tensor, heads: int) -> torch.Tensor:
    """Permute rows of a query or key projection (heads · size, K) so that the two rows of each rotated pair
    are adjacent."""
    size = weight.shape[0] // heads
    order = torch.arange(size).view(2, size // 2).T.flatten()  # 0, size/2, 1, size/2 + 1, …
    return weight.view(heads, size, -1)[:, order].reshape(weight.shape)


def tensors(model: torch.nn.Module) -> Iterator[tuple[str, torch.Tensor]]:
    """Return (name in the file, tensor) for every weight of `model`, without a tied output head, as llama.cpp
    expects.

    Raise `ValueError` for a weight without a name there, so that no weight is lost silently.
    """
    config = model.config
    tied = model.lm_head.weight is model.model.embed_tokens.weight
    for full, tensor in model.state_dict().items():
        name = full.removesuffix(".weight")
        if name == "lm_head" and tied:
            continue
        if name in OUTSIDE:
            yield f"{OUTSIDE[name]}.weight", tensor
            continue
        _, _, number, part = name.split(".", 3) if name.startswith("model.layers.") else ("", "", "", "")
        if part not in LAYER or not full.endswith(".weight"):
            raise ValueError(f"{full} has no place in a GGUF file of the llama architecture")
        if part in ("self_attn.q_proj", "self_attn.k_proj"):
            heads = config.num_attention_heads if part == "self_attn.q_proj" else config.num_key_value_heads
            tensor = interleaved(tensor, heads)
        yield f"blk.{number}.{LAYER[part]}.weight", tensor


def write(model: torch.nn.Module, path: Path) -> None:
    """Write `model`, a `LlamaForCausalLM` in float32 with plain rotary embeddings, to `path`. Raise
    `ValueError` for any other model."""
    from gguf import GGUFWriter, LlamaFileType

    config = model.config
    rope = getattr(config, "rope_parameters", None) or {}
    if config.model_type != "llama" or rope.get("rope_type", "default") != "default":
        raise ValueError(
            f"only plain Llama models can be written, and this is {config.model_type} with {rope}"
        )
    writer = GGUFWriter(str(path), "llama")
    writer.add_file_type(LlamaFileType.ALL_F32)
    writer.add_vocab_size(config.vocab_size)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    writer.add_rope_dimension_count(model.model.layers[0].self_attn.head_dim)
    writer.add_tokenizer_model("none")
    for name, tensor in tensors(model):
        writer.add_tensor(name, tensor.detach().contiguous().numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
