"""Read the native description of a model (`description.py`) from its own modules and config, by the row of
its family.

Every number is asked of the modules or of the config. `describe` raises `Unsupported` with one sentence for
a part that the decoder does not know.
"""

import re
from collections.abc import Iterator
from dataclasses import replace
from typing import Any, cast

import torch
from torch import nn

from qcore.layers.modules import QuantEmbedding, QuantizedModule, QuantLinear
from qcore.layers.text_part import output_head
from qcore.runtime import mixtures
from qcore.runtime.attentions import attention_of, held_of
from qcore.runtime.description import (
    Block,
    Description,
    FeedForward,
    HeldHeads,
    Norm,
    Rotation,
    TokenPart,
    Unsupported,
    small_tensors,
)
from qcore.runtime.families import FAMILIES, Family
from qcore.runtime.mixtures import Experts
from qcore.runtime.parts import chosen, kind_of, norm_of, rows_of
from qcore.runtime.structures import FUNCTIONS

# those whose angles depend on the position alone, or also on whether a call goes beyond a fixed position
ROPE_TYPES = ("default", "linear", "llama3", "yarn", "longrope", "proportional")


def stack_of(model: Any) -> Any:
    """Return the part of a model that the native step replaces: the layers of its text model with embedding
    and last norm."""
    inner = getattr(model, model.base_model_prefix, None)  # much faster than asking each token
    return inner if type(inner).__name__ in FAMILIES else model.get_decoder()


def ends_of(model: Any) -> tuple[Any, Any]:
    """Return the embedding and the head of a model; None for a head that it does not have."""
    return model.get_input_embeddings(), output_head(model)


def family_of(model: Any) -> Family | None:
    """Return how `model` names its parts; None for an architecture without a row."""
    return FAMILIES.get(type(stack_of(model)).__name__) if hasattr(model, "get_decoder") else None


def held_heads(model: nn.Module) -> list[HeldHeads]:
    """Return what each layer of a model keeps; cheap, because every new cache asks."""
    family, config = _row(model), _config(model)
    return [
        held_of(family, config, getattr(layer, family.attention), index)
        for index, layer in enumerate(_layers(model, family))
    ]


def describe(model: nn.Module) -> Description:
    """Read `model`. Raise `Unsupported` for a part that the decoder does not know."""
    family, config, stack = _row(model), _config(model), stack_of(model)
    rotary = getattr(stack, "rotary_emb", None)
    rotations = [] if rotary is None else list(_rotations(config))
    layers = _layers(model, family)
    blocks = [_block(family, stack, each, index, rotations) for index, each in enumerate(layers)]
    embedding, head = ends_of(model)
    positions = None if family.positions is None else getattr(stack, family.positions)
    token_rows = None if family.token is None else getattr(stack, family.token.rows, None)
    for name, value, meaning in family.needs:
        if getattr(config, name) != value:
            raise Unsupported(f"The decoder does not know {meaning}.")
    _check_tables(head, *(each for each in (embedding, positions, token_rows) if each is not None))
    if embedding.embedding_dim != config.hidden_size:
        raise Unsupported("The decoder does not know embeddings of another width than the layers'.")
    token_scale = float(getattr(token_rows, "embed_scale", 1.0))
    found = Description(
        embedding=embedding,
        head=head,
        positions=positions,
        position_offset=int(getattr(positions, "offset", 0)),
        skips_padding=family.skips_padding,
        token_rows=token_rows,
        token_scale=token_scale,
        embedding_scale=float(getattr(embedding, "embed_scale", 1.0)),
        input_scale=_number(config, family.input_scale),
        windows={kind_of(config, index): block.attention.window for index, block in enumerate(blocks)},
        logits_scale=_number(config, family.logits_scale) / _number(config, family.logits_divisor),
        logits_cap=_number(config, family.logits_cap, 0.0),
        final_norm=norm_of(family, getattr(stack, family.final_norm)),
        blocks=blocks,
        rotary=rotary,
        rotations=rotations,
        interleaved=chosen(config, family.interleaved),
    )
    if not all(map(_plain, small_tensors(found))):
        raise Unsupported(
            "The decoder computes in float32 on the CPU, and this model has parameters "
            "elsewhere or in another type."
        )
    return found


def _row(model: nn.Module) -> Family:
    family = family_of(model)
    if family is None:
        known = ", ".join(re.sub("(Text)?(Model|Decoder)$", "", name) for name in FAMILIES)
        raise Unsupported(f"The decoder knows {known}, and this is {type(model).__name__}.")
    return family


def _config(model: nn.Module) -> Any:
    return stack_of(model).config


def _layers(model: nn.Module, family: Family) -> Any:
    return getattr(stack_of(model), family.layers)


def _number(config: Any, name: str | None, otherwise: Any = 1.0) -> float:
    """Return an attribute of the config; `otherwise` without a name or a value."""
    value = None if name is None else getattr(config, name)
    return float(otherwise if value is None else value)


def _rotations(config: Any) -> Iterator[Rotation]:
    """Return one per kind of layers, or one for all layers alike."""
    parameters = getattr(config, "rope_parameters", None) or {}
    by_kind = bool(parameters) and all(isinstance(value, dict) for value in parameters.values())
    used = {kind: one for kind, one in parameters.items() if kind in config.layer_types} if by_kind else None
    for kind, one in [(None, parameters)] if used is None else used.items():
        name = one.get("rope_type", "default")
        if name not in ROPE_TYPES:
            raise Unsupported(f"The decoder does not know the position encoding {name!r}.")
        length = one.get("original_max_position_embeddings") or 1
        growth = one.get("llama_4_scaling_beta") or 0.0
        yield Rotation(kind, length if name == "longrope" else None, growth, length)


def _block(family: Family, stack: Any, block: Any, index: int, rotations: list[Rotation]) -> Block:
    def part(names: str | tuple[str, ...] | None) -> Norm | None:
        all_names = () if names is None else (names,) if isinstance(names, str) else names
        present = (found for name in all_names if (found := getattr(block, name, None)) is not None)
        return norm_of(family, next(present, None))

    config = stack.config
    parallel = chosen(config, family.parallel)
    before, before_feed_forward = part(family.before_attention), part(family.before_feed_forward)
    return Block(
        before_attention=before,
        after_attention=part(family.after_attention),
        before_feed_forward=before if parallel and before_feed_forward is None else before_feed_forward,
        after_feed_forward=part(family.after_feed_forward),
        parallel=parallel,
        residual=_number(config, family.residual_scale),
        attention=attention_of(family, config, getattr(block, family.attention), index, rotations),
        feed_forward=_feed_forward(
            family, block if family.feed_forward is None else getattr(block, family.feed_forward)
        ),
        beside=_beside(family, block),
        after_dense=None if family.beside is None else part(family.beside.after_dense),
        after_beside=None if family.beside is None else part(family.beside.after_experts),
        token=_token_part(family, stack, block, index),
        scale=None if family.block_scale is None else getattr(block, family.block_scale),
    )


def _beside(family: Family, block: Any) -> Experts | None:
    names = family.beside
    if names is None or getattr(block, names.experts, None) is None:
        return None
    found = mixtures.describe_parts(
        getattr(block, names.experts), getattr(block, names.router), getattr(block, names.before)
    )
    if isinstance(found, str):
        raise Unsupported(found)
    return found


def _token_part(family: Family, stack: Any, block: Any, index: int) -> TokenPart | None:
    names = family.token
    if names is None or getattr(stack, names.rows, None) is None:
        return None
    count, mix = len(getattr(stack, family.layers)), getattr(stack, names.mix)
    rows = rows_of(names.mix, mix, index, count)
    if (rows.last - rows.first) % 8:
        raise Unsupported("The decoder needs per-layer embeddings of a multiple of 8 dimensions.")
    norm = norm_of(family, getattr(stack, names.norm))
    assert norm is not None
    return TokenPart(
        function=_function(getattr(block, names.function)),
        gate=rows_of(names.gate, getattr(block, names.gate)),
        mix=rows,
        down=rows_of(names.down, getattr(block, names.down)),
        first=rows.first,
        # norm(scale · x) is norm(x) with another epsilon
        norm=replace(norm, epsilon=norm.epsilon / getattr(stack, names.mix_scale) ** 2),
        after=norm_of(family, getattr(block, names.after)),
        scale=getattr(stack, names.scale),
    )


def _feed_forward(family: Family, module: Any) -> FeedForward | Experts:
    if mixtures.is_mixture(module):
        found = mixtures.describe(module)
        if isinstance(found, str):
            raise Unsupported(found)
        return found
    function = _function(getattr(module, family.function))
    gate, up = getattr(module, family.gate), family.up and getattr(module, family.up)
    parts = 2 if up is gate else 1
    return FeedForward(
        function,
        rows_of(family.gate, gate, 0, parts),
        None if up is None else rows_of(str(family.up), up, parts - 1, parts),
        rows_of(family.down, getattr(module, family.down)),
    )


def _function(module: Any) -> int:
    name = type(module).__name__
    if name not in FUNCTIONS:
        raise Unsupported(f"The decoder does not know the activation function {name}.")
    return FUNCTIONS[name]


def _check_tables(head: Any, *embeddings: Any) -> None:
    if head is None:
        raise Unsupported("The decoder needs a head that predicts tokens, and this model has none.")
    tables: list[tuple[Any, Any]] = [(head, (nn.Linear, QuantLinear))]
    tables += [(module, (nn.Embedding, QuantEmbedding)) for module in embeddings]
    for module, kinds in tables:
        if isinstance(module, QuantizedModule):
            if module.reason_for_reference():
                raise Unsupported("The decoder needs a head and an embedding that native kernels can hold.")
        elif not isinstance(module, kinds) or not _plain(cast(Any, module).weight):
            raise Unsupported(
                "The decoder needs a float32 or quantized head and embedding, and this model "
                f"has {type(module).__name__}."
            )


def _plain(tensor: torch.Tensor) -> bool:
    return tensor.dtype == torch.float32 and tensor.device.type == "cpu" and tensor.is_contiguous()
