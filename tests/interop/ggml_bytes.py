"""Random bytes of ggml's types, and the numbers that the package `gguf` decodes from bytes."""

import gguf
import numpy as np
import torch

from qcore.interop.ggml_blocks import LAYOUTS


def random_blocks(name: str, rows: int = 7, blocks: int = 5, seed: int = 0) -> torch.Tensor:
    """Random bytes of a type whose scales are finite."""
    layout, generator = LAYOUTS[name], torch.Generator().manual_seed(seed)
    data = torch.randint(0, 256, (rows, blocks, layout.bytes), dtype=torch.uint8, generator=generator)
    start = 0
    for field, size in layout.sizes().items():
        if field in ("scale", "minimum"):
            halves = torch.randn(rows, blocks, 1, generator=generator).to(torch.float16)
            data[..., start : start + size] = halves.view(torch.uint8)
        start += size
    return data.flatten(1)


def decoded(name: str, data: torch.Tensor) -> torch.Tensor:
    """The weight as the package `gguf` decodes it."""
    return torch.from_numpy(
        np.ascontiguousarray(gguf.quants.dequantize(data.numpy(), gguf.GGMLQuantizationType[name]))
    )
