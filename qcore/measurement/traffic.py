"""Bytes of weights read per decode step. They bound the decode speed on a CPU.

Every stored byte is read once per token, with two exceptions. A token reads only its own row of an embedding,
unless the embedding is tied to the output head, which multiplies by the whole matrix. In a mixture of
experts, a token reads only the experts that it is routed to.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Protocol

from torch import nn

from qcore.layers.modules import QuantEmbedding, StoredEmbedding
from qcore.layers.text_part import TextPart, output_head, text_part

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_EMBEDDINGS = (nn.Embedding, QuantEmbedding, StoredEmbedding)


class Stored(Protocol):
    """A tensor and its stored bytes, from a ledger's row or a plan."""

    @property
    def name(self) -> str: ...
    @property
    def shape(self) -> tuple[int, ...]: ...
    @property
    def bytes_after(self) -> int: ...


def bytes_a_token(model: PreTrainedModel, rows: Sequence[Stored]) -> int:
    """Return the bytes of weights that a step reads for one sequence, computed from the ledger `rows` of
    `model`. The key-value cache is not included."""
    head = _name_of(model, output_head(model))
    tied = any(row.name == f"{head}.weight" and not row.bytes_after for row in rows)
    whole = f"{_name_of(model, model.get_input_embeddings())}.weight" if tied else None
    text = text_part(model)
    return round(
        sum(row.bytes_after * (1.0 if row.name == whole else _share(model, text, row)) for row in rows)
    )


def _share(model: PreTrainedModel, text: TextPart, row: Stored) -> float:
    """Return the fraction of a tensor that one token reads."""
    if text.tower_of(row.name):
        return 0.0
    if len(row.shape) == 3 and (
        taken := getattr(model.config.get_text_config(), "num_experts_per_tok", None)
    ):
        return min(1.0, taken / row.shape[0])
    try:
        module = model.get_submodule(row.name.rpartition(".")[0])
    except AttributeError:  # the recipe split this module; embeddings are never split
        return 1.0
    return 1 / row.shape[0] if isinstance(module, _EMBEDDINGS) and len(row.shape) == 2 else 1.0


def _name_of(model: nn.Module, module: nn.Module | None) -> str | None:
    return (
        next((name for name, each in model.named_modules() if each is module), None)
        if module is not None
        else None
    )
