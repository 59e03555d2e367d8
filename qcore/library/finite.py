"""The check that weights are finite, in pieces."""

from __future__ import annotations

from typing import TYPE_CHECKING

from qcore.base.errors import InputError

if TYPE_CHECKING:
    import torch

_CHUNK = 1 << 24  # elements per check


def require_finite(name: str, tensor: torch.Tensor) -> None:
    """Raise `InputError` with the index of the first NaN or infinity of `tensor`, read in pieces to avoid a
    copy. A single number may be infinite: the open end of a range, as in Gemma 4's audio tower."""
    import torch

    if not tensor.is_floating_point() or (tensor.ndim == 0 and not tensor.isnan()):
        return
    flat = tensor.reshape(-1)
    for start in range(0, flat.numel(), _CHUNK):
        piece = flat[start : start + _CHUNK]
        lowest, highest = piece.aminmax()
        if torch.isfinite(lowest) and torch.isfinite(highest):
            continue
        first = start + int((~torch.isfinite(piece)).nonzero()[0, 0])
        index = tuple(int(i) for i in torch.unravel_index(torch.tensor(first), tensor.shape))
        what = "NaN" if torch.isnan(flat[first]) else "infinite"
        raise InputError(
            f"Weights must be finite, but {name}{list(index)} is {what}. Download the model again, or check "
            "how it was trained."
        )
