"""A recipe says how a model is to be stored and computed. It is frozen, has a short name (see `names.py`),
and turns into JSON and back."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field, fields, replace
from typing import Any

from qcore.base.errors import InputError
from qcore.formats import kinds
from qcore.formats.budget import Budget
from qcore.formats.kinds import Format
from qcore.recipes.methods import needs_text

ACTIVATIONS = ("fp32", "int16", "int8-block", "int8")
PREPARATIONS = ("none", "rotation")


@dataclass(frozen=True)
class Float:
    """Plain floating point: "fp32", "bf16" or "fp16"."""

    dtype: str

    def __post_init__(self) -> None:
        if self.dtype not in ("fp32", "bf16", "fp16"):
            raise ValueError(f"dtype is {self.dtype!r}, but it must be fp32, bf16 or fp16")


@dataclass(frozen=True)
class Engine:
    """Another library's quantizer: `backend` names the file in `qcore/engines/` and `variant` the form it is
    asked for."""

    backend: str
    variant: str


@dataclass(frozen=True)
class Saved:
    """Weights that are not made now but lie in `folder`, a model that was made from the one at hand."""

    folder: str


Weights = Float | Format | Budget | Engine | Saved


@dataclass(frozen=True)
class Modules:
    """Which modules a recipe touches besides the linear layers inside the blocks.

    `head` and `embeddings` are "keep" (as loaded), "int8" (one scale a channel) or "same" (as the other
    weights); a tied pair follows `head`. `skip` holds patterns: module names, whole or in part, matched on
    their dotted segments with `*` for any one segment: "layers.0" skips everything in block 0 and not block
    10; "*.down_proj" or "down_proj" every down projection.
    """

    head: str = "keep"
    embeddings: str = "keep"
    skip: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        object.__setattr__(self, "skip", tuple(self.skip))
        for name in ("head", "embeddings"):
            if getattr(self, name) not in ("keep", "int8", "same"):
                raise ValueError(f"{name} is {getattr(self, name)!r}, but it must be keep, int8 or same")


@dataclass(frozen=True)
class Recipe:
    """`weights` says what is stored, `method` how codes are chosen (see `methods.METHODS`; "none" for floats,
    engines and saved models). `prepare` is done to the whole model before:
    "rotation", or "none".

    `activations` is what a layer multiplies with: "fp32" (exact), "int16" (blocks of 32 inputs with a scale
    each, an error of some 1e-5 that no 8-bit weight notices; where there is no fast kernel, exact),
    "int8-block" (the same in 8 bits, some 5e-3) or "int8" (one scale a token: the dynamic recipes).
    """

    name: str
    weights: Weights
    method: str = "none"
    activations: str = "fp32"
    modules: Modules = field(default_factory=Modules)
    prepare: str = "none"

    def __post_init__(self) -> None:
        if self.prepare not in PREPARATIONS:
            raise ValueError(f"prepare is {self.prepare!r}, but it must be one of {', '.join(PREPARATIONS)}")
        if self.activations not in ACTIVATIONS:
            raise ValueError(
                f"activations is {self.activations!r}, but it must be one of {', '.join(ACTIVATIONS)}"
            )

    @property
    def quantizes(self) -> bool:
        """False for the floating-point recipes, and for saved models, which are taken as they are."""
        return not isinstance(self.weights, Float | Saved)

    @property
    def calibrated(self) -> bool:
        """Whether codes are chosen with the help of a calibration text."""
        return needs_text(self.method) or isinstance(self.weights, Budget)

    def to_dict(self) -> dict[str, Any]:
        """Return a JSON-ready dictionary; `from_dict` is its inverse."""
        weights = (
            self.weights.to_dict() if isinstance(self.weights, Format | Budget) else asdict(self.weights)
        )
        record = {field.name: getattr(self, field.name) for field in fields(self)}
        record["modules"] = asdict(self.modules)
        record["weights"] = {"type": type(self.weights).__name__.lower()} | weights
        record["modules"]["skip"] = list(self.modules.skip)
        return record

    @classmethod
    def from_dict(cls, record: dict[str, Any]) -> Recipe:
        """Rebuild a recipe from `to_dict`. Raise `InputError` if a field is missing, unknown or out of
        range."""
        try:
            modules = Modules(**record.get("modules", {}))
            return cls(**{**record, "weights": _weights(record["weights"]), "modules": modules})
        except (KeyError, TypeError, ValueError) as error:
            raise InputError(f"This recipe record cannot be read: {error}.") from error

    def with_modules(self, **choices: Any) -> Recipe:
        """Return the same recipe with other choices of modules, such as `skip=("layers.0",)`."""
        return replace(self, modules=replace(self.modules, **choices))


_TYPES = {kind.__name__.lower(): kind for kind in (Float, Budget, Engine, Saved)}


def _weights(record: dict[str, Any]) -> Weights:
    if record["type"] not in _TYPES:
        return kinds.from_dict(record)
    fields = dict(record)
    kind = _TYPES[fields.pop("type")]
    if kind is Engine and "library" in fields:  # as it was called in earlier records
        fields["backend"] = fields.pop("library")
    return kind(**fields)
