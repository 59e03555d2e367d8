"""Packing of codes of 2 to 8 bits into bytes, without unused bits.

Eight codes of b bits become b bytes, little-endian: code i of the eight takes the bits i·b … i·b + b − 1 of a
64-bit word whose first b bytes are kept. The last codes of a row are padded with zeros to eight.
"""

import torch
from torch.nn.functional import pad

from qcore.formats.kinds import EIGHT, packed_width

__all__ = ["pack", "packed_width", "unpack"]


def pack(codes: torch.Tensor, bits: int) -> torch.Tensor:
    """Pack uint8 codes (..., K), each below 2^bits, into uint8 (..., packed_width(K, bits))."""
    if bits == 8:
        return (
            codes.contiguous() if codes.shape[-1] % EIGHT == 0 else pad(codes, (0, -codes.shape[-1] % EIGHT))
        )
    if codes.shape[-1] % EIGHT:
        codes = pad(codes, (0, -codes.shape[-1] % EIGHT))
    if bits == 4:
        return codes[..., 0::2] | (codes[..., 1::2] << 4)
    eights = codes.unflatten(-1, (-1, EIGHT))
    words = torch.zeros(eights.shape[:-1], dtype=torch.int64, device=eights.device)
    for i in range(EIGHT):
        words |= eights[..., i].to(torch.int64) << (i * bits)
    return words.unsqueeze(-1).view(torch.uint8)[..., :bits].flatten(-2).contiguous()


def unpack(packed: torch.Tensor, bits: int, count: int) -> torch.Tensor:
    """Invert `pack`: return uint8 codes (..., count) from uint8 (..., packed_width(count, bits))."""
    if bits == 8:
        return packed[..., :count]
    if bits == 4:
        return torch.stack((packed & 15, packed >> 4), dim=-1).flatten(-2)[..., :count]
    eights = packed.unflatten(-1, (-1, bits))
    words = pad(eights, (0, EIGHT - bits)).view(torch.int64).squeeze(-1)
    codes = packed.new_empty(*words.shape, EIGHT)
    for i in range(EIGHT):
        codes[..., i] = (words >> (i * bits)) & ((1 << bits) - 1)
    return codes.flatten(-2)[..., :count]
