"""compressed-tensors (vLLM's LLM Compressor; read by vLLM, SGLang and transformers): `pack-quantized` and
`int-quantized` integer weights.

For a weight of N outputs and K inputs in G groups (G = 1 per channel), codes of b bits in 32-bit words:

    weight_packed      int32    (N, ceil(K · b / 32))    one little-endian stream of bits per row
    weight_scale       float    (N, G)
    weight_shape       int64    (2,)                     N and K
    weight_zero_point  int32    (ceil(N · b / 32), G)    packed down each column; asymmetric weights only

Codes and zero points are signed, from −2^(b−1), and are stored with 2^(b−1) added, which makes them the
unsigned numbers of `Grid`. `int-quantized` stores `weight` as int8 (N, K) instead, and `weight_zero_point` as
int8 (N, G). Early releases put only whole codes of 3, 5, 6 and 7 bits into a word; such files are wider and
are refused.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from qcore.base import patterns
from qcore.base.errors import InputError
from qcore.formats.kinds import Format
from qcore.formats.tensor import QuantizedTensor
from qcore.interop.grid import Grid, group_size_of, need, pack_words, reason_against_uniform, unpack_words

BITS = (2, 3, 4, 5, 6, 7, 8)
SUFFIXES = ("weight_packed", "weight_scale", "weight_shape", "weight_zero_point", "weight_g_idx")


def reason_against(format: Format, shape: tuple[int, int]) -> str | None:
    """Return why compressed-tensors cannot hold a weight of `format` and `shape` (N, K), with the nearest
    recipe, or None."""
    return reason_against_uniform(format, shape, target="compressed-tensors", bits=BITS)


def encode(weight: QuantizedTensor) -> dict[str, torch.Tensor]:
    """Return the parts of `weight`."""
    grid = Grid.from_weight(weight)
    parts = {
        "weight_packed": pack_words(grid.codes, grid.bits),
        "weight_scale": grid.scale.to(torch.float16).contiguous(),
        "weight_shape": torch.tensor(weight.shape),
    }
    if not weight.format.symmetric:
        parts["weight_zero_point"] = pack_words(grid.zero.T.to(torch.uint8), grid.bits).T.contiguous()
    return parts


def read(parts: Mapping[str, torch.Tensor], config: Mapping[str, Any]) -> Grid:
    """Return the grid in `parts`; `config` is the scheme of the module, see `scheme`. Raise `InputError` for
    floating-point codes, and for parts that contradict each other or the config."""
    weights = config.get("weights") or {}
    bits, kind = weights.get("num_bits"), weights.get("type", "int")
    if kind != "int" or not isinstance(bits, int) or not 2 <= bits <= 8:
        raise InputError(
            f"The config states {bits!r} bits of type {kind!r}, but integer weights have 2 to 8 bits."
        )
    scale = need(parts, "weight_scale", 2)
    middle = 1 << (bits - 1)
    if "weight_packed" in parts:
        rows, columns = _shape(need(parts, "weight_shape", 1), parts["weight_packed"])
        if (width := parts["weight_packed"].shape[1]) != -(-columns * bits // 32):
            raise InputError(
                f"{columns} codes of {bits} bits are stored in {width} words instead of "
                f"{-(-columns * bits // 32)}: an early release packed them in another way, or the file is "
                "damaged."
            )
        codes = unpack_words(parts["weight_packed"], bits, columns)
    else:
        signed = need(parts, "weight", 2)
        if signed.dtype != torch.int8:
            raise InputError(f"An int-quantized weight is stored as {signed.dtype} instead of int8.")
        (rows, columns), codes = signed.shape, (signed.to(torch.int16) + middle).to(torch.uint8)
        if bits < 8 and bool((codes >> bits).any()):
            raise InputError(f"A weight has codes beyond {bits} bits: the file is damaged.")
    if scale.shape[0] not in (rows, 1):
        raise InputError(f"A weight has {rows} outputs and {scale.shape[0]} scales: the file is damaged.")
    scale = scale.expand(rows, -1)
    groups = scale.shape[1]
    if "weight_zero_point" in parts:
        stored = need(parts, "weight_zero_point", 2)
        if stored.dtype == torch.int32 and "weight_packed" in parts:
            zero = unpack_words(stored.T, bits, rows).T.to(torch.int16)
        else:
            zero = stored.to(torch.int16).expand(rows, -1) + middle
        if zero.shape != scale.shape:
            raise InputError(
                f"A weight has {tuple(scale.shape)} scales and {tuple(zero.shape)} zero points: the file is "
                "damaged."
            )
    else:
        zero = torch.full((rows, groups), middle, dtype=torch.int16)
    stated = weights.get("group_size") if weights.get("strategy", "group") == "group" else None
    size = group_size_of(columns, groups, stated)
    order = parts.get("weight_g_idx")
    if order is not None:
        order = order.to(torch.int64)
        if order.shape != (columns,) or int(order.min()) < -1 or int(order.max()) >= groups:
            raise InputError("weight_g_idx does not name a group for each input: the file is damaged.")
        # -1 everywhere stands for "not assigned", which means consecutive inputs
        if bool((order == -1).all()) or torch.equal(order, torch.arange(columns) // (size or columns)):
            order = None
    return Grid(bits, size, codes, scale, zero.contiguous(), order)


def decode(parts: Mapping[str, torch.Tensor], config: Mapping[str, Any]) -> QuantizedTensor:
    """Return the weight with the stored codes. Raise `InputError` as `read` and `Grid.to_weight` do."""
    return read(parts, config).to_weight("A compressed-tensors weight")


def dequantize(parts: Mapping[str, torch.Tensor], config: Mapping[str, Any]) -> torch.Tensor:
    """Return the weight, float32 (N, K), in any order of groups."""
    return read(parts, config).dequantize()


def config(formats: Mapping[str, Format], *, kept: Sequence[str] = ()) -> dict[str, Any]:
    """Return the quantization_config of a model with these `formats` by module; `kept` are the linear layers
    left in floating point.

    One format targets the class Linear; several name their modules.
    """
    modules: dict[Format, list[str]] = {}
    for module, format in formats.items():
        modules.setdefault(format, []).append(module)
    groups = {}
    for number, (format, names) in enumerate(modules.items()):
        weights = {
            "num_bits": format.bits,
            "type": "int",
            "symmetric": format.symmetric,
            "strategy": "channel" if format.group_size is None else "group",
            "group_size": format.group_size,
            "dynamic": False,
            "actorder": None,
            "block_structure": None,
            "observer": "minmax",
            "observer_kwargs": {},
        }
        groups[f"group_{number}"] = {
            "targets": ["Linear"] if len(modules) == 1 else names,
            "weights": weights,
            "input_activations": None,
            "output_activations": None,
            "format": "pack-quantized",
        }
    return {
        "quant_method": "compressed-tensors",
        "format": "pack-quantized",
        "quantization_status": "compressed",
        "global_compression_ratio": None,
        "kv_cache_scheme": None,
        "config_groups": groups,
        "ignore": list(kept),
        # transformers cannot hold packed zero points, because compressed-tensors 0.20.1 leaves them unpacked
        # on the meta device; it can only dequantize such weights as it loads them. Other readers ignore this.
        "dequantize": not all(format.symmetric for format in modules),
    }


def scheme(config: Mapping[str, Any], module: str, kind: str = "Linear") -> Mapping[str, Any] | None:
    """Return the group of the quantization_config that covers the module called `module` of the class `kind`,
    or None if it is ignored or not targeted.

    A pattern is a whole name, a class, or a regular expression after "re:", which is matched from the start
    of the name. Raise `InputError` for an invalid pattern, and as `base.patterns` does."""
    if any(_matches(module, kind, pattern) for pattern in config.get("ignore") or ()):
        return None
    groups = (config.get("config_groups") or {}).values()
    covering = [group for group in groups if isinstance(group, Mapping)]
    # names take precedence over classes
    for wanted in (module, None):
        for group in covering:
            for target in group.get("targets") or ():
                hit = _matches(module, kind, target) if wanted is None else target == module
                if hit:
                    return group
    return None


def _matches(module: str, kind: str, pattern: Any) -> bool:
    if not isinstance(pattern, str):
        raise InputError(f"The pattern {pattern!r} in the quantization_config is not a string.")
    if pattern.startswith("re:"):
        return patterns.matches(pattern.removeprefix("re:"), module)
    return pattern in (module, kind)


def _shape(stored: torch.Tensor, packed: torch.Tensor) -> tuple[int, int]:
    """Return the checked `weight_shape`."""
    shape = stored.tolist()
    if len(shape) != 2 or packed.ndim != 2 or shape[0] != packed.shape[0] or shape[1] < 1:
        raise InputError(
            f"weight_shape is {shape}, but weight_packed has the shape {tuple(packed.shape)}: the file is "
            "damaged."
        )
    return int(shape[0]), int(shape[1])
