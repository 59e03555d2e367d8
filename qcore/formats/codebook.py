"""Non-uniform formats: a 4-bit code is an index into a table of 16 values.

    w ≈ scale · codebook[code]

- `nf4` and `fp4` (QLoRA, arXiv 2305.14314): a fixed table on [−1, 1]; the scale is the group's largest
  magnitude. `nf4` puts its values where a normal distribution has equal mass, `fp4` is a 2-bit exponent and
  1-bit mantissa float.
- `iq4nl` (the types IQ4_NL and IQ4_XS of llama.cpp): a fixed table of integers, −127 … 113. Scales may be
  negative, so that the longer side of the table lies where the group needs it.
- `kmeans4` (non-uniform per channel, as in SqueezeLLM, arXiv 2306.07629): the table is learned. Per channel
  (`group_size=None`), each row has 16 values of its own and no scale. Per group, the matrix has one table and
  each group a scale.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from qcore.formats.kinds import Base, Family, Table, check_double_quant, check_group_size, register
from qcore.formats.signed import GGML_GROUP, check_ggml_group

if TYPE_CHECKING:
    import torch

# Both tables are those of bitsandbytes, in its order of codes, so that codes can be compared one by one.
NF4 = (
    -1.0,
    -0.6961928009986877,
    -0.5250730514526367,
    -0.39491748809814453,
    -0.28444138169288635,
    -0.18477343022823334,
    -0.09105003625154495,
    0.0,
    0.07958029955625534,
    0.16093020141124725,
    0.24611230194568634,
    0.33791524171829224,
    0.44070982933044434,
    0.5626170039176941,
    0.7229568362236023,
    1.0,
)
FP4 = tuple(sign * magnitude / 12 for sign in (1, -1) for magnitude in (0, 0.0625, 8, 12, 4, 6, 2, 3))
# The table of ggml for its types IQ4_NL and IQ4_XS, in units of 1/127 of the range.
IQ4NL = (-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113)
FIXED = {"nf4": NF4, "fp4": FP4, "iq4nl": IQ4NL}
ENTRIES = 16


@register("codebook")
@dataclass(frozen=True)
class Codebook(Table):
    """A 4-bit table look-up of one `kind`: "nf4", "fp4", "iq4nl" or "kmeans4". `double_quant` stores the
    scales in 8 bits."""

    BASES: ClassVar[dict[str, Base]] = {
        "nf4": Base(
            "a table of 16 values with equal mass under a normal distribution, one scale per group of inputs"
        ),
        "fp4": Base("a 4-bit float as a table of 16 values, one scale per group of inputs"),
        "kmeans4": Base("a table of 16 values per channel, learned by k-means", None),
        "iq4nl": Base(
            "the table of 16 integers of llama.cpp, one signed scale per group of inputs", GGML_GROUP
        ),
        "gguf-iq4_nl": Base(
            "a table of 16 integers, one signed scale per 32 inputs: the type IQ4_NL of llama.cpp", GGML_GROUP
        ),
    }
    EXAMPLES: ClassVar[tuple[str, ...]] = ("gguf-iq4_nl",)
    FAMILY: ClassVar[Family] = Family(
        "tables of values",
        "#9161d4",
        "16 values that are not evenly spaced: fixed (nf4, fp4, iq4nl) or learned from weights (kmeans4).",
    )
    OPTIONS: ClassVar[tuple[str, ...]] = ("dq",)

    kind: str
    group_size: int | None
    double_quant: bool = False
    bits: ClassVar[int] = 4
    native: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if self.kind not in (*FIXED, "kmeans4"):
            raise ValueError(f"kind is {self.kind!r}, but a codebook is nf4, fp4, iq4nl or kmeans4")
        check_group_size(self.group_size)
        check_double_quant(self)

    @classmethod
    def from_name(cls, base: str, group_size: int | None, options: Collection[str]) -> Codebook:
        """Return the format: the kind is the base. Raise `ValueError` for another group size than that of a
        GGUF type."""
        if base == "gguf-iq4_nl":
            check_ggml_group(base, group_size, GGML_GROUP)
            base = "iq4nl"
        return cls(base, group_size, double_quant="dq" in options)

    @property
    def learned(self) -> bool:
        """Whether the table is learned from the weights, and stored."""
        return self.kind not in FIXED

    @property
    def fixed(self) -> torch.Tensor | None:
        """The table (16,) fp32 of a fixed kind, None for a learned one."""
        import torch  # imported here: recipe names must be parsed without torch

        return torch.tensor(FIXED[self.kind], dtype=torch.float32) if self.kind in FIXED else None

    @property
    def reach(self) -> float:
        """The largest magnitude in a fixed table."""
        return float(max(map(abs, FIXED.get(self.kind, (1.0,)))))

    @property
    def signed(self) -> bool:
        """Whether a scale may be negative: that of iq4nl, whose table is not symmetric."""
        return self.kind == "iq4nl" and not self.double_quant

    @property
    def rounds_for_stored_scale(self) -> bool:
        """False for nf4 and fp4: QLoRA chooses codes for the exact scale."""
        return self.kind == "iq4nl"

    @property
    def scaled(self) -> bool:
        """Per-channel learned tables need no scale."""
        return self.group_size is not None or not self.learned

    @property
    def label(self) -> str:
        """A short name, such as "nf4-g64"."""
        size = "" if self.group_size is None else f"-g{self.group_size}"
        return f"{self.kind}{size}{'-dq' * self.double_quant}"
