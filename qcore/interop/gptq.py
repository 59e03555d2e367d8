"""GPTQ's file format (AutoGPTQ, GPTQModel; read by vLLM, SGLang and transformers with gptqmodel).

For a weight of N outputs and K inputs in G groups, codes of b bits in 32-bit words:

    qweight  int32    (K · b / 32, N)    the codes of one output run down a column
    qzeros   int32    (G, N · b / 32)    zero points; version 1 stores them minus one
    scales   float16  (G, N)
    g_idx    int32    (K,)               the group of each input

Version 1 (`"checkpoint_format": "gptq"`) cannot hold the zero point 0: 0 − 1 wraps to 2^b − 1, and every
weight of the group is off by 2^b scales. `encode` refuses it; version 2 (`"gptq_v2"`) stores zero points as
they are.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch

from qcore.base.errors import InputError
from qcore.formats.kinds import Format
from qcore.formats.tensor import QuantizedTensor
from qcore.formats.uniform import Uniform
from qcore.interop.grid import Grid, group_size_of, need, pack_words, reason_against_uniform, unpack_words

BITS = (2, 3, 4, 8)
GROUPS = (16, 32, 64, 128, 256, 512, 1024)
V1, V2 = "gptq", "gptq_v2"
SUFFIXES = ("qweight", "qzeros", "scales", "g_idx")
_LANES = 32  # codes in a whole number of words, whatever their bits


def reason_against(format: Format, shape: tuple[int, int]) -> str | None:
    """Return why GPTQ's format cannot hold a weight of `format` and `shape` (N, K), with the nearest recipe,
    or None."""
    if reason := reason_against_uniform(format, shape, target="GPTQ", bits=BITS):
        return reason
    if shape[0] % _LANES or shape[1] % _LANES:
        return (
            f"GPTQ packs 32 inputs and 32 outputs together, but the weight has {shape[0]} outputs and "
            f"{shape[1]} inputs. Leave the module out with --skip."
        )
    if format.group_size is not None and format.group_size not in GROUPS:
        near = min(GROUPS, key=lambda size: abs(size - (format.group_size or 0)))
        near_label = Uniform(format.bits, near, format.symmetric).label
        return (
            f"GPTQ's readers accept groups of {', '.join(map(str, GROUPS))} inputs, not {format.group_size}. "
            f"The nearest recipe is {near_label}."
        )
    return None


def encode(weight: QuantizedTensor, version: str = V2) -> dict[str, torch.Tensor]:
    """Return the parts of `weight`. Raise `InputError` for version 1 if a zero point is 0."""
    grid = Grid.from_weight(weight)
    zero = grid.zero
    if version == V1:
        if not zero.is_meta and (zero == 0).any():
            raise InputError(
                "A group has the zero point 0, which GPTQ version 1 cannot store: it writes zero points "
                "minus one, and -1 wraps around. Export to gptq, which is version 2, or choose a symmetric "
                "recipe."
            )
        zero = zero - 1
    elif version != V2:
        raise InputError(f"{version!r} is not a version of GPTQ's format; there are {V1} and {V2}.")
    columns, size = grid.codes.shape[1], grid.group_size or grid.codes.shape[1]
    return {
        "qweight": pack_words(grid.codes, grid.bits).T.contiguous(),
        "qzeros": pack_words(zero.T.to(torch.uint8), grid.bits),
        "scales": grid.scale.T.to(torch.float16).contiguous(),
        "g_idx": (torch.arange(columns) // size).to(torch.int32),
    }


def read(parts: Mapping[str, torch.Tensor], config: Mapping[str, Any]) -> Grid:
    """Return the grid in `parts`, with the settings of the folder's quantization_config or of its override
    for this module. Raise `InputError` for parts that contradict each other or the config."""
    bits = _bits(config)
    words, scales = need(parts, "qweight", 2), need(parts, "scales", 2)
    groups, rows = scales.shape
    columns = words.shape[0] * 32 // bits
    if words.shape[1] != rows:
        raise InputError(f"qweight has {words.shape[1]} outputs and scales have {rows}: the file is damaged.")
    codes = unpack_words(words.T, bits, columns)
    zero = unpack_words(need(parts, "qzeros", 2), bits, rows).T.to(torch.int16)
    if zero.shape[1] != groups:
        raise InputError(f"qzeros has {zero.shape[1]} groups and scales have {groups}: the file is damaged.")
    if version(config) == V1:
        zero = zero + 1
    stated = config.get("group_size", -1)
    order = parts.get("g_idx")
    size = group_size_of(columns, groups, stated)
    if order is not None:
        order = order.to(torch.int64)
        if order.shape != (columns,) or int(order.min()) < 0 or int(order.max()) >= groups:
            raise InputError("g_idx does not name a group for each input: the file is damaged.")
        if torch.equal(order, torch.arange(columns) // (size or columns)):
            order = None
    return Grid(bits, size, codes, scales.T.contiguous(), zero.contiguous(), order)


def decode(parts: Mapping[str, torch.Tensor], config: Mapping[str, Any]) -> QuantizedTensor:
    """Return the weight with the stored codes. Raise `InputError` as `read` and `Grid.to_weight` do, for
    activation order among others: `dequantize` reads that."""
    return read(parts, config).to_weight("A GPTQ weight")


def dequantize(parts: Mapping[str, torch.Tensor], config: Mapping[str, Any]) -> torch.Tensor:
    """Return the weight, float32 (N, K), in any order of groups."""
    return read(parts, config).dequantize()


def config(
    format: Format, *, version: str = V2, modules: Iterable[str] = (), kept: Sequence[str] = ()
) -> dict[str, Any]:
    """Return the quantization_config of a model whose layers called `modules` are in `format`, and those
    `kept` in floating point.

    A list of kept layers is written in the words of each reader: `dynamic` of GPTQModel and vLLM, and
    `modules_in_block_to_quantize` of transformers. Kept layers outside of the blocks need not be listed.
    """
    made: dict[str, Any] = {
        "quant_method": "gptq",
        "format": version,
        "checkpoint_format": version,
        "bits": format.bits,
        "group_size": format.group_size or -1,
        "sym": format.symmetric,
        "desc_act": False,
        "static_groups": False,
        "lm_head": False,
        "pack_dtype": "int32",
        "true_sequential": True,
        "meta": {"quantizer": ["qcore"]},
    }
    modules = list(modules)
    if inside := [
        name for name in kept if any(each.split(".")[:2] == name.split(".")[:2] for each in modules)
    ]:
        made["dynamic"] = {f"-:^{re.escape(name)}$": {} for name in inside}
        made["modules_in_block_to_quantize"] = [modules]
    return made


def version(config: Mapping[str, Any]) -> str:
    """Return the version that a quantization_config names: "gptq" (1), also if it names none, or "gptq_v2".
    Raise `InputError` for another."""
    named = config.get("checkpoint_format") or config.get("format") or V1
    if named not in (V1, V2):
        raise InputError(f"The GPTQ format {named!r} is unknown; qcore reads {V1} and {V2}.")
    return named


def _bits(config: Mapping[str, Any]) -> int:
    bits = config.get("bits")
    if not isinstance(bits, int) or not 2 <= bits <= 8:
        raise InputError(f"The config states {bits!r} bits, but a GPTQ weight has 2 to 8.")
    return bits
