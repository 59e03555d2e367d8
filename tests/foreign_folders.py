"""Folders as other projects write them, made from tiny models with `qcore.interop`."""

import json

import tiny
import torch
from safetensors.torch import load_file, save_file

from qcore.interop import awq, bitsandbytes, compressed_tensors, gptq
from qcore.quantization import methods
from qcore.recipes import parse

BLOCK = 32  # rows and columns of a block of 8-bit floats


def write(folder, change, settings, kind="llama", seed=0):
    """Save a tiny model in which `change(module, weight)` returns the tensors, by suffix, that replace the
    weight of a linear layer, or None to keep it. `settings` are the quantization_config. Returns the
    folder."""
    tiny.sharp(kind, seed).save_pretrained(folder)
    tiny.tokenizer().save_pretrained(folder)
    tensors = {}
    for name, weight in load_file(folder / "model.safetensors").items():
        module = name.removesuffix(".weight")
        linear = weight.ndim == 2 and not any(
            part in name for part in ("embed", "lm_head", "gate.weight", "wte", "wpe")
        )
        parts = change(module, weight) if linear else None
        tensors |= (
            {name: weight}
            if parts is None
            else {f"{module}.{suffix}": part for suffix, part in parts.items()}
        )
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, folder / "model.safetensors")
    set_config(folder, quantization_config=settings)
    return folder


def set_config(folder, **changes):
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, **changes}))


def codes(weight, recipe):
    """The weight rounded to the recipe's format."""
    return methods.quantize(weight, parse(recipe).weights, "rtn")


def as_gptq(recipe="int4-g32", version=gptq.V2):
    format = parse(recipe).weights
    return lambda module, weight: gptq.encode(codes(weight, recipe), version), gptq.config(
        format, version=version
    )


def as_awq(recipe="int4-g32"):
    return lambda module, weight: awq.encode(codes(weight, recipe)), awq.config(parse(recipe).weights)


def as_compressed(recipe="int4-g32", keep=()):
    """Modules whose names contain one of `keep` stay floats."""

    def change(module, weight):
        return (
            None if any(part in module for part in keep) else compressed_tensors.encode(codes(weight, recipe))
        )

    return change, compressed_tensors.config({"all": parse(recipe).weights}, kept=["lm_head"])


def as_int8(module, weight):
    """compressed-tensors' int-quantized, one scale per output."""
    scale = weight.abs().amax(1, keepdim=True) / 127
    return {"weight": (weight / scale).round().to(torch.int8), "weight_scale": scale}


def as_bitsandbytes(recipe):
    format = parse(recipe).weights
    return lambda module, weight: bitsandbytes.encode(codes(weight, recipe)), bitsandbytes.config(format)


def as_fp8(module, weight):
    """A scale per block, as DeepSeek stores it."""
    rows, columns = weight.shape
    blocks = weight.view(rows // BLOCK, BLOCK, columns // BLOCK, BLOCK)
    scale = blocks.abs().amax((1, 3)) / 448
    stored = (blocks / scale[:, None, :, None]).view(rows, columns).to(torch.float8_e4m3fn)
    return {"weight": stored, "weight_scale_inv": scale}
