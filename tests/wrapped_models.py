"""Tiny checkpoints of text models inside wrappers, which have towers for images or sounds."""

from pathlib import Path

import torch
import transformers
from tiny import tokenizer
from transformers import CONFIG_MAPPING, PreTrainedModel

VOCABULARY = 264  # the 258 tokens of `tiny.tokenizer`, and ids for images and sounds
_TEXT = dict(
    vocab_size=VOCABULARY,
    hidden_size=64,
    intermediate_size=96,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=1,
    head_dim=32,
    max_position_embeddings=512,
    bos_token_id=256,
    eos_token_id=257,
    pad_token_id=None,
)
_EXPERTS = dict(
    num_experts=4, num_experts_per_tok=2, moe_intermediate_size=64, shared_expert_intermediate_size=64
)
_GATED_DELTA = dict(
    linear_num_key_heads=2,
    linear_num_value_heads=4,
    linear_key_head_dim=16,
    linear_value_head_dim=16,
    layer_types=["linear_attention", "full_attention"],
)
_TOWER = dict(
    hidden_size=48,
    intermediate_size=80,
    num_hidden_layers=3,
    num_attention_heads=4,
    image_size=56,
    patch_size=14,
)
_VISUAL = dict(depth=3, hidden_size=48, intermediate_size=80, num_heads=4, out_hidden_size=64)
_IMAGE = dict(image_token_id=258, video_token_id=259, vision_start_token_id=260, vision_end_token_id=261)
_SECTIONS = {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [4, 6, 6]}
_DELTA_ROPE = {**_SECTIONS, "mrope_section": [2, 1, 1], "partial_rotary_factor": 0.25}

# model type: (class, text settings, tower settings by their name in the config, settings of the wrapper)
KINDS: dict[str, tuple[str, dict, dict, dict]] = {
    "gemma3": (
        "Gemma3ForConditionalGeneration",
        {**_TEXT, "sliding_window": 16, "layer_types": ["sliding_attention", "full_attention"]},
        {"vision_config": {**_TOWER, "model_type": "siglip_vision_model", "vision_use_head": True}},
        {"mm_tokens_per_image": 4, "image_token_index": 258, "boi_token_index": 260, "eoi_token_index": 261},
    ),
    "mistral3": (
        "Mistral3ForConditionalGeneration",
        {**_TEXT, "model_type": "mistral"},
        {"vision_config": {**_TOWER, "model_type": "pixtral", "head_dim": 12}},
        {"image_token_index": 258, "tie_word_embeddings": False},
    ),
    "llava": (
        "LlavaForConditionalGeneration",
        {**_TEXT, "model_type": "llama"},
        {"vision_config": {**_TOWER, "model_type": "clip_vision_model"}},
        {"image_token_index": 258},
    ),
    "paligemma": (
        "PaliGemmaForConditionalGeneration",
        {**_TEXT, "model_type": "gemma"},
        {"vision_config": {**_TOWER, "model_type": "siglip_vision_model", "vision_use_head": False}},
        {"image_token_index": 258, "projection_dim": 64},
    ),
    "qwen2_audio": (
        "Qwen2AudioForConditionalGeneration",
        {**_TEXT, "model_type": "qwen2"},
        {
            "audio_config": dict(
                d_model=48,
                encoder_layers=3,
                encoder_attention_heads=4,
                encoder_ffn_dim=80,
                max_source_positions=32,
                num_mel_bins=16,
            )
        },
        {"audio_token_index": 258},
    ),
    "qwen2_5_vl": (
        "Qwen2_5_VLForConditionalGeneration",
        {**_TEXT, "hidden_size": 128, "rope_parameters": _SECTIONS},
        {"vision_config": {**_VISUAL, "out_hidden_size": 128, "fullatt_block_indexes": [1]}},
        _IMAGE,
    ),
    "qwen3_vl": (
        "Qwen3VLForConditionalGeneration",
        {**_TEXT, "rope_parameters": _SECTIONS},
        {"vision_config": {**_VISUAL, "num_position_embeddings": 16, "deepstack_visual_indexes": [0]}},
        _IMAGE,
    ),
    "qwen3_5": (
        "Qwen3_5ForConditionalGeneration",
        {**_TEXT, **_GATED_DELTA, "rope_parameters": _DELTA_ROPE},
        {"vision_config": {**_VISUAL, "num_position_embeddings": 16}},
        {**_IMAGE, "tie_word_embeddings": True},
    ),
    "qwen3_5_moe": (
        "Qwen3_5MoeForConditionalGeneration",
        {**_TEXT, **_GATED_DELTA, **_EXPERTS, "rope_parameters": _DELTA_ROPE},
        {"vision_config": {**_VISUAL, "num_position_embeddings": 16}},
        _IMAGE,
    ),
    "llama4": (
        "Llama4ForConditionalGeneration",
        {**_TEXT, "intermediate_size_mlp": 96, "num_local_experts": 4, "interleave_moe_layer_step": 2},
        {
            "vision_config": dict(
                hidden_size=48,
                intermediate_size=192,
                num_hidden_layers=3,
                num_attention_heads=4,
                vision_output_dim=64,
                projector_input_dim=64,
                projector_output_dim=64,
                image_size=56,
                patch_size=14,
            )
        },
        {"image_token_index": 258, "boi_token_index": 260, "eoi_token_index": 261},
    ),
    "gemma4": (
        "Gemma4ForConditionalGeneration",
        {
            **_TEXT,
            "pad_token_id": 0,
            "vocab_size_per_layer_input": VOCABULARY,
            "hidden_size_per_layer_input": 16,
            "global_head_dim": 64,
            "num_global_key_value_heads": 1,
            "num_kv_shared_layers": 0,
            "sliding_window": 16,
            "layer_types": ["sliding_attention", "full_attention"],
        },
        {"vision_config": {**_TOWER, "num_key_value_heads": 4, "head_dim": 12, "global_head_dim": 12}},
        {
            "image_token_id": 258,
            "video_token_id": 259,
            "boi_token_id": 260,
            "eoi_token_id": 261,
            "audio_config": None,
        },
    ),
}


def model(kind: str, seed: int = 0) -> PreTrainedModel:
    """A fresh fp32 wrapper in evaluation mode, whose predictions depend on the context."""
    name, text, towers, settings = KINDS[kind]
    config = CONFIG_MAPPING[kind](text_config=text, **towers, **settings)
    torch.manual_seed(seed)
    made = getattr(transformers, name)._from_config(config, dtype=torch.float32).eval()
    with torch.no_grad():
        for parameter in made.parameters():
            if parameter.ndim > 1:
                parameter.mul_(4)
    return made


def checkpoint(kind: str, folder: Path, seed: int = 0) -> Path:
    """Save `model(kind)`, the byte tokenizer and a processor's settings into `folder`, and return it."""
    model(kind, seed).save_pretrained(folder)
    tokenizer().save_pretrained(folder)
    (folder / "preprocessor_config.json").write_text('{"image_processor_type": "SiglipImageProcessor"}')
    return folder


@torch.no_grad()
def text_logits(made: PreTrainedModel, ids: torch.Tensor) -> torch.Tensor:
    """The logits for a text, of the text model where transformers 5.24 cannot run the wrapper."""
    inner = made.language_model if type(made).__name__.startswith("Llama4") else made
    return inner(input_ids=ids).logits
