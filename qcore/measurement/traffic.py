"""How many bytes of weights one step of decoding has to read, which is what bounds its speed on a processor.

Everything that is stored is read once a token, but for two things: of an embedding only the token's own row
(unless the output head is the same tensor, which multiplies by all of it), and of a mixture of experts only
those that the token is sent to.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Protocol

from torch import nn

from qcore.layers.modules import QuantEmbedding, StoredEmbedding

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_EMBEDDINGS = (nn.Embedding, QuantEmbedding, StoredEmbedding)


class Stored(Protocol):
    """A tensor and the bytes that it is stored in: a ledger's row, or what a plan expects."""

    @property
    def name(self) -> str: ...
    @property
    def shape(self) -> tuple[int, ...]: ...
    @property
    def bytes_after(self) -> int: ...


def bytes_a_token(model: PreTrainedModel, rows: Sequence[Stored]) -> int:
    """Bytes of weights that a step reads for one sequence, from the ledger `rows` of `model`. The key-value
    cache is not in it."""
    head = _name_of(model, model.get_output_embeddings())
    tied = any(row.name == f"{head}.weight" and not row.bytes_after for row in rows)
    whole = f"{_name_of(model, model.get_input_embeddings())}.weight" if tied else None
    return round(sum(row.bytes_after * (1.0 if row.name == whole else _share(model, row)) for row in rows))


def _share(model: PreTrainedModel, row: Stored) -> float:
    """The part of a tensor that one token needs."""
    if len(row.shape) == 3 and (
        taken := getattr(model.config.get_text_config(), "num_experts_per_tok", None)
    ):
        return min(1.0, taken / row.shape[0])
    try:
        module = model.get_submodule(row.name.rpartition(".")[0])
    except AttributeError:  # a module that a recipe took apart; none of those is an embedding
        return 1.0
    return 1 / row.shape[0] if isinstance(module, _EMBEDDINGS) and len(row.shape) == 2 else 1.0


def _name_of(model: nn.Module, module: nn.Module | None) -> str | None:
    return (
        next((name for name, each in model.named_modules() if each is module), None)
        if module is not None
        else None
    )
