"""Parameters of transformers' models as tensors of a GGUF file.

Names come from the `gguf` package. Three things differ besides names:

    rotary pairs   llama.cpp's `llama` rotates neighbouring rows of queries and keys, transformers rotates the
                   two halves of a head: the rows of each head are interleaved
    norms          Gemma multiplies by 1 + weight; the file holds 1 + weight
    experts        gate and up projections of fused experts are tensors of their own
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from qcore.base.errors import InputError
from qcore.base.registry import did_you_mean

if TYPE_CHECKING:
    import torch

_EXPERTS = re.compile(r"(.+\.mlp)\.experts\.(gate_up_proj|down_proj)")


@dataclass(frozen=True)
class Architecture:
    """How llama.cpp computes a `model_type` of transformers.

    name          llama.cpp's name
    interleaved   whether the file interleaves the rows of queries and keys
    shift         added to the weights of norms
    head          "free" (own or tied), "tied" (never a tensor of its own) or "own" (always one)
    normalized    whether the weights of the chosen experts are divided by their sum
    activations   the activation functions that it stands for
    biases        layers that may have a bias, besides queries, keys and values
    ropes         kinds of rotary scaling
    """

    name: str
    interleaved: bool = False
    shift: float = 0.0
    head: str = "free"
    normalized: bool | None = None
    activations: tuple[str, ...] = ("silu",)
    biases: tuple[str, ...] = ()
    ropes: tuple[str, ...] = ("default", "linear", "yarn")


_GELU = ("gelu_pytorch_tanh", "gelu")
_LLAMA = Architecture(
    "llama",
    interleaved=True,
    normalized=True,
    biases=("o_proj", "gate_proj", "up_proj", "down_proj"),
    ropes=("default", "linear", "yarn", "llama3"),
)
ARCHITECTURES: dict[str, Architecture] = {
    "llama": _LLAMA,
    "mistral": _LLAMA,
    "mixtral": _LLAMA,
    "qwen2": Architecture("qwen2", biases=("lm_head",)),
    "qwen2_moe": Architecture("qwen2moe", head="own", normalized=False),
    "qwen3": Architecture("qwen3"),
    "qwen3_moe": Architecture("qwen3moe", normalized=True),
    "olmoe": Architecture("olmoe", head="own", normalized=False),
    "gemma": Architecture("gemma", shift=1.0, head="tied", activations=_GELU),
    "gemma2": Architecture("gemma2", shift=1.0, head="tied", activations=_GELU),
    "gemma3_text": Architecture("gemma3", shift=1.0, activations=_GELU),
    "phi3": Architecture("phi3", ropes=("default", "longrope")),
    "gpt2": Architecture(
        "gpt2", activations=("gelu_new",), biases=("c_attn", "c_proj", "c_fc", "ln_1", "ln_2", "ln_f")
    ),
}


@dataclass(frozen=True)
class Place:
    """A tensor of the file and the part of a parameter that it holds: rows `start` to `stop` (None: to the
    end) of the matrix, or of each expert's; with `heads`, the rows of each head interleaved; `shift`
    added."""

    name: str
    start: int = 0
    stop: int | None = None
    heads: int | None = None
    shift: float = 0.0

    def pick(self, rows: torch.Tensor) -> torch.Tensor:
        """Return the rows of the tensor in file order, from the `rows` (N, …) of the parameter. The
        rows may be weights or bytes."""
        chosen = rows[self.start : self.stop]
        return chosen if self.heads is None else chosen[interleaved(len(chosen), self.heads)]

    def count(self, rows: int) -> int:
        """Return the number of rows of the tensor, for a matrix of `rows` rows."""
        return len(range(rows)[self.start : self.stop])


def interleaved(rows: int, heads: int) -> torch.Tensor:
    """Return the order (rows,) in which llama.cpp keeps the rows of queries or keys of `heads` heads.

    >>> interleaved(8, 2).tolist()
    [0, 2, 1, 3, 4, 6, 5, 7]
    """
    import torch  # here, so that the command line's help needs no torch

    return torch.arange(rows).view(heads, 2, -1).transpose(1, 2).reshape(-1)


def architecture(model_type: str) -> Architecture:
    """Return llama.cpp's architecture of a `model_type`. Raise `InputError` if it is not known here."""
    if model_type not in ARCHITECTURES:
        near = did_you_mean(model_type, ARCHITECTURES)
        known = ", ".join(ARCHITECTURES)
        raise InputError(
            f"GGUF export does not know the architecture {model_type!r}. {near or f'Known: {known}.'}"
        )
    return ARCHITECTURES[model_type]


class Names:
    """The tensors of the parameters of a model with this transformers `config`."""

    def __init__(self, config: Any):
        import gguf

        self._known, self._config = architecture(config.model_type), config
        key = next(key for key, name in gguf.MODEL_ARCH_NAMES.items() if name == self._known.name)
        self._map = gguf.get_tensor_name_map(key, config.num_hidden_layers)

    def places(self, parameter: str, shape: tuple[int, ...]) -> tuple[Place, ...]:
        """Return the tensors that hold `parameter` of `shape` (matrices as (N, K)). Raise `InputError` if the
        architecture has no place for it."""
        if match := _EXPERTS.fullmatch(parameter):
            base, last = match[1], match[2]
            if last == "down_proj":
                return (Place(self._name(f"{base}.experts.down_proj.weight")),)
            half = shape[-2] // 2
            return (
                Place(self._name(f"{base}.experts.gate_proj.weight"), 0, half),
                Place(self._name(f"{base}.experts.up_proj.weight"), half),
            )
        module, _, last = parameter.rpartition(".")
        own = module.rpartition(".")[2]
        if last == "bias" and own not in ("q_proj", "k_proj", "v_proj", *self._known.biases):
            raise InputError(
                f"llama.cpp's {self._known.name} has no place for the bias {parameter}, so this model "
                "cannot be exported as GGUF."
            )
        name = self._name(parameter)
        if self._known.interleaved and own in ("q_proj", "k_proj"):
            config = self._config
            heads = config.num_attention_heads if own == "q_proj" else config.num_key_value_heads
            return (Place(name, heads=heads),)
        if self._known.shift and len(shape) == 1 and last == "weight":
            return (Place(name, shift=self._known.shift),)
        return (Place(name),)

    def _name(self, parameter: str) -> str:
        name = self._map.get_name(parameter, try_suffixes=(".weight", ".bias"))
        if name is None:
            raise InputError(
                f"llama.cpp's {self._known.name} has no place for {parameter}, so this model cannot be "
                "exported as GGUF."
            )
        return name


def is_always_float32(name: str, dimensions: int) -> bool:
    """Return whether llama.cpp computes with the tensor `name` in float32 only: vectors, norms, routers and
    positions."""
    return (
        dimensions < 2
        or name.endswith("_norm.weight")
        or "ffn_gate_inp" in name
        or name == "position_embd.weight"
    )
