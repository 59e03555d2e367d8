"""The one definition of a quantile: linear between neighbours, as numpy has it."""

import math
from collections.abc import Sequence


def quantile(ordered: Sequence[float], q: float) -> float:
    """The q-quantile (0 … 1) of ascending values: a list or a 1-D tensor, of any length (torch.quantile
    refuses 16 million)."""
    place = q * (len(ordered) - 1)
    low = math.floor(place)
    high = min(low + 1, len(ordered) - 1)
    return float(ordered[low] + (ordered[high] - ordered[low]) * (place - low))
