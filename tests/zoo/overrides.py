"""What single architectures require of their sizes, beyond the roles of `shrink`, each with the reason."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tests.zoo.shrink import Shape


@dataclass(frozen=True)
class Override:
    """Fields of one model type, and why they are needed."""

    fields: Callable[["Shape"], Mapping[str, Any]]
    why: str


_DOTS3_VISION = {
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_local_experts": 4,
    "moe_intermediate_size": 32,
    "mlp_layer_types": ["dense", "sparse"],
    "num_experts_per_tok": 2,
}
_DOTS3_AUDIO = {
    "num_hidden_layers": 1,
    "num_attention_heads": 4,
    "downsample_hidden_size": 16,
    "feature_size": 16,
}

# What transformers itself cannot build or run as a causal language model.
IMPOSSIBLE: dict[str, str] = {
    "blt": "transformers cannot make a key-value cache for it: its configuration has no number of layers.",
    "emu3": "transformers cannot load what it saves: the text configuration is not registered.",
    "gemma3n": "Its vision tower needs the package timm; the text model is gemma3n_text.",
    "gemma4_assistant": "It drafts for another model, whose keys and values it reads.",
    "gemma4_unified_assistant": "It drafts for another model, whose keys and values it reads.",
    "mllama": "transformers cannot load what it saves: the text configuration is not registered.",
    "musicgen": "It generates sound; AutoModelForCausalLM cannot build its decoder.",
    "musicgen_melody": "It generates sound; AutoModelForCausalLM cannot build its decoder.",
}

OVERRIDES: dict[str, Override] = {
    "bamba": Override(lambda shape: {"attn_layer_indices": [1]}, "without indices no layer has attention"),
    "granitemoehybrid": Override(
        lambda shape: {"layer_types": ["linear_attention", "full_attention"]},
        "without types no layer has attention",
    ),
    "lfm2": Override(
        lambda shape: {"layer_types": ["conv", "full_attention"]}, "without types no layer is a convolution"
    ),
    "jamba": Override(
        lambda shape: {"attn_layer_period": 2, "attn_layer_offset": 1, "num_hidden_layers": 2},
        "attention in every eighth layer would be none of two",
    ),
    "cohere_compass_text": Override(
        lambda shape: {
            "layer_types": ["sliding_attention", "full_attention"],
            "rope_parameters": {
                "sliding_attention": {"rope_type": "default", "rope_theta": 10000.0},
                "full_attention": {"rope_type": "default", "rope_theta": 10000.0},
            },
        },
        "rotary positions are given for each kind of layer",
    ),
    "dbrx": Override(
        lambda shape: {"attn_config": {"kv_n_heads": shape.kv_heads, "rope_theta": 10000.0, "clip_qkv": 8}},
        "published checkpoints have the rotary base in this part, and the class needs it there",
    ),
    "dots3_note": Override(
        lambda shape: {
            "vision_config": {
                **_DOTS3_VISION,
                "hidden_size": shape.hidden,
                "intermediate_size": shape.inner,
                "adapter_in_dim": shape.hidden,
                "adapter_out_dim": shape.hidden,
            },
            "audio_config": {
                **_DOTS3_AUDIO,
                "hidden_size": shape.hidden,
                "intermediate_size": shape.inner,
                "adapter_input_size": shape.hidden,
                "adapter_out_dim": shape.hidden,
            },
        },
        "both towers end in the width of the text model",
    ),
    "dots3_note_text": Override(
        lambda shape: {
            "swa_num_attention_heads": 2,
            "swa_num_key_value_heads": 2,
            "swa_q_lora_rank": 16,
            "swa_kv_lora_rank": 16,
            "swa_head_dim": 32,
            "swa_qk_nope_head_dim": 24,
            "swa_v_head_dim": 16,
        },
        "layers with a window have sizes of their own",
    ),
    "mimi": Override(lambda shape: {"codebook_size": 64}, "the size of a codebook is a power of two"),
    "qwen4_exp_text": Override(
        lambda shape: {
            "indexer_n_heads": 2,
            "indexer_kv_heads": 1,
            "indexer_head_dim": shape.head_dim,
            "indexer_budget": 16,
            "indexer_compress_ratio": 4,
            "ple_layer_ids": [1],
            "ple_embed_dim": 64,
            "heads_per_ngram": 2,
        },
        "the class has no default for the sizes of the indexer",
    ),
    "stablelm": Override(
        lambda shape: {"hidden_size": 64, "num_attention_heads": 2}, "a quarter of the head size is even"
    ),
    "dory": Override(
        lambda shape: {
            "num_hidden_layers": 3,
            "n_input_layers": 1,
            "n_recurrent_layers": 1,
            "n_output_layers": 1,
            "layer_types": ["sliding_attention", "full_attention", "full_attention"],
        },
        "input, recurrent and output layers add up to all layers",
    ),
    "gemma3n_text": Override(
        lambda shape: {
            "num_hidden_layers": 4,
            "num_kv_shared_layers": 2,
            "layer_types": ["sliding_attention", "full_attention"] * 2,
        },
        "each kind of layer that shares keys and values needs one of its kind that has them",
    ),
    "gpt_neo": Override(
        lambda shape: {"num_layers": 2, "attention_types": [[["global", "local"], 1]]},
        "the kinds of attention are counted",
    ),
    "diffllama": Override(
        lambda shape: {"num_attention_heads": 4, "num_key_value_heads": 2},
        "values are split along an even number of key-value heads",
    ),
    "helium": Override(
        lambda shape: {"head_dim": shape.hidden // shape.heads}, "o_proj has hidden_size inputs"
    ),
    "hy_v4": Override(
        lambda shape: {
            "indexer_types": ["full"] + ["shared"] * 2,
            "num_hidden_layers": 3,
            "mlp_layer_types": ["dense", "sparse", "sparse"],
        },
        "a shared indexer follows a full one",
    ),
    "inkling2_loop_text": Override(
        lambda shape: {
            "num_hidden_layers": 3,
            "loop_layer_index_start": 1,
            "loop_layer_index_end": 2,
            "n_layers_per_attn_res_block": 1,
            "loop_num_passes": 2,
        },
        "the loop begins and ends with a block of layers",
    ),
    "inkling2_text": Override(
        lambda shape: {"n_layers_per_attn_res_block": 1}, "more than one block of layers"
    ),
    "lfm2_moe": Override(
        lambda shape: {"layer_types": ["conv", "full_attention"], "num_hidden_layers": 2},
        "the class has no default for the kinds of layers",
    ),
    "mamba2": Override(
        lambda shape: {"num_heads": shape.hidden * 2 // 16, "head_dim": 16, "n_groups": 2},
        "heads times their size are the inner width",
    ),
    "reformer": Override(
        lambda shape: {
            "axial_pos_shape": (16, 32),
            "axial_pos_embds_dim": (shape.hidden // 4, shape.hidden * 3 // 4),
            "attn_layers": ["local", "lsh"],
            "num_buckets": 4,
            "hash_seed": 0,
        },
        "positions are a grid of two embeddings, and hashes are random without a seed",
    ),
    "xlstm": Override(lambda shape: {"hidden_size": 128, "num_heads": 4}, "widths are rounded up to 64"),
    "xmod": Override(lambda shape: {"default_language": "en_XX"}, "there is an adapter for each language"),
    "fuyu": Override(lambda shape: {"patch_size": 16}, "images are cut in patches of 16 x 16"),
}
