"""The table of sensitivities: bytes and loss per layer and candidate format.

    loss            KL in nats per token, predicted from gradients:  ½ · mean over tokens of (g · e)²
                    (see `gradients.py`)
    output_error    ‖e‖² / ‖output‖² of the layer itself, over the text: the Hessian-weighted error
    kl              KL in nats per token, measured with only this layer quantized; None if not measured

Only the order that the proxies `loss` and `output_error` give matters, so their quality is Spearman's rank
correlation with the measured divergence.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, field, replace

from qcore.base.errors import InputError
from qcore.formats import kinds
from qcore.formats.kinds import Format

VERSION = 1
PROXIES = ("loss", "output_error")


@dataclass(frozen=True)
class Layer:
    """One quantizable parameter; lists follow the table's formats. `block` is None outside of the decoder's
    blocks, `kind` the rest of the name, such as "self_attn.q_proj"."""

    name: str
    block: int | None
    kind: str
    shape: tuple[int, ...]
    weights: int
    nbytes: tuple[int, ...]
    loss: tuple[float, ...]
    output_error: tuple[float, ...]
    kl: tuple[float, ...] | None = None


@dataclass(frozen=True)
class Sensitivities:
    """`layers` in the model's order, `formats` from the smallest to the largest. `conditions` holds
    everything that the table depends on (model, digest, method, text, tokens, window, samples, prepare), and
    the seconds that it took."""

    formats: tuple[Format, ...]
    layers: tuple[Layer, ...]
    conditions: dict = field(default_factory=dict)

    @property
    def labels(self) -> tuple[str, ...]:
        """The formats' short names."""
        return tuple(format.label for format in self.formats)

    @property
    def measured(self) -> bool:
        """Whether every layer has measured divergences."""
        return bool(self.layers) and all(layer.kl is not None for layer in self.layers)

    def with_kl(self, found: dict[str, list[float]]) -> Sensitivities:
        """Return the same table with the measured divergences `found` of some layers, by name."""
        layers = tuple(
            replace(layer, kl=tuple(found[layer.name])) if layer.name in found else layer
            for layer in self.layers
        )
        return replace(self, layers=layers)

    def correlations(self) -> dict[str, dict[str, float]]:
        """Return Spearman's rank correlation of each proxy with the measured divergence: over all layers and
        formats ("all"), and over the layers per format label. Empty if nothing was measured."""
        rows = [(layer, layer.kl) for layer in self.layers if layer.kl is not None]
        if len(rows) < 2:
            return {}
        found: dict[str, dict[str, float]] = {}
        for proxy in PROXIES:
            values = [getattr(layer, proxy) for layer, _ in rows]
            each = {
                label: spearman([value[k] for value in values], [kl[k] for _, kl in rows])
                for k, label in enumerate(self.labels)
            }
            flat = spearman([one for value in values for one in value], [one for _, kl in rows for one in kl])
            found[proxy] = {"all": flat, **each}
        return found

    def to_dict(self) -> dict:
        """Return a JSON-ready dictionary; `from_dict` is its inverse."""
        formats = [format.to_dict() for format in self.formats]
        return {
            "version": VERSION,
            "formats": formats,
            "layers": [asdict(layer) for layer in self.layers],
            "conditions": self.conditions,
        }

    @classmethod
    def from_dict(cls, record: dict) -> Sensitivities:
        """Rebuild a table from `to_dict`. Raise `InputError` if it cannot be read."""
        try:
            if record["version"] != VERSION:
                raise ValueError(f"version {record['version']}")
            formats = tuple(kinds.from_dict(description) for description in record["formats"])
            layers = tuple(
                Layer(**{name: _tuple(value) for name, value in layer.items()}) for layer in record["layers"]
            )
            return cls(formats, layers, record["conditions"])
        except (KeyError, TypeError, ValueError) as error:
            raise InputError(f"This table of sensitivities cannot be read: {error}.") from error


def spearman(left: list[float], right: list[float]) -> float:
    """Return Spearman's rank correlation, with ties at their mean rank; NaN if one side is constant."""
    a, b = _ranks(left), _ranks(right)
    mean = (len(a) + 1) / 2
    covariance = sum((x - mean) * (y - mean) for x, y in zip(a, b, strict=True))
    spread = math.sqrt(sum((x - mean) ** 2 for x in a) * sum((y - mean) ** 2 for y in b))
    return covariance / spread if spread else math.nan


def _ranks(values: list[float]) -> list[float]:
    order = sorted(range(len(values)), key=values.__getitem__)
    ranks = [0.0] * len(values)
    start = 0
    while start < len(order):
        stop = start
        while stop < len(order) and values[order[stop]] == values[order[start]]:
            stop += 1
        for i in order[start:stop]:
            ranks[i] = (start + stop + 1) / 2
        start = stop
    return ranks


def _tuple(value):
    return tuple(value) if isinstance(value, list) else value
