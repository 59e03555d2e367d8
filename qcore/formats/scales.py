"""Storage of scales: as float16, or quantized to 8 bits in blocks of 256 (double quantization, QLoRA, arXiv
2305.14314)."""

import torch

from qcore.base.errors import InputError
from qcore.formats.kinds import SCALES_PER_BLOCK


def half(scale: torch.Tensor) -> torch.Tensor:
    half = scale.to(torch.float16)
    if half.isfinite().all():
        return half
    if scale.isnan().any():
        raise InputError(
            "The weights hold NaN, so they cannot be quantized. Download the model again, or train it with "
            "care."
        )
    raise InputError(
        f"A group of weights is too large to quantize: its scale {scale.max():.3g} exceeds 65504, the "
        "largest float16."
    )


def quantize(scale: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return 8-bit codes (N, G) and per-block (lowest, step) of non-negative scales, in blocks of 256."""
    half(scale)  # raises for scales that cannot be stored
    flat = scale.float().flatten()
    blocks = -(-flat.numel() // SCALES_PER_BLOCK)
    filled = torch.cat((flat, flat[-1:].expand(blocks * SCALES_PER_BLOCK - flat.numel()))).view(
        blocks, SCALES_PER_BLOCK
    )
    lowest, highest = filled.aminmax(dim=1, keepdim=True)
    step = (highest - lowest) / 255
    codes = (
        ((filled - lowest) / step.clamp_min(torch.finfo(torch.float32).tiny))
        .round()
        .clamp(0, 255)
        .to(torch.uint8)
    )
    return codes.flatten()[: flat.numel()].view(scale.shape), torch.cat((lowest, step), dim=1)


def dequantize(codes: torch.Tensor, ranges: torch.Tensor) -> torch.Tensor:
    lowest, step = (
        part.repeat_interleave(SCALES_PER_BLOCK)[: codes.numel()].view(codes.shape)
        for part in ranges.unbind(1)
    )
    return half(
        codes.float() * step + lowest
    ).float()  # float16, as in the kernels, so that both compute with equal numbers


def quantize_by_block(
    values: torch.Tensor, per_block: int, lowest: int, highest: int, importance: torch.Tensor | None = None
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return integers (N, G), int16, in `lowest` … `highest`, and a float16 unit (N, G / per_block) for each
    block of `values` (N, G), with the least squared error of  unit · integer,  weighted by `importance` (N,
    G).

    The unit is the block's largest value divided by an integer of the range, and every such integer is tried.
    So values that a unit represents exactly are returned exactly, whether or not they reach the end of the
    range.
    """
    blocks = values.float().unflatten(1, (-1, per_block))
    half(blocks)  # raises for NaN and for values that cannot be stored
    weights = torch.ones_like(blocks) if importance is None else importance.unflatten(1, (-1, per_block))
    extreme = blocks.gather(2, blocks.abs().argmax(2, keepdim=True))
    best = torch.full_like(extreme, torch.inf)
    unit, integers = torch.zeros_like(extreme), torch.zeros_like(blocks)
    for divisor in sorted(set(range(lowest, highest + 1)) - {0}, key=abs, reverse=True):
        tried = (extreme / divisor).to(torch.float16).float()
        inverse = torch.where(tried == 0, 0, 1 / tried)
        found = (blocks * inverse).round_().clamp_(lowest, highest)
        error = (found * tried).sub_(blocks).square_().mul_(weights).sum(2, keepdim=True)
        better = error < best
        best = torch.where(better, error, best)
        unit, integers = torch.where(better, tried, unit), torch.where(better, found, integers)
    return integers.flatten(1).to(torch.int16), unit.squeeze(2).to(torch.float16)
