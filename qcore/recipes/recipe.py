"""A recipe defines how a model is stored and computed. It is frozen, has a short name (see `names.py`), and
converts to and from JSON."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass, field, fields, replace
from typing import Any

from qcore.base.errors import InputError
from qcore.formats import kinds
from qcore.formats.budget import Budget
from qcore.formats.kinds import Format
from qcore.formats.mixture import Mixture
from qcore.recipes.methods import needs_text

ACTIVATIONS = ("fp32", "int16", "int8-block", "int8")
PREPARATIONS = ("none", "rotation")
MOST_PATTERNS, LONGEST_PATTERN = 300, 300  # of modules to skip; characters


@dataclass(frozen=True)
class Float:
    """Plain floating point: "fp32", "bf16" or "fp16"."""

    dtype: str

    def __post_init__(self) -> None:
        if self.dtype not in ("fp32", "bf16", "fp16"):
            raise ValueError(f"dtype is {self.dtype!r}, but it must be fp32, bf16 or fp16")


@dataclass(frozen=True)
class Engine:
    """Another library's quantizer: `backend` is the file in `qcore/engines/`, `variant` the library's
    format."""

    backend: str
    variant: str


@dataclass(frozen=True)
class Saved:
    """Weights read from `folder`, which holds a model made from the same original."""

    folder: str


Weights = Float | Format | Mixture | Budget | Engine | Saved


@dataclass(frozen=True)
class Modules:
    """The modules that a recipe changes besides the linear layers inside the blocks.

    `head` and `embeddings` are "keep" (as loaded), "int8" (one scale per channel) or "same" (as the other
    weights); a tied pair follows `head`. `towers`, the linear layers of a wrapper's encoders for images and
    sounds, is "keep" or "int8". `skip` holds patterns of module names, matched on whole dotted
    segments, with `*` for any segment: "layers.0" skips block 0 and not block 10; "*.down_proj" or
    "down_proj" every down projection. Raise `InputError` for more than `MOST_PATTERNS`, or a longer one than
    `LONGEST_PATTERN`: each is compared with each module.
    """

    head: str = "keep"
    embeddings: str = "keep"
    towers: str = "keep"
    skip: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        object.__setattr__(self, "skip", _checked_patterns(self.skip))
        for name in ("head", "embeddings"):
            if getattr(self, name) not in ("keep", "int8", "same"):
                raise ValueError(f"{name} is {getattr(self, name)!r}, but it must be keep, int8 or same")
        if self.towers not in ("keep", "int8"):
            raise ValueError(f"towers is {self.towers!r}, but it must be keep or int8")


def _checked_patterns(patterns: Iterable[str]) -> tuple[str, ...]:
    found = tuple(patterns)
    if isinstance(patterns, str) or not all(isinstance(each, str) for each in found):
        raise InputError(f"skip is {patterns!r}, but it must be a list of patterns, such as ['layers.0'].")
    if len(found) > MOST_PATTERNS:
        raise InputError(
            f"{len(found):,} patterns of modules to skip were given, but at most {MOST_PATTERNS} are "
            "allowed. One pattern can skip many modules, such as *.down_proj."
        )
    for each in found:
        if len(each) > LONGEST_PATTERN:
            raise InputError(
                f"The pattern of modules to skip {each[:40]!r}… has {len(each):,} characters, but at most "
                f"{LONGEST_PATTERN} are allowed. Shorten it with *."
            )
    return found


@dataclass(frozen=True)
class Recipe:
    """`weights` is the format, `method` chooses the codes (see `methods.METHODS`; "none" for floats, engines
    and saved models). `prepare` transforms the whole model before: "rotation" or "none".

    `activations` is the precision in which layers read their inputs: "fp32" (exact), "int16" (a scale per 32
    inputs; relative error about 1e-5, negligible beside 8-bit weights; exact where there is no fast kernel),
    "int8-block" (the same in 8 bits, error about 5e-3) or "int8" (one scale per token: the dynamic recipes).
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
        """False for the floating-point recipes and for saved models."""
        return not isinstance(self.weights, Float | Saved)

    @property
    def engine(self) -> Engine:
        """The engine and its variant. Raises `ValueError` for a recipe of qcore's own."""
        if not isinstance(self.weights, Engine):
            raise ValueError(f"{self.name} is not a recipe of an engine")
        return self.weights

    @property
    def calibrated(self) -> bool:
        """Whether codes are chosen with a calibration text."""
        return needs_text(self.method) or isinstance(self.weights, Budget)

    def to_dict(self) -> dict[str, Any]:
        """Return a JSON-ready dictionary; `from_dict` is its inverse."""
        weights = (
            self.weights.to_dict() if isinstance(self.weights, Format | Budget) else asdict(self.weights)
        )
        record = {field.name: getattr(self, field.name) for field in fields(self)}
        record["modules"] = asdict(self.modules)
        if self.modules.towers == "keep":  # as in records before there was a choice
            del record["modules"]["towers"]
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
        """Return the recipe with other modules, such as `skip=("layers.0",)`."""
        return replace(self, modules=replace(self.modules, **choices))


_TYPES = {kind.__name__.lower(): kind for kind in (Float, Mixture, Budget, Engine, Saved)}


def _weights(record: dict[str, Any]) -> Weights:
    if record["type"] not in _TYPES:
        return kinds.from_dict(record)
    fields = dict(record)
    kind = _TYPES[fields.pop("type")]
    if kind is Engine and "library" in fields:  # its name in earlier records
        fields["backend"] = fields.pop("library")
    return kind(**fields)
