"""What a format is, and the one table of the kinds of formats that there are.

    w ≈ scale · unit(code)

A code is a small integer, and the unit that it stands for is read off an even grid (`code − zero point`) or a
table. A group of inputs shares a scale. `Format` says so much about a kind that whatever works with formats
(methods, files, sizes, training, kernels' fallback) can ask the format instead of knowing its class. A new
kind is one subclass with the decorator `register`:

- an even grid sets `even = True` and, with `symmetric = False`, stores a zero point for each group;
- a fixed table derives from `Table` and returns its units from `fixed`;
- a learned table derives from `Table` and sets `learned = True`: it is stored.

How scales are stored is the format's own matter: `encode_scale` and `decode_scale`. Without native kernels
(`native = False`, the default) a format is computed by the plain-torch reference. They read even grids of 2
to 8 bits and tables of 16 values, with the scales of `Format`. Recipes' names come from `BASES` and
`from_name`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, ClassVar, TypeVar

from qcore.base.errors import InputError
from qcore.base.extensions import ExtensibleRegistry

if TYPE_CHECKING:
    import torch

SCALES_PER_BLOCK = 256
SMALLEST_GROUP = 8  # eight codes of b bits fill exactly b bytes, so every group starts on a byte
EIGHT = 8
DEFAULT_GROUP = 64


@dataclass(frozen=True)
class Base:
    """The first part of recipes' names: `words` for people, and the group size where a name gives none (None:
    one group per row)."""

    words: str
    group_size: int | None = DEFAULT_GROUP


@dataclass(frozen=True)
class Family:
    """Formats that the pages show together: a `title`, the `color` of its marks, and one line of `help`."""

    title: str
    color: str
    help: str


OTHER = Family("other formats", "#5f9ea8", "Formats that an extension has registered.")


@dataclass(frozen=True)
class Format:
    """The base class of all formats, which are frozen dataclasses with the fields `group_size` and, where
    scales can be quantized again, `double_quant`.

    `bits` is the width of a code, `levels` the number of codes, `grouped` inputs share a scale.
    """

    TYPE: ClassVar[str]  # the kind's name in records; `register` sets it
    BASES: ClassVar[dict[str, Base]] = {}
    EXAMPLES: ClassVar[tuple[str, ...]] = ()  # recipes' names worth offering in a list
    FAMILY: ClassVar[Family] = OTHER
    OPTIONS: ClassVar[tuple[str, ...]] = ()  # of "sym", "asym", "dq": which of them names may have

    if TYPE_CHECKING:  # each kind has these as fields, class attributes or properties

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
    else:
        double_quant = learned = native = False

    @property
    def levels(self) -> int:
        """Number of codes."""
        return 1 << self.bits

    @property
    def lowest(self) -> int:
        """The smallest code that is used."""
        return 1 if self.even and self.symmetric else 0

    @property
    def label(self) -> str:
        """A short name, such as "int4-g64"; where it can be, the recipe's."""
        raise NotImplementedError

    @property
    def fixed(self) -> torch.Tensor | None:
        """The unit (levels,), float32, of each code for formats with a fixed table; None for others."""
        return None

    @property
    def scaled(self) -> bool:
        """Whether there is a scale for each group."""
        return True

    @property
    def reach(self) -> float:
        """The largest magnitude of a fixed table's units: a group's largest weight over its scale."""
        return 1.0

    @property
    def rounds_for_stored_scale(self) -> bool:
        """Whether rounding to nearest chooses codes for the scale as stored, which costs nothing, and not for
        the exact one, as nf4 and fp4 are defined."""
        return True

    @property
    def grid(self) -> str:
        """ "even", "fixed" or "learned": what methods can work on."""
        return "even" if self.even else "learned" if self.learned else "fixed"

    @property
    def method(self) -> str:
        """The method that chooses codes where no other is named, from the weights alone."""
        return "kmeans" if self.learned else "rtn"

    # -- names -------------------------------------------------------------------------------------------

    @classmethod
    def from_name(cls, base: str, group_size: int | None, options: Collection[str]) -> Format:
        """Return the format of a recipe's name: one of `BASES`, and those of `OPTIONS` that it has. Raise
        `ValueError` for a contradiction."""
        raise NotImplementedError

    # -- scales ------------------------------------------------------------------------------------------

    def encode_scale(self, scale: torch.Tensor) -> dict[str, torch.Tensor]:
        """Return the stored parts ("scale", or "scale_codes" and "scale_range") of float32 scales (N, G).
        Raise `InputError` for those that cannot be held."""
        from qcore.formats.scales import half, quantize

        if self.double_quant:
            codes, ranges = quantize(scale)
            return {"scale_codes": codes, "scale_range": ranges}
        return {"scale": half(scale)}

    def decode_scale(
        self, parts: Mapping[str, torch.Tensor], rows: slice | torch.Tensor = slice(None)
    ) -> torch.Tensor:
        """Return the scales (N, G), float32, from their stored `parts`, or those of some `rows`."""
        from qcore.formats.scales import dequantize

        if self.double_quant:
            return dequantize(parts["scale_codes"], parts["scale_range"])[rows]
        return parts["scale"][rows].float()

    def scale_layout(self, rows: int, groups: int) -> dict[str, tuple[str, tuple[int, ...]]]:
        """Return {part: (dtype, shape)} of what `encode_scale` returns for (rows, groups) scales."""
        if self.double_quant:
            blocks = -(-rows * groups // SCALES_PER_BLOCK)
            return {"scale_codes": ("uint8", (rows, groups)), "scale_range": ("float32", (blocks, 2))}
        return {"scale": ("float16", (rows, groups))}

    # -- sizes -------------------------------------------------------------------------------------------

    def groups(self, columns: int) -> int:
        """Return G, the number of groups in a row of `columns` inputs."""
        return group_count(columns, self.group_size)

    def layout(self, rows: int, columns: int) -> dict[str, tuple[str, tuple[int, ...]]]:
        """Return {part: (dtype, shape)} of everything that is stored for a weight of `rows` outputs and
        `columns` inputs. A fixed table is part of the format's definition and is not stored."""
        groups = self.groups(columns)
        parts: dict[str, tuple[str, tuple[int, ...]]] = {
            "codes": ("uint8", (rows, packed_width(columns, self.bits)))
        }
        scales = self.scale_layout(rows, groups) if self.scaled else {}
        if "scale" in scales:
            parts["scale"] = scales.pop("scale")
        if not self.symmetric:
            parts["zero_point"] = ("uint8", (packed_width(rows * groups, self.bits),))
        if self.learned:
            parts["codebook"] = ("float16", (self.levels,) if self.group_size else (rows, self.levels))
        return parts | scales

    def nbytes(self, rows: int, columns: int) -> int:
        """Return the stored bytes of a weight: what `QuantizedTensor.nbytes` will be."""
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
    the name, or one of its bases of recipes' names, is taken."""

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
            f"The format {name!r} is not known here. If an extension defines it, name it in QCORE_EXTENSIONS."
        )
    return KINDS[name](**fields)


def bases() -> dict[str, type[Format]]:
    """Return the kind of each base of recipes' names, such as "int4" and "nf4"."""
    return {base: kind for kind in KINDS.values() for base in kind.BASES}


def group_count(columns: int, group_size: int | None) -> int:
    """Return G, the number of groups in a row of `columns` inputs."""
    return 1 if group_size is None else -(-columns // group_size)


def packed_width(count: int, bits: int) -> int:
    """Return the bytes that `count` codes of `bits` bits take."""
    return -(-count // EIGHT) * bits


def check_group_size(group_size: int | None) -> None:
    """Raise `ValueError` unless `group_size` is None (per channel) or a positive multiple of 8."""
    if group_size is not None and (group_size < SMALLEST_GROUP or group_size % SMALLEST_GROUP):
        raise ValueError(
            f"group_size is {group_size}, but it must be a positive multiple of {SMALLEST_GROUP}, such as "
            "32, 64 or 128"
        )


def check_double_quant(format: Format) -> None:
    """Raise `ValueError` for quantized scales where there is one for each row."""
    if format.double_quant and format.group_size is None:
        raise ValueError(
            "double_quant needs a group_size: per-channel scales are too few to be worth quantizing"
        )
