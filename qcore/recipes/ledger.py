"""The ledger: every tensor of a model, its format, and why. Sizes, coverage and the check that a recipe was
applied are computed from it."""

import re
from dataclasses import asdict, dataclass, replace
from typing import Any

from qcore.base.errors import InputError, NotAppliedError

BASELINE = "fp32"  # the only recipe that leaves the model unchanged
_NAMES_SHOWN = 3
_SHARES = re.compile(r"Shares the (?:storage|codes) of (.+)\.")
_EXTRA = ("calibration", "allocation", "training", "pruning")


@dataclass(frozen=True)
class LedgerRow:
    """One tensor.

    `name`, `shape`, `dtype`: as loaded. `format`: the format it is now stored in ("int4-g64", "nf4", "bf16",
    …), or None if it was kept. `bytes_before`, `bytes_after`: stored bytes, scales, zero points and codebooks
    included; 0 for a tensor that shares another's storage. `weights`: the number of logical weights,
    independent of the format. `reason`: why it was kept. `sparsity`: the share of its weights that pruning
    set to 0. `intended`: False if the recipe should have changed the tensor and could not; the run then
    counts as failed. `shares`: the name of the tensor whose storage or codes it shares.
    """

    name: str
    shape: tuple[int, ...]
    dtype: str
    format: str | None
    bytes_before: int
    bytes_after: int
    weights: int
    reason: str | None = None
    intended: bool = True
    sparsity: float | None = None
    shares: str | None = None


@dataclass(frozen=True)
class Ledger:
    """All rows of one model under the recipe called `recipe`. Optional records: the calibration text, the
    choice of formats per layer, and how the model was trained or pruned (see `qcore.training`,
    `qcore.pruning`)."""

    recipe: str
    rows: tuple[LedgerRow, ...]
    calibration: dict[str, Any] | None = None
    allocation: dict[str, Any] | None = None
    training: dict[str, Any] | None = None
    pruning: dict[str, Any] | None = None

    @property
    def stored_bytes(self) -> int:
        """Bytes of all tensors that the model needs to run, tied tensors once."""
        return sum(row.bytes_after for row in self.rows)

    @property
    def quantized(self) -> tuple[LedgerRow, ...]:
        """The rows that the recipe changed, shared storage left out."""
        return tuple(row for row in self.rows if row.format is not None and row.bytes_after)

    @property
    def coverage(self) -> float:
        """Quantized weights / all weights (tied ones once); 0 for the baseline."""
        total = sum(row.weights for row in self.rows if row.bytes_after)
        return sum(row.weights for row in self.quantized) / total if total else 0.0

    @property
    def bits_per_weight(self) -> float:
        """8 · stored bytes / logical weights of the quantized rows, or of all rows if none is quantized."""
        rows = self.quantized or [row for row in self.rows if row.bytes_after]
        return 8 * sum(row.bytes_after for row in rows) / sum(row.weights for row in rows)

    def check(self) -> "Ledger":
        """Return the ledger if the recipe was applied completely. Otherwise raise `NotAppliedError` naming
        the tensors that stayed unchanged."""
        if self.recipe == BASELINE:
            return self
        left = [row for row in self.rows if not row.intended]
        if not self.quantized:
            why = f" {left[0].reason}" if left else ""
            raise NotAppliedError(f"The recipe {self.recipe} changed nothing in this model.{why}")
        if left:
            named = ", ".join(row.name for row in left[:_NAMES_SHOWN]) + (
                ", …" if len(left) > _NAMES_SHOWN else ""
            )
            raise NotAppliedError(
                f"The recipe {self.recipe} left {len(left)} tensors at full precision that it should have "
                f"quantized ({named}): {left[0].reason}"
            )
        return self

    def to_dict(self) -> dict[str, Any]:
        """Return a JSON-ready dictionary; `from_dict` is its inverse."""
        rows = [_row(row) for row in self.rows]
        extra = {name: value for name in _EXTRA if (value := getattr(self, name))}
        return {"recipe": self.recipe, "rows": rows, **extra}

    @classmethod
    def from_dict(cls, record: dict[str, Any]) -> "Ledger":
        """Rebuild a ledger from `to_dict`. Raise `InputError` if it cannot be read."""
        try:
            rows = tuple(_read_row(row) for row in record["rows"])
            return cls(record["recipe"], rows, **{name: record.get(name) for name in _EXTRA})
        except (KeyError, TypeError) as error:
            raise InputError(f"This ledger cannot be read: {error}.") from error


def _row(row: LedgerRow) -> dict[str, Any]:
    record = asdict(row) | {"shape": list(row.shape)}
    return {
        name: value
        for name, value in record.items()
        if value is not None or name not in ("sparsity", "shares")
    }


def _read_row(record: dict[str, Any]) -> LedgerRow:
    """Return the row of a dictionary. Version 0.1.0 named the tensor that shares its storage only in the
    reason."""
    row = LedgerRow(**{**record, "shape": tuple(record["shape"])})
    named = _SHARES.fullmatch(row.reason or "")
    return replace(row, shares=named[1]) if named and row.shares is None else row
