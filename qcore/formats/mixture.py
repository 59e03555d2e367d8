"""A mixture in place of a format: the type of each tensor in the files that llama.cpp calls Q4_K_M and the
like.

Some tensors hurt more than others when they are quantized, so llama.cpp stores them in more bits: values and
down projections of the first and last blocks and of every third one between, and the output head. The rule
depends on a tensor's role, the block, the number of blocks, how many query heads share a key head, and the
number of experts. Rows that are not whole super-blocks get another type, as for a single K-quant
(`KQuant.for_columns`).

The rules are those of llama.cpp's `llama-quant.cpp`; the test compares them with files that it wrote.
"""

from __future__ import annotations

from dataclasses import dataclass

from qcore.formats.k_quants import KQuant
from qcore.formats.kinds import Format
from qcore.formats.uniform import Uniform

_Q8_0 = Uniform(8, 32, True)
_LARGE = 80  # blocks of a model of 70 billion weights, whose values are small and get more bits
_MIXTRAL = 8  # experts of the models for which attention gets more bits
SIZES = {  # name: (bits of most tensors, what llama.cpp calls the file)
    "q2_k_s": (2, "Q2_K_S"),
    "q2_k_m": (2, "Q2_K"),
    "q3_k_s": (3, "Q3_K_S"),
    "q3_k_m": (3, "Q3_K_M"),
    "q3_k_l": (3, "Q3_K_L"),
    "q4_k_s": (4, "Q4_K_S"),
    "q4_k_m": (4, "Q4_K_M"),
    "q5_k_s": (5, "Q5_K_S"),
    "q5_k_m": (5, "Q5_K_M"),
}
PREFIX = "gguf-"


@dataclass(frozen=True)
class Place:
    """Where a weight stands: its `role`, named as in GGUF files ("attn_q", "attn_k", "attn_v", "attn_qkv",
    "attn_output", "ffn_gate", "ffn_up", "ffn_down", "token_embd", "output", or "other"), its `block` among
    `blocks`, the number of query heads per key head, and the number of experts (0: no mixture of experts).
    `tied`: the embedding is the output head as well."""

    role: str
    block: int = 0
    blocks: int = 1
    sharing: int = 1
    experts: int = 0
    tied: bool = False


@dataclass(frozen=True)
class Mixture:
    """The mixture called `size`, one of `SIZES`."""

    size: str

    def __post_init__(self) -> None:
        if self.size not in SIZES:
            raise ValueError(f"size is {self.size!r}, but it must be one of {', '.join(SIZES)}")

    @property
    def label(self) -> str:
        """The name of its recipe, such as "gguf-q4_k_m"."""
        return PREFIX + self.size

    @property
    def candidates(self) -> tuple[Format, ...]:
        """The formats that it may choose, for rows of whole super-blocks."""
        return (*(KQuant(bits) for bits in range(self.bits, 7)), _Q8_0)

    @property
    def bits(self) -> int:
        """The bits of the codes of most tensors."""
        return SIZES[self.size][0]

    def format(self, place: Place, columns: int) -> Format:
        """Return the format of the weight at `place` with `columns` inputs."""
        chosen = self._chosen(place)
        return (KQuant(chosen) if chosen < 8 else _Q8_0).for_columns(columns)

    def _chosen(self, place: Place) -> int:
        """Return the bits of the K-quant at `place`, 8 for Q8_0."""
        if place.role == "output" or (place.role == "token_embd" and place.tied):
            return 6
        if place.role in ("attn_v", "attn_qkv"):
            return self._values(place)
        if place.role == "attn_k":
            return 8 if place.experts == _MIXTRAL else self.bits
        if place.role == "attn_output":
            return self._attention_output(place)
        return self._down(place) if place.role == "ffn_down" else self.bits

    def _values(self, place: Place) -> int:
        if place.experts == _MIXTRAL:
            return 8
        bits, shared = self.bits, place.sharing >= 4
        if self.size == "q2_k_m":
            bits = 4 if shared else 3
        elif self.size == "q2_k_s" and shared:
            bits = 4
        elif self.size == "q3_k_m":
            bits = 5 if place.block < 2 else 4
        elif self.size == "q3_k_l" or (self.size == "q4_k_s" and place.block < 4):
            bits = 5
        elif self.size in ("q4_k_m", "q5_k_m") and _gets_more(place):
            bits = 6
        return 5 if place.blocks == _LARGE and bits in (3, 4) else bits

    def _attention_output(self, place: Place) -> int:
        if place.experts == _MIXTRAL:
            return 5 if self.size in ("q2_k_m", "q3_k_s", "q3_k_m", "q4_k_s", "q4_k_m") else self.bits
        return {"q2_k_m": 3, "q3_k_m": 4, "q3_k_l": 5}.get(self.size, self.bits)

    def _down(self, place: Place) -> int:
        first = place.block < place.blocks // 8
        if self.size in ("q2_k_s", "q4_k_s"):
            return {"q2_k_s": 4, "q4_k_s": 5}[self.size] if first else self.bits
        if self.size == "q3_k_m":
            return 5 if place.block < place.blocks // 16 else 4
        if self.size in ("q4_k_m", "q5_k_m") and _gets_more(place):
            return 6
        return {"q2_k_m": 3, "q3_k_l": 5}.get(self.size, self.bits)


def _gets_more(place: Place) -> bool:
    """Return whether the block is among the first or last eighth, or every third one between."""
    first, last = place.blocks // 8, 7 * place.blocks // 8
    return place.block < first or place.block >= last or (place.block - first) % 3 == 2
