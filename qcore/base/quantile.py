"""The definition of a quantile used throughout: linear interpolation between neighbours, as in numpy."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch


def quantile(ordered: Sequence[float] | torch.Tensor, q: float) -> float:
    """Return the q-quantile (0 … 1) of ascending values: a list or a 1-D tensor, of any length
    (torch.quantile refuses 16 million)."""
    place = q * (len(ordered) - 1)
    low = math.floor(place)
    high = min(low + 1, len(ordered) - 1)
    return float(ordered[low] + (ordered[high] - ordered[low]) * (place - low))
