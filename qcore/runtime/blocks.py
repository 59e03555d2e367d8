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
from qcore.runtime.description import (
    Attention,
    Block,
    Description,
    FeedForward,
    HeldHeads,
    Norm,
    Rotation,
    Rows,
    TokenPart,
    Unsupported,
    small_tensors,
)
from qcore.runtime.families import FAMILIES, Family
from qcore.runtime.mixtures import Experts
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
        HeldHeads(
            _kv_heads(config, attention),
            _head_size(attention),
            _window(family, config, index),
            _source(config, index),
            _copies(family, config, attention),
        )
        for index, attention in enumerate(getattr(each, family.attention) for each in _layers(model, family))
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
        windows={_kind(config, index): block.attention.window for index, block in enumerate(blocks)},
        logits_scale=_number(config, family.logits_scale) / _number(config, family.logits_divisor),
        logits_cap=_number(config, family.logits_cap, 0.0),
        final_norm=_norm(family, getattr(stack, family.final_norm)),
        blocks=blocks,
        rotary=rotary,
        rotations=rotations,
        interleaved=family.interleaved,
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


def _window(family: Family, config: Any, index: int) -> int:
    """Return how many tokens this layer's attention sees, the current one included; 0 for no limit."""
    if not family.has_windows or (_kind(config, index) or "sliding_attention") != "sliding_attention":
        return 0
    return getattr(config, "sliding_window", None) or 0


def _kind(config: Any, index: int) -> str | None:
    kinds = getattr(config, "layer_types", None)
    return None if kinds is None else kinds[index]


def _kv_heads(config: Any, attention: Any) -> int:
    if groups := getattr(attention, "num_key_value_groups", None):  # the config may differ per layer
        return config.num_attention_heads // groups
    for holder, name in ((attention, "num_kv_heads"), (config, "num_key_value_heads")):
        if found := getattr(holder, name, None):
            return found
    return config.num_attention_heads


def _copies(family: Family, config: Any, attention: Any) -> int:
    if family.copies_heads is None or not getattr(config, family.copies_heads):
        return 1
    return config.num_attention_heads // _kv_heads(config, attention)


def _source(config: Any, index: int) -> int:
    """Return the layer whose keys and values a layer reads: the last of its kind that says so, or itself."""
    modes = getattr(config, "kv_sharing_modes", None)
    if modes is None or modes[index] != "reuse":
        return index
    kinds = config.layer_types
    return next(
        (other for other in range(index)[::-1] if modes[other] == "store" and kinds[other] == kinds[index]),
        index,
    )


def _head_size(attention: Any) -> int:
    found = getattr(attention, "head_dim", None)
    return attention.head_size if found is None else found


def _norm(family: Family, module: Any) -> Norm | None:
    if module is None:
        return None
    is_torch = isinstance(module, nn.LayerNorm)
    norms = getattr(module, "norms", None)
    if isinstance(norms, nn.ModuleList):  # one per head
        each: list[Any] = list(norms)
        first = _norm(family, each[0])
        assert first is not None
        if any(norm.bias is not None or norm.eps != first.epsilon for norm in each):
            raise Unsupported("The decoder does not know norms of heads that have biases or differ.")
        return replace(first, weight=None, each=tuple(norm.weight for norm in each))
    epsilon = module.eps if hasattr(module, "eps") else module.variance_epsilon
    weight, bias = getattr(module, "weight", None), getattr(module, "bias", None)
    return Norm("layer" if is_torch else family.norm, weight, bias, float(epsilon), family.norm_offset)


def _rows(name: str, module: Any, share: int = 0, of: int = 1) -> Rows:
    """Return the `share`-th part of `of` equal parts of a projection's rows."""
    if not isinstance(module, QuantLinear):
        raise Unsupported(
            f"The decoder needs quantized layers, and {name} of a block is {type(module).__name__}."
        )
    if module.reason_for_reference():
        raise Unsupported(
            "The decoder needs weights that native kernels can hold, such as groups of 32, 64 or 128."
        )
    count = module.out_features // of
    if share and count % 8:
        raise Unsupported(
            f"The decoder needs parts of a multiple of 8 outputs, and those of {name} have {count}."
        )
    return Rows(module, share * count, (share + 1) * count)


def _block(family: Family, stack: Any, block: Any, index: int, rotations: list[Rotation]) -> Block:
    def part(names: str | tuple[str, ...] | None) -> Norm | None:
        all_names = () if names is None else (names,) if isinstance(names, str) else names
        present = (found for name in all_names if (found := getattr(block, name, None)) is not None)
        return _norm(family, next(present, None))

    config = stack.config
    parallel = family.parallel if isinstance(family.parallel, bool) else getattr(config, family.parallel)
    before, before_feed_forward = part(family.before_attention), part(family.before_feed_forward)
    return Block(
        before_attention=before,
        after_attention=part(family.after_attention),
        before_feed_forward=before if parallel and before_feed_forward is None else before_feed_forward,
        after_feed_forward=part(family.after_feed_forward),
        parallel=parallel,
        residual=_number(config, family.residual_scale),
        attention=_attention(family, config, getattr(block, family.attention), index, rotations),
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
    rows = _rows(names.mix, mix, index, count)
    if (rows.last - rows.first) % 8:
        raise Unsupported("The decoder needs per-layer embeddings of a multiple of 8 dimensions.")
    norm = _norm(family, getattr(stack, names.norm))
    assert norm is not None
    return TokenPart(
        function=_function(getattr(block, names.function)),
        gate=_rows(names.gate, getattr(block, names.gate)),
        mix=rows,
        down=_rows(names.down, getattr(block, names.down)),
        first=rows.first,
        # norm(scale · x) is norm(x) with another epsilon
        norm=replace(norm, epsilon=norm.epsilon / getattr(stack, names.mix_scale) ** 2),
        after=_norm(family, getattr(block, names.after)),
        scale=getattr(stack, names.scale),
    )


def _attention(family: Family, config: Any, module: Any, index: int, rotations: list[Rotation]) -> Attention:
    heads, kv_heads, size = config.num_attention_heads, _kv_heads(config, module), _head_size(module)
    if size % 8:
        raise Unsupported(f"The decoder needs heads of a multiple of 8 dimensions, and these have {size}.")
    if not getattr(module, "is_causal", True):
        raise Unsupported("The decoder lets tokens attend to those before them, and this model to all.")
    if getattr(config, "clip_qkv", None) is not None:
        raise Unsupported(
            "The decoder does not limit queries, keys and values, as clip_qkv of this model does."
        )
    group = heads // kv_heads
    if len(family.inputs) == 1 and family.fused_by == "head":
        step = (group + 2) * size
        queries, keys, values = (0, step), (group * size, step), ((group + 1) * size, step)
    else:
        queries, keys = (0, group * size), (heads * size, size)
        values = ((heads + kv_heads) * size, size)
    present = [name for name in family.inputs if getattr(module, name, None) is not None]
    source = _source(config, index)
    if len(family.inputs) > 1 and len(present) != len(family.inputs):
        if present != list(family.inputs[: 1 if source != index else 2]):
            raise Unsupported("The decoder does not know where keys and values of a block come from.")
        values = keys  # without a projection of their own, values are the keys before norm and rotation
    rotates = bool(rotations) and _rotates(family, config, module)
    kinds = [each.kind for each in rotations]
    return Attention(
        heads=heads,
        kv_heads=kv_heads,
        head_size=size,
        inputs=[_rows(name, getattr(module, name)) for name in present],
        queries=queries,
        keys=keys,
        values=values,
        query_norm=_norm(family, getattr(module, family.query_norm, None)),
        key_norm=_norm(family, getattr(module, family.key_norm, None)),
        value_norm=_norm(family, getattr(module, family.value_norm, None)),
        norm_last=family.norm_last,
        rotation=kinds.index(None if kinds == [None] else _kind(config, index)) if rotates else None,
        scale=getattr(module, family.scale),
        cap=float((family.score_cap and getattr(module, family.score_cap)) or 0.0),
        window=_window(family, config, index),
        source=source,
        sinks=getattr(module, family.sinks, None),
        output=_rows(family.output, getattr(module, family.output)),
    )


def _rotates(family: Family, config: Any, attention: Any) -> bool:
    if family.rotates is None or (family.rotates_without_window and config.sliding_window is None):
        return True
    return bool(getattr(attention, family.rotates))


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
        _rows(family.gate, gate, 0, parts),
        None if up is None else _rows(str(family.up), up, parts - 1, parts),
        _rows(family.down, getattr(module, family.down)),
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
