"""Folders of tiny models as other projects quantize them, written with the packings of `qcore.interop`."""

import json
from pathlib import Path

import tiny
import torch
from safetensors.torch import load_file, save_file
from transformers import GptOssConfig, GptOssForCausalLM

import qcore
from qcore.formats.tensor import QuantizedTensor
from qcore.interop import awq, bitsandbytes, compressed_tensors, gptq

RECIPES = {
    "gptq": "int4-g32",
    "gptq-v1": "int4-g32-sym",
    "awq": "int4-g32",
    "ct": "int4-g32-sym",
    "ct-asym": "int4-g32",
    "ct-int8": "int8-sym",
    "bnb-nf4": "nf4-g64",
    "bnb-int8": "int8-sym",
}


def quantized(original: Path, recipe: str) -> dict[str, QuantizedTensor]:
    """Return the codes of the linear layers of `original` under `recipe`, by module."""
    model = qcore.quantize(str(original), recipe).model
    return {
        name: module.quantized
        for name, module in model.named_modules()
        if isinstance(getattr(module, "quantized", None), QuantizedTensor)
    }


def write(kind: str, original: Path, folder: Path) -> Path:
    """Write the untied tiny model in `original` into `folder` as `kind` stores it, and return it."""
    weights = quantized(original, RECIPES[kind])
    tensors = load_file(original / "model.safetensors")
    format = next(iter(weights.values())).format
    for module, weight in weights.items():
        del tensors[f"{module}.weight"]
        tensors |= {f"{module}.{part}": value for part, value in _encode(kind, weight).items()}
    kept = ["lm_head"]
    config = {
        "gptq": lambda: gptq.config(format),
        "gptq-v1": lambda: gptq.config(format, version=gptq.V1),
        "awq": lambda: awq.config(format, kept=kept),
        "bnb-nf4": lambda: bitsandbytes.config(format, kept=kept),
        "bnb-int8": lambda: bitsandbytes.config(format, kept=kept),
    }.get(kind, lambda: compressed_tensors.config({name: format for name in weights}, kept=kept))()
    return save(folder, original, tensors, {"quantization_config": config})


def _encode(kind: str, weight: QuantizedTensor) -> dict[str, torch.Tensor]:
    if kind.startswith("gptq"):
        return gptq.encode(weight, gptq.V1 if kind == "gptq-v1" else gptq.V2)
    if kind.startswith("awq"):
        return awq.encode(weight)
    return (bitsandbytes if kind.startswith("bnb") else compressed_tensors).encode(weight)


def write_mlx(original: Path, folder: Path) -> Path:
    """Write the tiny model as MLX stores it: 4-bit codes in 32-bit words, a scale and a bias per group."""
    tensors = load_file(original / "model.safetensors")
    for name in [name for name in tensors if name.endswith("proj.weight")]:
        rows, columns = tensors[name].shape
        groups = tensors[name].unflatten(1, (-1, 32))
        low, scale = groups.amin(-1), (groups.amax(-1) - groups.amin(-1)) / 15
        codes = ((groups - low[..., None]) / scale[..., None]).round().to(torch.int64).flatten(1)
        words = (codes.unflatten(1, (-1, 8)) << (4 * torch.arange(8))).sum(-1)
        stem = name.removesuffix(".weight")
        tensors |= {
            name: words.to(torch.uint32),
            f"{stem}.scales": scale.half(),
            f"{stem}.biases": low.half(),
        }
    return save(folder, original, tensors, {"quantization": {"group_size": 32, "bits": 4}})


def write_fp8(original: Path, folder: Path) -> Path:
    """Write the tiny model with fp8 weights and one scale per block of 128 x 128."""
    tensors = load_file(original / "model.safetensors")
    for name in [name for name in tensors if name.endswith("proj.weight")]:
        weight = tensors[name]
        scale = weight.abs().max() / 448
        tensors[name] = (weight / scale).to(torch.float8_e4m3fn)
        tensors[f"{name}_scale_inv"] = scale.reshape(1, 1)
    config = {"quant_method": "fp8", "weight_block_size": [128, 128], "activation_scheme": "dynamic"}
    return save(folder, original, tensors, {"quantization_config": config})


def write_mxfp4(folder: Path) -> Path:
    """Write a tiny GPT-OSS whose experts are stored in MXFP4 blocks."""
    torch.manual_seed(0)
    config = GptOssConfig(
        hidden_size=64,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=16,
        num_local_experts=4,
        vocab_size=tiny.VOCABULARY,
        bos_token_id=256,
        eos_token_id=257,
        pad_token_id=None,
        tie_word_embeddings=False,
    )
    folder.mkdir(parents=True)
    GptOssForCausalLM(config).save_pretrained(folder)
    tiny.tokenizer().save_pretrained(folder)
    to_mxfp4(folder)
    return folder


def to_mxfp4(folder: Path) -> None:
    """Replace the experts of the GPT-OSS in `folder` by random ones in MXFP4 blocks."""
    tensors = load_file(folder / "model.safetensors")
    for name in [name for name in tensors if name.endswith(("gate_up_proj", "down_proj"))]:
        experts, inputs, outputs = tensors.pop(name).shape
        tensors[f"{name}_blocks"] = torch.randint(
            256, (experts, outputs, inputs // 32, 16), dtype=torch.uint8
        )
        tensors[f"{name}_scales"] = torch.full((experts, outputs, inputs // 32), 120, dtype=torch.uint8)
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    set_quantization(folder, {"quant_method": "mxfp4", "modules_to_not_convert": ["lm_head"]})


def set_quantization(folder: Path, settings: dict) -> None:
    """Write `settings` as the quantization_config of the model in `folder`."""
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"quantization_config": settings}))


def save(folder: Path, original: Path, tensors: dict[str, torch.Tensor], settings: dict) -> Path:
    """Write `tensors` with the small files of `original`, and `settings` added to its config."""
    folder.mkdir(parents=True)
    for path in original.iterdir():
        if path.suffix in (".json", ".jinja"):
            (folder / path.name).write_bytes(path.read_bytes())
    config = json.loads((original / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | settings))
    save_file(
        {name: tensor.contiguous() for name, tensor in tensors.items()},
        folder / "model.safetensors",
        {"format": "pt"},
    )
    return folder
