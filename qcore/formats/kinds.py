"""The base class of formats, and the table of all kinds of formats.

    w ≈ scale · unit(code)

A code is a small integer. Its unit comes from an even grid (`code − zero point`) or from a table. A group of
inputs shares a scale. `Format` describes a kind completely, so methods, files, sizes, training and the
reference kernels need no knowledge of its subclasses. A new kind is one subclass with the decorator
`register`:

- an even grid sets `even = True` and, with `symmetric = False`, stores a zero point for each group, or with
  `affine = True` a float minimum;
- a fixed table derives from `Table`, and its `fixed` returns the units;
- a learned table, which is stored, derives from `Table` and sets `learned = True`.

`encode_scale` and `decode_scale` define how scales are stored. A format without native kernels (`native =
False`, the default) is computed by the plain-torch reference. Native kernels read even grids of 2 to 8 bits
and tables of 16 values, with the scales of `Format`. Recipe names come from `BASES` and `from_name`.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Mapping
from dataclasses import asdict, dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any, ClassVar, TypeVar

from qcore.base.errors import InputError
from qcore.base.extensions import ExtensibleRegistry

if TYPE_CHECKING:
    import torch

SCALES_PER_BLOCK = 256
LARGEST_GROUP = 1 << 20  # inputs; more than any row has
SMALLEST_GROUP = 8  # eight codes of b bits fill exactly b bytes, so every group starts at a byte
EIGHT = 8
DEFAULT_GROUP = 64


@dataclass(frozen=True)
class Base:
    """The first part of recipe names: `words` describe it to users; the group size is the default of names
    without one (None: one group per row)."""

    words: str
    group_size: int | None = DEFAULT_GROUP


@dataclass(frozen=True)
class Family:
    """Formats that the pages group together: a `title`, the `color` of the marks, and one line of `help`."""

    title: str
    color: str
    help: str


OTHER = Family("other formats", "#5f9ea8", "Formats that an extension has registered.")


@dataclass(frozen=True)
class Format(ABC):
    """The base class of all formats: frozen dataclasses with the field `group_size` and, if scales can be
    quantized again, `double_quant`.

    `bits` is the width of a code, `levels` the number of codes. An `affine` grid has a float minimum per
    group in place of a zero point:  w ≈ scale · code + minimum. The scales of a `signed` format may be
    negative.
    """

    TYPE: ClassVar[str]  # the kind's name in records, set by `register`
    BASES: ClassVar[dict[str, Base]] = {}
    EXAMPLES: ClassVar[tuple[str, ...]] = ()  # recipe names to offer in lists
    FAMILY: ClassVar[Family] = OTHER
    OPTIONS: ClassVar[tuple[str, ...]] = ()  # those of "sym", "asym", "dq" that names may contain

    if TYPE_CHECKING:  # fields, class attributes or properties of each kind

        @property
        def bits(self) -> int: ...
        @property
        def group_size(self) -> int | None: ...
        @property
        def even(self) -> bool: ...
        @property
        def symmetric(self) -> bool: ...
        @property
        def double_quant(self) -> bool: ...
        @property
        def learned(self) -> bool: ...
        @property
        def native(self) -> bool: ...
        @property
        def affine(self) -> bool: ...
        @property
        def signed(self) -> bool: ...
    else:
        double_quant = learned = native = affine = signed = False

    @property
    def levels(self) -> int:
        """Number of codes."""
        return 1 << self.bits

    @property
    def lowest(self) -> int:
        """The smallest code in use. The scale's sign makes both ends of a signed grid useful; another
        symmetric grid leaves code 0 out."""
        return 1 if self.even and self.symmetric and not self.signed else 0

    @property
    def has_zero_points(self) -> bool:
        """Whether each group stores an integer zero point."""
        return not self.symmetric and not self.affine

    @property
    def highest_minimum(self) -> float:
        """The upper limit of the minimums that an affine format can store."""
        return math.inf

    @property
    @abstractmethod
    def label(self) -> str:
        """A short name, such as "int4-g64"; the recipe's name where possible."""

    @property
    def fixed(self) -> torch.Tensor | None:
        """The unit (levels,), float32, of each code for formats with a fixed table; None for others."""
        return None

    def fixed_on(self, device: torch.device) -> torch.Tensor:
        """Return `fixed` on `device`, which is copied there once and shared: do not change it. Raise
        `ValueError` for a format without a fixed table."""
        return _fixed_on(self, device)

    @property
    def scaled(self) -> bool:
        """Whether each group has a scale."""
        return True

    @property
    def reach(self) -> float:
        """The largest magnitude of a fixed table's units, which is a group's largest weight divided by its
        scale."""
        return 1.0

    @property
    def rounds_for_stored_scale(self) -> bool:
        """Whether rounding to nearest chooses codes for the stored scale, at no cost, rather than for the
        exact one, as the definitions of nf4 and fp4 demand."""
        return True

    @property
    def grid(self) -> str:
        """ "even", "fixed" or "learned"; methods declare the grids that they support."""
        return "even" if self.even else "learned" if self.learned else "fixed"

    @property
    def method(self) -> str:
        """The default method, which chooses codes from the weights alone."""
        return "kmeans" if self.learned else "rtn"

    # -- names -------------------------------------------------------------------------------------------

    @classmethod
    def from_name(cls, base: str, group_size: int | None, options: Collection[str]) -> Format:
        """Return the format of a recipe name with a base of `BASES` and some of `OPTIONS`. Raise `ValueError`
        for a contradiction. A format without `BASES` has no names, and leaves this as it is."""
        raise ValueError(f"{cls.__name__} has no recipe names")

    # -- scales ------------------------------------------------------------------------------------------

    def encode_scale(self, scale: torch.Tensor) -> dict[str, torch.Tensor]:
        """Return the stored parts ("scale", or "scale_codes" and "scale_range") of float32 scales (N, G).
        Raise `InputError` for scales that cannot be stored."""
        from qcore.formats.scales import half, quantize

        if self.double_quant:
            codes, ranges = quantize(scale)
            return {"scale_codes": codes, "scale_range": ranges}
        return {"scale": half(scale)}

    def decode_scale(
        self, parts: Mapping[str, torch.Tensor], rows: slice | torch.Tensor = slice(None)
    ) -> torch.Tensor:
        """Return the scales (N, G), float32, from their stored `parts`; with `rows`, of these rows only."""
        from qcore.formats.scales import dequantize

        if self.double_quant:
            return dequantize(parts["scale_codes"], parts["scale_range"])[rows]
        return parts["scale"][rows].float()

    def scale_layout(self, rows: int, groups: int) -> dict[str, tuple[str, tuple[int, ...]]]:
        """Return {part: (dtype, shape)} of the result of `encode_scale` for (rows, groups) scales."""
        if self.double_quant:
            blocks = -(-rows * groups // SCALES_PER_BLOCK)
            return {"scale_codes": ("uint8", (rows, groups)), "scale_range": ("float32", (blocks, 2))}
        return {"scale": ("float16", (rows, groups))}

    def encode_minimum(self, minimum: torch.Tensor) -> dict[str, torch.Tensor]:
        """Return the stored parts ("minimum", and "min_codes" if minimums are quantized) of the float32
        minimums (N, G) of an affine format. Raise `InputError` for minimums that cannot be stored."""
        from qcore.formats.scales import half

        return {"minimum": half(minimum)}

    def decode_minimum(
        self, parts: Mapping[str, torch.Tensor], rows: slice | torch.Tensor = slice(None)
    ) -> torch.Tensor:
        """Return the minimums (N, G), float32, of an affine format from their stored `parts`; with `rows`, of
        these rows only."""
        return parts["minimum"][rows].float()

    def minimum_layout(self, rows: int, groups: int) -> dict[str, tuple[str, tuple[int, ...]]]:
        """Return {part: (dtype, shape)} of the result of `encode_minimum` for (rows, groups) minimums."""
        return {"minimum": ("float16", (rows, groups))}

    # -- shapes ------------------------------------------------------------------------------------------

    def for_columns(self, columns: int) -> Format:
        """Return the format for a weight of `columns` inputs: this one, or the one to use in its place if it
        cannot store rows of this length."""
        return self

    # -- sizes -------------------------------------------------------------------------------------------

    def groups(self, columns: int) -> int:
        """Return G, the number of groups in a row of `columns` inputs."""
        return group_count(columns, self.group_size)

    def layout(self, rows: int, columns: int) -> dict[str, tuple[str, tuple[int, ...]]]:
        """Return {part: (dtype, shape)} of all stored parts of a weight of `rows` outputs and `columns`
        inputs. A fixed table is part of the format's definition and is not stored."""
        groups = self.groups(columns)
        parts: dict[str, tuple[str, tuple[int, ...]]] = {
            "codes": ("uint8", (rows, packed_width(columns, self.bits)))
        }
        scales = self.scale_layout(rows, groups) if self.scaled else {}
        if "scale" in scales:
            parts["scale"] = scales.pop("scale")
        if self.has_zero_points:
            parts["zero_point"] = ("uint8", (packed_width(rows * groups, self.bits),))
        if self.learned:
            parts["codebook"] = ("float16", (self.levels,) if self.group_size else (rows, self.levels))
        return parts | scales | (self.minimum_layout(rows, groups) if self.affine else {})

    def nbytes(self, rows: int, columns: int) -> int:
        """Return the stored bytes of a weight, equal to `QuantizedTensor.nbytes`."""
        return sum(math.prod(shape) * WIDTHS[dtype] for dtype, shape in self.layout(rows, columns).values())

    # -- records -----------------------------------------------------------------------------------------

    def to_dict(self) -> dict[str, Any]:
        """Return JSON-ready fields with the kind's name as "type"; `from_dict` is the inverse."""
        return {"type": self.TYPE, **asdict(self)}


@dataclass(frozen=True)
class Table(Format):
    """The base of formats whose codes are indices into a table."""

    even: ClassVar[bool] = False
    symmetric: ClassVar[bool] = True


WIDTHS = {"uint8": 1, "float16": 2, "bfloat16": 2, "float32": 4}  # bytes
KINDS: ExtensibleRegistry[type[Format]] = ExtensibleRegistry("format")
F = TypeVar("F", bound=type[Format])


def register(name: str) -> Callable[[F], F]:
    """Return a decorator that enters a subclass of `Format` as the kind called `name`. Raise `ValueError` if
    the name, or one of its bases in recipe names, is taken."""

    def enter(kind: F) -> F:
        for base in kind.BASES:
            if any(base in other.BASES for other in KINDS.known()):
                raise ValueError(f"names of recipes begin with {base!r} already")
        kind.TYPE = name
        KINDS.register(name)(kind)
        return kind

    return enter


def from_dict(record: dict[str, Any]) -> Format:
    """Rebuild a format from `Format.to_dict`. Raise `InputError` for a kind that is not known here,
    `TypeError` or `ValueError` for wrong fields."""
    fields = dict(record)
    name = fields.pop("type")
    if name not in KINDS:
        raise InputError(
            f"The format {name!r} is unknown. If an extension defines it, name it in QCORE_EXTENSIONS."
        )
    return KINDS[name](**fields)


def bases() -> dict[str, type[Format]]:
    """Return the kind of each base of recipe names, such as "int4" and "nf4"."""
    return {base: kind for kind in KINDS.values() for base in kind.BASES}


@lru_cache(maxsize=64)
def _fixed_on(format: Format, device: torch.device) -> torch.Tensor:
    import torch

    if format.fixed is None:
        raise ValueError(f"{format.label} has no fixed table")
    with torch.inference_mode(False):  # usable with gradients later
        return format.fixed.to(device)


def group_count(columns: int, group_size: int | None) -> int:
    """Return G, the number of groups in a row of `columns` inputs."""
    return 1 if group_size is None else -(-columns // group_size)


def packed_width(count: int, bits: int) -> int:
    """Return the number of bytes of `count` codes of `bits` bits."""
    return -(-count // EIGHT) * bits


def check_group_size(group_size: int | None) -> None:
    """Raise `ValueError` unless `group_size` is None (per channel) or a positive multiple of 8."""
    if group_size is None:
        return
    if not SMALLEST_GROUP <= group_size <= LARGEST_GROUP or group_size % SMALLEST_GROUP:
        raise ValueError(
            f"group_size is {group_size}, but it must be a positive multiple of {SMALLEST_GROUP}, such as "
            "32, 64 or 128"
        )


def check_double_quant(format: Format) -> None:
    """Raise `ValueError` for double quantization of per-channel scales."""
    if format.double_quant and format.group_size is None:
        raise ValueError(
            "double_quant needs a group_size: per-channel scales are too few to be worth quantizing"
        )
