"""One weight of a model in the form in which another project stored it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

    from qcore.formats.tensor import QuantizedTensor


@dataclass(frozen=True)
class Widened:
    """The `values`, float32, of a quantized matrix (N outputs, K inputs) whose codes no format of qcore
    holds, for this `reason`."""

    values: torch.Tensor
    reason: str


@dataclass(frozen=True)
class StoredWeight:
    """A weight of a file. `name` is the tensor's own name there. `parameter` is the model's parameter that it
    fills, whole or in part: the rows of `expert` (None: not an expert), below those of the weights with a
    smaller `part`.

    `kind` is the project's name of the stored type, such as "Q4_K", "F16" or "gptq int4-g128"; `quantized`
    whether that is a quantized type. `nbytes` are its bytes in the file, `count` its values. `read` returns
    the codes as a matrix (N outputs, K inputs); `Widened` if it turns out that no format holds them; or
    values in the model's layout. If the type is quantized and `read` returns values, `reason` says why.
    """

    name: str
    parameter: str
    kind: str
    quantized: bool
    nbytes: int
    count: int
    read: Callable[[], QuantizedTensor | Widened | torch.Tensor]
    reason: str | None = None
    expert: int | None = None
    part: int = 0

    @property
    def has_codes(self) -> bool:
        """Whether `read` returns codes, as far as that is known before."""
        return self.quantized and self.reason is None
