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
