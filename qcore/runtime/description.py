"""A model as the native step describes it: what each block computes and in which order. `blocks.py` reads it
from a model, `weights.py` hands it to the native code."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch

from qcore.runtime.mixtures import Experts


class Unsupported(Exception):
    """One sentence on why the native step cannot run a model."""


@dataclass(frozen=True)
class Norm:
    """Weights (width,) or (heads, width); None for weights of 1 and no bias."""

    kind: str
    weight: torch.Tensor | None
    bias: torch.Tensor | None
    epsilon: float
    offset: float
    each: tuple[torch.Tensor, ...] = ()  # (width,) of each head, in place of `weight`


@dataclass(frozen=True)
class Rows:
    """The rows `first` … `last` − 1 of a projection's weight and bias."""

    module: Any
    first: int
    last: int


@dataclass(frozen=True)
class Latent:
    """Attention over latents: see decoder.h.

    `queries`, after `query_norm`, turns the first input into queries; None if that is the queries. The rows
    of the module `up` are the matrices of keys and values."""

    rank: int
    plain: int
    rotated: int
    values: int
    norm: Norm | None
    query_norm: Norm | None
    queries: Rows | None
    up: Any


@dataclass(frozen=True)
class Attention:
    heads: int
    kv_heads: int
    head_size: int
    value_size: int
    inputs: list[Rows]
    queries: tuple[int, int]  # where the heads lie: of the first, and from one key-value head to the next
    keys: tuple[int, int]
    values: tuple[int, int]
    query_norm: Norm | None
    key_norm: Norm | None
    value_norm: Norm | None
    norm_last: bool
    rotation: int | None  # the index in `Description.rotations`; None without rotary positions
    scale: float
    cap: float
    window: int
    source: int  # the layer whose keys and values are read
    sinks: torch.Tensor | None  # (heads,): scores of a position without a value
    output: Rows
    latent: Latent | None


@dataclass(frozen=True)
class FeedForward:
    function: int
    gate: Rows
    up: Rows | None
    down: Rows


@dataclass(frozen=True)
class TokenPart:
    """What a block adds for the token itself: see decoder.h."""

    function: int
    gate: Rows
    mix: Rows
    down: Rows
    first: int  # of the columns of `Description.token_rows`
    norm: Norm | None
    after: Norm | None
    scale: float


@dataclass(frozen=True)
class Block:
    before_attention: Norm | None
    after_attention: Norm | None
    before_feed_forward: Norm | None
    after_feed_forward: Norm | None
    parallel: bool
    residual: float
    attention: Attention
    feed_forward: FeedForward | Experts
    beside: Experts | None  # that read the stream beside a dense feed-forward part
    after_dense: Norm | None  # of the outputs of both
    after_beside: Norm | None
    token: TokenPart | None
    scale: torch.Tensor | None  # (1,)


@dataclass(frozen=True)
class Rotation:
    """Rotary positions of one kind of layers: the module's argument for it (None without one), and how many
    positions a call may have before all of its angles change (None: they do not). With `growth`, queries are
    multiplied by 1 + growth · log(1 + floor(position / period))."""

    kind: str | None
    short: int | None
    growth: float = 0.0
    period: int = 1


@dataclass(frozen=True)
class Description:
    embedding: Any
    head: Any
    positions: Any  # an embedding of learned positions, or None
    position_offset: int  # of the row of position 0
    skips_padding: bool  # positions never count padding
    token_rows: Any  # an embedding with the parts of all blocks for a token, or None
    embedding_scale: float  # of the rows of the embedding
    token_scale: float  # of the rows of `token_rows`
    input_scale: float  # of the inputs of the first block
    windows: dict[str | None, int]  # of each kind of layers; None for a model without kinds
    logits_scale: float
    logits_cap: float
    final_norm: Norm | None
    blocks: list[Block]
    rotary: Any  # the module that computes rotary positions
    rotations: list[Rotation]
    interleaved: bool


@dataclass(frozen=True)
class HeldHeads:
    """What a layer keeps of each token. `source`: the layer whose keys and values it reads; another than
    itself keeps none."""

    heads: int
    size: int
    value_size: int
    window: int
    source: int
    copies: int  # equal heads that the modules hand over for each
    is_latent: bool  # modules hand over the latent and the rotated part of keys


def projections(block: Block) -> list[Rows]:
    """Return all projections of a block but those of experts."""
    attention, part, token = block.attention, block.feed_forward, block.token
    found = [*attention.inputs, attention.output]
    if attention.latent is not None and attention.latent.queries is not None:
        found.append(attention.latent.queries)
    if isinstance(part, FeedForward):
        found += [part.gate, *([part.up] if part.up else []), part.down]
    return found + ([] if token is None else [token.gate, token.mix, token.down])


def small_tensors(found: Description) -> Iterator[torch.Tensor]:
    """Return norms, biases and factors, which the decoder reads in float32."""
    norms, tensors = [found.final_norm], [getattr(found.head, "bias", None)]
    for block in found.blocks:
        attention, token = block.attention, block.token
        norms += [block.before_attention, block.after_attention]
        norms += [block.before_feed_forward, block.after_feed_forward]
        norms += [attention.query_norm, attention.key_norm, attention.value_norm]
        norms += [attention.latent.norm, attention.latent.query_norm] if attention.latent else []
        norms += [block.after_dense, block.after_beside]
        norms += [] if token is None else [token.norm, token.after]
        tensors += [attention.sinks, block.scale, *(rows.module.bias for rows in projections(block))]
    tensors += [part for norm in norms if norm is not None for part in (norm.weight, norm.bias, *norm.each)]
    return (each for each in tensors if each is not None)
