"""Fake quantization: layers that compute with their quantized weights and let gradients through.

    light    ŵ = gain · scale · unit                       codes are fixed; a gain per scale is learned, which
                                                           stretches an affine grid about its middle
    full     ŵ = scale · clamp(round(w / scale))       the latent weight w is learned

Rounding has no useful gradient, so it is skipped (the straight-through estimator, Bengio et al., arXiv
1308.3432): ∂ŵ/∂w = 1 where w lies within the grid, 0 beyond its ends. With `learn_scales` the full form
learns scales as LSQ does (arXiv 1902.08153): for a uniform grid

    ∂ŵ/∂scale = round(w / scale) − w / scale within the grid, and the last code beyond its ends

and the same with table values for codebooks. Scales are rounded to what the format stores (float16, or 8 bits
with -dq) before use, so the trained weights equal the saved ones bit for bit.

Any model quantized by qcore can be trained: `attach` starts from its codes, and `detach` returns to ordinary
quantized layers. In the full form the weights begin at their codes, shifted towards the unquantized weights.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import nn

from qcore.formats.packing import pack
from qcore.formats.tensor import QuantizedTensor, round_minimum, round_scale, spread, stretched
from qcore.kernels.precision import mixes
from qcore.quantization.methods.rtn import divisor, nearest

LEAN = 0.4  # initial shift of a weight from its code towards the unquantized weight, in grid steps


class Light(nn.Module):
    """Fixed codes, and a trained `gain` (N, G) per scale, which begins at 1.

    In mixed precision ŵ is computed directly in bfloat16, from rounded scales; stored and validated weights
    are exact.
    """

    units: torch.Tensor
    scale: torch.Tensor
    minimum: torch.Tensor | None

    def __init__(self, tensor: QuantizedTensor):
        super().__init__()
        self.tensor = tensor
        self.register_buffer("units", _units(tensor), persistent=False)
        self.register_buffer("scale", tensor.scales(), persistent=False)
        self.register_buffer("minimum", tensor.minimums(), persistent=False)
        self.gain = nn.Parameter(torch.ones_like(self.scale))

    def weight(self) -> torch.Tensor:
        """Return ŵ (N, K), in float32 or autocast's type."""
        scale, minimum = _stored(self.scale, self.minimum, self.gain, self.tensor)
        if self.units.dtype == torch.bfloat16 and torch.is_autocast_enabled(scale.device.type):
            scale = scale.to(torch.bfloat16)
            minimum = None if minimum is None else minimum.to(torch.bfloat16)
        size = self.tensor.format.group_size
        values = _Scaled.apply(self.units, scale, size)
        return values if minimum is None else values + spread(minimum, values.shape[1], size)

    def result(self) -> QuantizedTensor:
        """Return the quantized tensor that stores ŵ."""
        with torch.no_grad():
            scale, minimum = stretched(self.scale, self.minimum, self.gain, self.tensor.format)
            return _to(self.tensor, scale.device).with_scales(scale, minimum)


class Full(nn.Module):
    """A latent weight `latent` (N, K), rounded to the grid of `tensor`; `gain` (N, G) if scales are learned
    as well."""

    scale: torch.Tensor
    zero: torch.Tensor | None
    table: torch.Tensor | None
    minimum: torch.Tensor | None

    def __init__(self, tensor: QuantizedTensor, unquantized: torch.Tensor | None, learn_scales: bool):
        super().__init__()
        self.tensor = tensor
        scale = tensor.scales()
        self.register_buffer(
            "scale",
            torch.ones(tensor.shape[0], 1, device=tensor.codes.device) if scale is None else scale,
            persistent=False,
        )
        zero = tensor.zero_points() if tensor.format.even else None
        self.register_buffer("zero", zero if isinstance(zero, torch.Tensor) else None, persistent=False)
        self.middle = zero if isinstance(zero, float) else 0.0
        table = None if tensor.codebook is None else tensor.codebook.float()
        self.register_buffer("table", table, persistent=False)
        self.register_buffer("minimum", tensor.minimums(), persistent=False)
        self.latent = nn.Parameter(self._begin(unquantized))
        self.gain = nn.Parameter(torch.ones_like(self.scale)) if learn_scales and scale is not None else None

    def weight(self) -> torch.Tensor:
        """Return ŵ (N, K), float32."""
        return _Rounded.apply(self.latent, *self._grid(), self)

    def result(self) -> QuantizedTensor:
        """Return the quantized tensor with the codes of the latent weight."""
        with torch.no_grad():
            format = self.tensor.format
            codes = self.round(self.latent, *self._grid())[0].to(torch.uint8)
            stored = replace(_to(self.tensor, codes.device), codes=pack(codes, format.bits))
            if self.gain is None:
                return stored
            return stored.with_scales(*stretched(self.scale, self.minimum, self.gain, format))

    def round(
        self, weight: torch.Tensor, scale: torch.Tensor, minimum: torch.Tensor | None
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Return codes, units and position (w − minimum) / scale (N, K) of `weight` under the scales and
        minimums (N, G)."""
        format, columns = self.tensor.format, weight.shape[1]
        if minimum is not None:
            weight = weight - spread(minimum, columns, format.group_size)
        position = weight / spread(divisor(scale), columns, format.group_size)
        if self.table is None:
            zero = self.middle if self.zero is None else spread(self.zero, columns, format.group_size)
            codes = (position.round() + zero).clamp_(format.lowest, format.levels - 1)
            return codes, codes - zero, position
        if self.table.ndim == 1:
            codes = nearest(position, self.table)
            return codes, self.table[codes.int()], position
        ordered, order = self.table.sort(dim=1)
        places = torch.searchsorted(
            ((ordered[:, 1:] + ordered[:, :-1]) / 2).contiguous(), position.contiguous()
        )
        codes = order.gather(1, places)
        return codes, self.table.gather(1, codes), position

    def limits(self) -> tuple[torch.Tensor | float, torch.Tensor | float]:
        """Return the lowest and the highest unit of the grid, (N, K) if groups differ."""
        format, columns = self.tensor.format, self.tensor.shape[1]
        if self.table is not None:
            return self.table.amin(-1, keepdim=True), self.table.amax(-1, keepdim=True)
        if self.zero is None:
            return format.lowest - self.middle, format.levels - 1 - self.middle
        zero = spread(self.zero, columns, format.group_size)
        return -zero, format.levels - 1 - zero

    def _grid(self) -> tuple[torch.Tensor, torch.Tensor | None]:
        if self.gain is None:
            return self.scale, self.minimum
        return _stored(self.scale, self.minimum, self.gain, self.tensor)

    def _begin(self, unquantized: torch.Tensor | None) -> torch.Tensor:
        values = self.tensor.dequantize()
        if unquantized is None:
            return values
        reach = LEAN * spread(self.scale.abs(), values.shape[1], self.tensor.format.group_size)
        if self.table is not None:
            gaps = self.table.sort(dim=-1).values.diff(dim=-1)
            reach = reach * gaps.masked_fill(gaps == 0, torch.inf).amin(
                -1, keepdim=self.table.ndim == 2
            )  # fp4 has two zeros
        return values + (unquantized.to(values) - values).clamp(-reach, reach)


class _Scaled(torch.autograd.Function):
    """Multiply units (N, K) by scales (N, G); autograd keeps only what the scales' gradient needs."""

    @staticmethod
    def forward(ctx: Any, units: torch.Tensor, scale: torch.Tensor, size: int | None) -> torch.Tensor:
        ctx.save_for_backward(units)
        ctx.size, ctx.groups = size, scale.shape[1]
        if size is not None and units.shape[1] == size * scale.shape[1]:
            return (units.unflatten(1, (-1, size)) * scale.unsqueeze(2)).flatten(1)
        return units * spread(scale, units.shape[1], size)

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple:
        (units,) = ctx.saved_tensors
        return None, _by_group(gradient * units, ctx.size, ctx.groups), None


class _Rounded(torch.autograd.Function):
    """Round `latent` (N, K) to its grid with scales and minimums (N, G); straight-through within the grid,
    LSQ's gradient for scales. A minimum moves only the weights beyond the ends of the grid."""

    @staticmethod
    def forward(
        ctx: Any, latent: torch.Tensor, scale: torch.Tensor, minimum: torch.Tensor | None, layer: Full
    ) -> torch.Tensor:
        _, units, position = layer.round(latent, scale, minimum)
        low, high = layer.limits()
        inside = (position >= low) & (position <= high)
        ctx.wants_scale = ctx.needs_input_grad[1]
        if ctx.wants_scale:
            ctx.save_for_backward(inside, units - torch.where(inside, position, 0))
        else:
            ctx.save_for_backward(inside)
        ctx.size, ctx.groups = layer.tensor.format.group_size, scale.shape[1]
        values = units * spread(scale, units.shape[1], ctx.size)
        return values if minimum is None else values + spread(minimum, units.shape[1], ctx.size)

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple:
        inside, *slopes = ctx.saved_tensors
        by_scale = by_minimum = None
        if slopes:
            by_scale = _by_group(gradient * slopes[0], ctx.size, ctx.groups)
        if ctx.needs_input_grad[2]:
            by_minimum = _by_group(gradient * ~inside, ctx.size, ctx.groups)
        return gradient * inside, by_scale, by_minimum, None


def _stored(
    scale: torch.Tensor, minimum: torch.Tensor | None, gain: torch.Tensor, tensor: QuantizedTensor
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Return scales and minimums (N, G), stretched by `gain`, as stored in the format of `tensor`; gradients
    pass through."""
    scale, minimum = stretched(scale, minimum, gain, tensor.format)
    scale = round_scale(scale.detach(), tensor.format) + (scale - scale.detach())
    if minimum is not None:
        minimum = round_minimum(minimum.detach(), tensor.format) + (minimum - minimum.detach())
    return scale, minimum


def _by_group(values: torch.Tensor, size: int | None, groups: int) -> torch.Tensor:
    """Sum `values` (N, K) over the inputs of each group, to (N, G)."""
    if size is None:
        return values.sum(1, keepdim=True)
    missing = groups * size - values.shape[1]
    return (
        (nn.functional.pad(values, (0, missing)) if missing else values).unflatten(1, (groups, size)).sum(2)
    )


def _units(tensor: QuantizedTensor) -> torch.Tensor:
    """Return the values of the codes before scaling, (N, K): integers of a uniform grid (in bfloat16, which
    holds them exactly, if bfloat16 products are fast), or values of a table."""
    codes = tensor.unpacked_codes()
    if tensor.format.even:
        zero = tensor.zero_points()
        zero = (
            spread(zero, tensor.shape[1], tensor.format.group_size)
            if isinstance(zero, torch.Tensor)
            else zero
        )
        if mixes(tensor.codes.device):
            return (codes.float() - zero).to(torch.bfloat16)
        narrow = torch.int8 if tensor.format.bits < 8 or tensor.format.symmetric else torch.int16
        return (codes.float() - zero).to(narrow)
    table = tensor.table
    return table.gather(1, codes.long()) if table.ndim == 2 else table[codes.int()]


def _to(tensor: QuantizedTensor, device: torch.device) -> QuantizedTensor:
    parts: dict[str, Any] = {name: part.to(device) for name, part in tensor.parts().items()}
    return replace(tensor, **parts)
