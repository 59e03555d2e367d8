"""Tiny checkpoints shaped like models that people download in 2026, as their hub repositories hold them:
wrappers with towers, bfloat16, several files, tensors that no class reads, weights in 8-bit floats or MXFP4,
and a tokenizer of byte pairs with a chat template and fewer tokens than the embedding has rows."""

import json
from collections.abc import Callable
from functools import cache
from pathlib import Path

import foreign_models
import torch
import transformers
import wrapped_models
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import CONFIG_MAPPING, OlmoeConfig, PreTrainedModel, PreTrainedTokenizerFast

TEXT = (
    "A scale per group of weights keeps outliers apart. Round to nearest, then measure: perplexity first, "
    "divergence next, and read the answers. If 4 bits suffice, why store 16? Zoë's café costs 3.50 €.\n"
)
ROWS = 420  # of the embedding: more than tokens, as published models have
TEMPLATE = (
    "{% for message in messages %}<|{{ message['role'] }}|>{{ message['content'] }}<|end|>{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
_SIZES = dict(
    vocab_size=ROWS,
    hidden_size=80,  # 2.5 groups of 32
    intermediate_size=112,
    num_hidden_layers=4,
    num_attention_heads=4,
    num_key_value_heads=2,
    head_dim=32,
    max_position_embeddings=512,
    bos_token_id=0,
    eos_token_id=1,
    pad_token_id=None,
)
_IMAGES = dict(image_token_id=ROWS - 1, video_token_id=ROWS - 2)


@cache
def tokenizer() -> PreTrainedTokenizerFast:
    """Return a tokenizer of byte pairs learned from `TEXT`, with a chat template."""
    special = ["<s>", "</s>", "<|user|>", "<|assistant|>", "<|system|>", "<|end|>"]
    inner = Tokenizer(models.BPE())
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = decoders.ByteLevel()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(
        vocab_size=400, special_tokens=special, initial_alphabet=alphabet, show_progress=False
    )
    inner.train_from_iterator([TEXT] * 4, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=inner, bos_token="<s>", eos_token="</s>", chat_template=TEMPLATE
    )


def _wrapped(kind: str, text: dict, settings: dict) -> PreTrainedModel:
    name, _, towers, _ = wrapped_models.KINDS[kind]
    config = CONFIG_MAPPING[kind](text_config=_SIZES | text, **towers, **settings)
    return getattr(transformers, name)._from_config(config, dtype=torch.float32)


def _qwen3_5() -> PreTrainedModel:
    """Three gated delta nets to one attention layer, with an output gate; partial rotary positions in three
    sections."""
    rope = {"rope_type": "default", "rope_theta": 1e7, "mrope_section": [2, 1, 1], "mrope_interleaved": True}
    delta = dict(
        linear_num_key_heads=2, linear_num_value_heads=4, linear_key_head_dim=16, linear_value_head_dim=16
    )
    text = {**delta, "rope_parameters": {**rope, "partial_rotary_factor": 0.25}, "tie_word_embeddings": True}
    towers = wrapped_models.KINDS["qwen3_5"][2]
    towers["vision_config"]["out_hidden_size"] = _SIZES["hidden_size"]
    return _wrapped("qwen3_5", text, {**_IMAGES, "tie_word_embeddings": True})


def _gemma4() -> PreTrainedModel:
    """Windows and wider full attention, inputs per layer, and two layers that reuse keys and values."""
    text = dict(
        num_hidden_layers=6,
        layer_types=["sliding_attention", "full_attention"] * 3,
        num_kv_shared_layers=2,
        use_double_wide_mlp=True,
        sliding_window=16,
        global_head_dim=48,
        num_key_value_heads=1,
        vocab_size_per_layer_input=ROWS,
        hidden_size_per_layer_input=16,
        final_logit_softcapping=30.0,
        pad_token_id=0,
    )
    return _wrapped("gemma4", text, {**_IMAGES, "audio_config": None})


def _mistral3() -> PreTrainedModel:
    """Rotary positions of YaRN, and queries that grow with the position."""
    rope = {
        "rope_type": "yarn",
        "rope_theta": 1e6,
        "factor": 16.0,
        "original_max_position_embeddings": 32,
        "beta_fast": 32.0,
        "beta_slow": 1.0,
        "mscale": 1.0,
        "mscale_all_dim": 1.0,
        "llama_4_scaling_beta": 0.1,
    }
    text = {"model_type": "ministral3", "rope_parameters": rope, "tie_word_embeddings": False}
    return _wrapped("mistral3", text, {"image_token_index": ROWS - 1, "tie_word_embeddings": False})


def _gpt_oss() -> PreTrainedModel:
    """Attention sinks, windows in every second layer, biases, and experts whose inner width is not a multiple
    of 64."""
    config = transformers.GptOssConfig(
        **{**_SIZES, "hidden_size": 96, "intermediate_size": 96},
        num_local_experts=6,
        num_experts_per_tok=2,
        sliding_window=16,
        tie_word_embeddings=False,
        rope_parameters={"rope_type": "yarn", "rope_theta": 150000.0, "factor": 4.0, "beta_fast": 32.0,
                         "beta_slow": 1.0, "original_max_position_embeddings": 128, "truncate": False},
    )  # fmt: skip
    return transformers.GptOssForCausalLM._from_config(config, dtype=torch.float32)


def _olmoe() -> PreTrainedModel:
    """Every layer a mixture of small experts; queries and keys are normalized before they are split."""
    sizes = {key: value for key, value in _SIZES.items() if key != "head_dim"}
    config = OlmoeConfig(**sizes, num_experts=8, num_experts_per_tok=3, norm_topk_prob=False)
    return transformers.OlmoeForCausalLM._from_config(config, dtype=torch.float32)


BUILT: dict[str, Callable[[], PreTrainedModel]] = {
    "qwen3_5": _qwen3_5,
    "gemma4": _gemma4,
    "mistral3": _mistral3,
    "gpt_oss": _gpt_oss,
    "olmoe": _olmoe,
}


def checkpoint(kind: str, folder: Path) -> Path:
    """Write a random model shaped like `kind`, one of `BUILT`, into `folder` as its hub repository looks."""
    torch.manual_seed(0)
    made = BUILT[kind]().eval()
    with torch.no_grad():
        for parameter in made.parameters():
            if parameter.ndim > 1:
                parameter.mul_(4)  # so that predictions depend on the context
    made = made.to(torch.bfloat16)
    made.save_pretrained(folder, max_shard_size="200KB" if kind in ("qwen3_5", "olmoe") else "5GB")
    tokenizer().save_pretrained(folder)
    if kind in wrapped_models.KINDS:
        (folder / "preprocessor_config.json").write_text('{"image_processor_type": "SiglipImageProcessor"}')
    _STORED.get(kind, lambda folder: None)(folder)
    return folder


def _with_a_drafting_head(folder: Path) -> None:
    """Add tensors of a layer that drafts several tokens, which transformers leaves unread."""
    index = json.loads((folder / "model.safetensors.index.json").read_text())
    drafting = {"mtp.fc.weight": torch.randn(80, 160), "mtp.norm.weight": torch.ones(80)}
    save_file(
        {name: each.bfloat16() for name, each in drafting.items()},
        folder / "mtp.safetensors",
        {"format": "pt"},
    )
    index["weight_map"] |= dict.fromkeys(drafting, "mtp.safetensors")
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


def _in_float8(folder: Path) -> None:
    """Store the linear layers of the text model in 8-bit floats with one scale each, and scales for the
    inputs, which only other runtimes use."""
    path = folder / "model.safetensors"
    tensors = load_file(path)
    linear = [name for name in tensors if "language_model" in name and name.endswith("proj.weight")]
    for name in linear:
        scale = tensors[name].float().abs().max() / 448
        tensors[name] = (tensors[name].float() / scale).to(torch.float8_e4m3fn)
        tensors[f"{name}_scale_inv"] = scale.bfloat16()
        tensors[f"{name.removesuffix('weight')}activation_scale"] = torch.tensor(0.02).bfloat16()
    save_file(tensors, path, {"format": "pt"})
    kept = ["model.vision_tower", "model.multi_modal_projector", "lm_head"]
    foreign_models.set_quantization(
        folder,
        {
            "quant_method": "fp8",
            "activation_scheme": "static",
            "weight_block_size": None,
            "dequantize": False,
            "modules_to_not_convert": kept,
        },
    )


_STORED: dict[str, Callable[[Path], None]] = {
    "qwen3_5": _with_a_drafting_head,
    "mistral3": _in_float8,
    "gpt_oss": foreign_models.to_mxfp4,
}
