"""Read models saved by GPTQModel and AutoRound: AutoGPTQ's layout, in safetensors files.

For a layer of N outputs and K inputs with b-bit codes in groups of g inputs, G = K / g:

    qweight (K·b/32, N)    codes, 32/b in an int32, the lowest bits first, along the inputs
    qzeros  (G, N·b/32)    zero points, packed along the outputs; version 1 of the layout stores them minus 1
    scales  (G, N)         float16
    g_idx   (K,)           the group of each input; not counted if it equals k // g

    ŵ = scale · (code − zero point)
"""

import json
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file

from benchmarks.quantizers import Stored, linears, put
from qcore.base.errors import RunError

PARTS = ("qweight", "qzeros", "scales")


@dataclass(frozen=True)
class Layout:
    """The config of a saved model: `bits`, `group` (inputs that share a scale), `offset` (added to stored
    zero points)."""

    bits: int
    group: int
    offset: int

    @classmethod
    def of(cls, folder: Path) -> "Layout":
        """Read the config of the model saved in `folder`. Raise `RunError` for any other layout."""
        found = json.loads((folder / "config.json").read_text())["quantization_config"]
        name = (
            found.get("checkpoint_format")
            or found.get("format")
            or found.get("packing_format")
            or found.get("quant_method")
        )
        versions = {"gptq": 1, "gptq_v2": 0, "auto_round:auto_gptq": 1, "auto_round:gptq": 1}
        if name not in versions or 32 % found["bits"]:
            raise RunError(
                f"The saved model is in the layout {name!r} with {found['bits']} bits, "
                "which cannot be read here."
            )
        return cls(found["bits"], found["group_size"], versions[name])


def unpack(words: torch.Tensor, bits: int) -> torch.Tensor:
    """Unpack the codes in int32 `words` (R, C), the lowest bits first, in order along the rows: (R · 32 /
    bits, C)."""
    shifts = torch.arange(0, 32, bits, dtype=torch.int32)
    codes = (words.unsqueeze(1) >> shifts[None, :, None]) & (2**bits - 1)
    return codes.reshape(-1, words.shape[1])


def widen(parts: dict[str, torch.Tensor], layout: Layout) -> torch.Tensor:
    """Return the dequantized weight (N, K) in float32 from the `parts` of one layer."""
    codes = unpack(parts["qweight"], layout.bits)
    zeros = unpack(parts["qzeros"].T, layout.bits).T + layout.offset
    group = parts["g_idx"].long() if "g_idx" in parts else torch.arange(len(codes)) // layout.group
    return (parts["scales"].float()[group] * (codes - zeros[group])).T.contiguous()


def nbytes(parts: dict[str, torch.Tensor], group: int) -> int:
    """Return the stored bytes of one layer; `g_idx` counts only if it reorders groups."""
    order = parts.get("g_idx")
    straight = order is None or torch.equal(order.long(), torch.arange(len(order)) // group)
    return sum(parts[name].nbytes for name in PARTS) + (0 if straight else order.nbytes)


def take(model: torch.nn.Module, folder: Path) -> Stored:
    """Set the linear layers of `model` to the values of the model saved in `folder`. Raise `RunError` if one
    is missing."""
    layout, tensors = Layout.of(folder), {}
    for file in sorted(folder.glob("*.safetensors")):
        tensors |= load_file(file)
    layers, total = linears(model), 0
    for name, layer in layers.items():
        stem = name.removesuffix("weight")
        parts = {part: tensors.pop(stem + part) for part in (*PARTS, "g_idx") if stem + part in tensors}
        if not set(PARTS) <= set(parts):
            raise RunError(f"The saved model does not hold {name} as codes.")
        total += nbytes(parts, layout.group)
        put(layer, widen(parts, layout))
    if more := [name for name in tensors if name.endswith("qweight")]:
        raise RunError(
            f"The saved model holds {len(more)} more layers as codes, such as {more[0]}, "
            "which the baseline keeps."
        )
    return Stored(total, sum(layer.weight.numel() for layer in layers.values()), frozenset(layers))
