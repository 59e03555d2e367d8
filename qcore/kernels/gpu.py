"""Products on a GPU, by kernels of PyTorch and bitsandbytes that read codes as they are.

    weight                                      kernel                                      activations
    even grid of at most 4 bits, groups of 32,  `_weight_int4pack_mm` of PyTorch, with      bfloat16
    64, … inputs or one per row                 scales in bfloat16 (torchao's int4 kernel)
    8-bit symmetric grid, one scale per row     `_weight_int8pack_mm` of PyTorch            float32
    nf4 and fp4, groups of 32, 64, … 4096       `gemm_4bit` of bitsandbytes                 float32

Other weights are multiplied by the plain-torch reference, and so are all weights of a recipe that asks for
exact activations (`-a32`) where a kernel rounds them, or for 8-bit ones per token (`-dynamic`).

The device holds a weight once, in the layout of its kernel. The stored parts wait in the memory of the host,
from which `unpack` restores them bit for bit. These kernels have not run on a GPU yet: tests compare the
arithmetic with PyTorch's and bitsandbytes' own CPU versions of the same operators (docs/devices.md).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, replace
from functools import cached_property
from importlib.util import find_spec
from typing import Any, ClassVar

import torch
from torch.nn.functional import linear as dense_linear
from torch.nn.functional import pad

from qcore.formats.codebook import Codebook
from qcore.formats.kinds import Format
from qcore.formats.tensor import QuantizedTensor

INT4_GROUPS = (256, 128, 64, 32)  # that the kernel reads
INT4_INPUTS, INT4_OUTPUTS, INNER_TILES = 1024, 8, 8  # torchao pads to these multiples for the same kernel
BLOCKS = (32, 64, 128, 256, 512, 1024, 2048, 4096)  # of bitsandbytes
# The int8 kernel has a thread per output, which reads a row of codes alone (PyTorch, int8mm.cu). More tokens
# than one of its blocks holds are multiplied by the dequantized weight.
INT8_ROWS = 16


@dataclass(frozen=True)
class GpuWeight(ABC):
    """A weight (N, K) in the layout of a GPU kernel. `stored` has its parts in the memory of the host."""

    WORDS: ClassVar[str]  # the kernel and its activations, for records

    stored: QuantizedTensor

    @property
    def format(self) -> Format:
        """The format of the weight."""
        return self.stored.format

    @property
    def shape(self) -> tuple[int, int]:
        """(N, K)."""
        return self.stored.shape

    @property
    def device(self) -> torch.device:
        """The device of the packed weight."""
        return self._held()[0].device

    @property
    def nbytes(self) -> int:
        """The bytes that the packed weight takes on the device."""
        return sum(tensor.nbytes for tensor in self._held())

    def _held(self) -> list[torch.Tensor]:
        return [value for value in vars(self).values() if isinstance(value, torch.Tensor)]

    @abstractmethod
    def multiply(self, x: torch.Tensor) -> torch.Tensor:
        """Return x (B, K) times the weight, (B, N), in x's dtype, for B above 0."""

    def linear(self, x: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
        """Multiply x (..., K) by the weight, add `bias` (N,), and return (..., N) in x's dtype."""
        if not x.numel():
            return x.new_empty(*x.shape[:-1], self.shape[0])
        y = self.multiply(x.reshape(-1, x.shape[-1])).view(*x.shape[:-1], self.shape[0])
        return y if bias is None else y + bias.to(y.dtype)

    def unpack(self) -> QuantizedTensor:
        """Return the stored tensor on the device of the kernel."""
        return moved(self.stored, self.device)

    @cached_property
    def unpacked_once(self) -> QuantizedTensor:
        """The result of the first `unpack`: layers that share a packed weight share its parts afterwards."""
        return self.unpack()


@dataclass(frozen=True)
class Int4(GpuWeight):
    """Codes of at most 4 bits in tiles, and (groups, N, 2) of scale s and offset z in bfloat16:

    w = (code − 8) · s + z        z = (middle − zero point) · s,  or  minimum + middle · s

    Codes are shifted so that the middle one of the format becomes 8. So z is small and its rounding, too.
    """

    WORDS: ClassVar[str] = "PyTorch's int4 kernel (_weight_int4pack_mm), bfloat16 activations and scales"

    tiles: torch.Tensor
    scales: torch.Tensor
    group: int

    @classmethod
    def pack(cls, weight: QuantizedTensor) -> Int4:
        """Return `weight` in the kernel's layout. `kernel_of` says whether the kernel reads its format."""
        (rows, columns), size = weight.shape, weight.format.group_size
        more_rows, more_columns = -rows % INT4_OUTPUTS, -columns % INT4_INPUTS
        middle = weight.format.levels // 2
        codes = pad(weight.unpacked_codes() + (8 - middle), (0, more_columns, 0, more_rows))
        tiles = torch.ops.aten._convert_weight_to_int4pack(
            (codes[:, ::2] << 4 | codes[:, 1::2]).contiguous(), INNER_TILES
        )
        scale, minimum = _given(weight.scales()), weight.minimums()
        shift = (middle - weight.zero_points()) * scale if minimum is None else minimum + middle * scale
        group = _int4_group(size)
        pairs = torch.stack((scale, shift), dim=2)  # (N, G, 2)
        wide = (columns + more_columns) // group
        pairs = pairs.repeat_interleave(wide if size is None else size // group, dim=1)[:, :wide]
        pairs = pad(pairs, (0, 0, 0, wide - pairs.shape[1], 0, more_rows))
        return cls(moved(weight), tiles, pairs.transpose(0, 1).to(torch.bfloat16).contiguous(), group)

    def multiply(self, x: torch.Tensor) -> torch.Tensor:
        inputs = pad(x.to(torch.bfloat16), (0, -self.shape[1] % INT4_INPUTS)).contiguous()
        y = torch.ops.aten._weight_int4pack_mm(inputs, self.tiles, self.group, self.scales)
        return y[:, : self.shape[0]].to(x.dtype)


@dataclass(frozen=True)
class Int8(GpuWeight):
    """Signed codes int8 (N, K), and a scale float32 (N,) per row. Up to `INT8_ROWS` tokens at once run in the
    kernel, more are multiplied by the dequantized weight."""

    WORDS: ClassVar[str] = (
        f"PyTorch's int8 kernel (_weight_int8pack_mm) for up to {INT8_ROWS} tokens at once, the dequantized "
        "weight for more; float32 activations"
    )

    codes: torch.Tensor
    scale: torch.Tensor

    @classmethod
    def pack(cls, weight: QuantizedTensor) -> Int8:
        """Return `weight` in the kernel's layout. `kernel_of` says whether the kernel reads its format."""
        codes = (weight.unpacked_codes() ^ 128).view(torch.int8).contiguous()  # code − 128
        return cls(moved(weight), codes, _given(weight.scales()).flatten())

    def multiply(self, x: torch.Tensor) -> torch.Tensor:
        inputs = x.to(torch.float32).contiguous()
        if len(x) <= INT8_ROWS:
            return torch.ops.aten._weight_int8pack_mm(inputs, self.codes, self.scale).to(x.dtype)
        return (dense_linear(inputs, self.codes.float()) * self.scale).to(x.dtype)


@dataclass(frozen=True)
class FourBit(GpuWeight):
    """nf4 and fp4 in bitsandbytes' layout: two codes per byte, the first in the high bits, and a float32
    scale per block of the flattened weight."""

    WORDS: ClassVar[str] = "bitsandbytes' 4-bit kernel (gemm_4bit), float32 activations"

    codes: torch.Tensor
    scale: torch.Tensor
    kind: str

    @classmethod
    def pack(cls, weight: QuantizedTensor) -> FourBit:
        """Return `weight` in the kernel's layout. `kernel_of` says whether the kernel reads its format."""
        import bitsandbytes  # noqa: F401 (registers the operator)

        assert isinstance(weight.format, Codebook)
        codes = weight.unpacked_codes().flatten()
        packed = (codes[::2] << 4 | codes[1::2]).unsqueeze(1)
        return cls(moved(weight), packed, _given(weight.scales()).flatten(), weight.format.kind)

    def multiply(self, x: torch.Tensor) -> torch.Tensor:
        size = self.format.group_size or self.shape[1]
        y = torch.ops.bitsandbytes.gemm_4bit(
            x.float().contiguous(), self.codes, list(self.shape), self.scale, size, self.kind
        )
        return y.to(x.dtype)


@dataclass(frozen=True)
class Kernel:
    """The class of the packed weight, or (None) the `reason` for the reference."""

    kind: type[Int4] | type[Int8] | type[FourBit] | None
    reason: str = ""


def kernel_of(weight: QuantizedTensor, activations: str | None) -> Kernel:
    """Return the kernel that multiplies by `weight`, which is on a GPU, with `activations` of a recipe (None:
    the layer looks rows up)."""
    format, device = weight.format, weight.codes.device
    here = f"on {device}"
    if activations is None:
        return Kernel(None, f"rows are looked up in plain torch {here}")
    if device.type != "cuda":
        return Kernel(None, f"the weight is {here}, and the kernels for GPUs need cuda")
    if activations == "int8":
        return Kernel(None, f"no kernel {here} reads activations in 8 bits per token")
    if 0 in weight.shape:
        return Kernel(None, "the weight is empty")
    size = format.group_size
    if format.even and format.bits <= 4:
        if activations == "fp32":
            return Kernel(
                None, f"the int4 kernel {here} rounds activations, and the recipe reads them exactly"
            )
        if _int4_group(size) == 0:
            return Kernel(None, f"the int4 kernel {here} reads groups of 32 inputs or more, not of {size}")
        if torch.cuda.get_device_capability(device) < (8, 0):
            return Kernel(
                None, f"the int4 kernel needs an NVIDIA GPU of compute capability 8.0, {here} is older"
            )
        return Kernel(Int4)
    if format.even and format.bits == 8 and size is None and format.symmetric:
        return Kernel(Int8)
    if isinstance(format, Codebook) and format.kind in ("nf4", "fp4"):
        if (size or weight.shape[1]) not in BLOCKS or weight.shape[1] % (size or 1):
            return Kernel(None, f"bitsandbytes' kernel {here} reads whole groups of 32 to 4096 inputs")
        if find_spec("bitsandbytes") is None:
            return Kernel(None, f"{format.label} {here} needs bitsandbytes, which is not installed")
        return Kernel(FourBit)
    return Kernel(None, f"no kernel {here} reads the format {format.label}")


def _int4_group(size: int | None) -> int:
    """Return the group size of the int4 kernel for groups of `size` inputs: the largest that divides it, 0 if
    none does."""
    return next((each for each in INT4_GROUPS if size is None or size % each == 0), 0)


def _given(scale: torch.Tensor | None) -> torch.Tensor:
    if scale is None:
        raise ValueError("the format has no scales")
    return scale


def moved(weight: QuantizedTensor, device: torch.device | str = "cpu") -> QuantizedTensor:
    """Return `weight` with its parts on `device`."""
    parts: dict[str, Any] = {name: part.to(device) for name, part in weight.parts().items()}
    return replace(weight, **parts)
