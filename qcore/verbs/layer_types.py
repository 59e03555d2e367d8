"""What `layer_errors.py` returns: plain data, so that a page can hold it without torch."""

from dataclasses import dataclass


@dataclass(frozen=True)
class LayerError:
    """`shape` is the parameter's. `relative_error`: ‖Ŵ − W‖ / ‖W‖. `snr_db`: decibels, infinite for a
    lossless layer. `format`: the format's label, such as "int4-g64". The experts of a mixture are measured
    together, as one layer."""

    name: str
    shape: tuple[int, ...]
    relative_error: float
    snr_db: float
    bits_per_weight: float
    format: str


@dataclass(frozen=True)
class Histogram:
    """Counts of weights per bin between `edges` (bins + 1), `before` and `after`. `grid` holds the values
    that the codes of the group with the median scale can represent: ascending, at most 256."""

    name: str
    edges: tuple[float, ...]
    before: tuple[int, ...]
    after: tuple[int, ...]
    grid: tuple[float, ...]
