"""Read the attention of a block as the native step describes it, and what it holds of each token."""

from typing import Any

from qcore.runtime.description import Attention, HeldHeads, Latent, Rotation, Unsupported
from qcore.runtime.families import Family
from qcore.runtime.parts import kind_of, norm_of, rows_of


def held_of(family: Family, config: Any, attention: Any, index: int) -> HeldHeads:
    """Return what layer number `index` holds of each token."""
    if (names := family.latent) is not None:
        rank, rotated = getattr(attention, names.rank), getattr(attention, names.rotated)
        return HeldHeads(1, rank + rotated, rank, 0, index, 1, is_latent=True)
    size = _head_size(attention)
    return HeldHeads(
        _kv_heads(config, attention),
        size,
        size,
        window_of(family, config, index),
        _source(config, index),
        _copies(family, config, attention),
        is_latent=False,
    )


def attention_of(
    family: Family, config: Any, module: Any, index: int, rotations: list[Rotation]
) -> Attention:
    """Read the attention `module` of layer number `index`. Raise `Unsupported` for what the decoder does not
    know."""
    if family.latent is not None:
        return _latent_attention(family, config, module, index, rotations)
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
        value_size=size,
        inputs=[rows_of(name, getattr(module, name)) for name in present],
        queries=queries,
        keys=keys,
        values=values,
        query_norm=norm_of(family, getattr(module, family.query_norm, None)),
        key_norm=norm_of(family, getattr(module, family.key_norm, None)),
        value_norm=norm_of(family, getattr(module, family.value_norm, None)),
        norm_last=family.norm_last,
        rotation=kinds.index(None if kinds == [None] else kind_of(config, index)) if rotates else None,
        scale=getattr(module, family.scale),
        cap=float((family.score_cap and getattr(module, family.score_cap)) or 0.0),
        window=window_of(family, config, index),
        source=source,
        sinks=getattr(module, family.sinks, None),
        output=rows_of(family.output, getattr(module, family.output)),
        latent=None,
    )


def _latent_attention(
    family: Family, config: Any, module: Any, index: int, rotations: list[Rotation]
) -> Attention:
    names = family.latent
    assert names is not None
    rank, plain, rotated, values = (
        getattr(module, name) for name in (names.rank, names.plain, names.rotated, names.values)
    )
    heads, up = config.num_attention_heads, getattr(module, names.up)
    if rank % 8 or values % 8 or rotated % 8 or len(rotations) != 1:
        raise Unsupported(
            "The decoder needs latents and values of a multiple of 8 dimensions with one kind of positions."
        )
    if up.bias is not None:
        raise Unsupported("The decoder does not know keys and values with biases that come from latents.")
    rows_of(names.up, up)
    low = getattr(module, names.queries, None) is None
    name = names.query_down if low else names.queries
    first = rows_of(name, getattr(module, name))
    return Attention(
        heads=heads,
        kv_heads=1,
        head_size=rank + rotated,
        value_size=rank,
        inputs=[first, rows_of(names.down, getattr(module, names.down))],
        queries=(0, 0),
        keys=(first.last, 0),
        values=(first.last, 0),
        query_norm=None,
        key_norm=None,
        value_norm=None,
        norm_last=False,
        rotation=0,
        scale=getattr(module, family.scale),
        cap=0.0,
        window=0,
        source=index,
        sinks=None,
        output=rows_of(family.output, getattr(module, family.output)),
        latent=Latent(
            rank=rank,
            plain=plain,
            rotated=rotated,
            values=values,
            norm=norm_of(family, getattr(module, names.norm)),
            query_norm=norm_of(family, getattr(module, names.query_norm)) if low else None,
            queries=rows_of(names.query_up, getattr(module, names.query_up)) if low else None,
            up=up,
        ),
    )


def _rotates(family: Family, config: Any, attention: Any) -> bool:
    if family.rotates is None or (family.rotates_without_window and config.sliding_window is None):
        return True
    return bool(getattr(attention, family.rotates))


def window_of(family: Family, config: Any, index: int) -> int:
    """Return how many tokens this layer's attention sees, the current one included; 0 for no limit."""
    if not family.has_windows or (kind_of(config, index) or "sliding_attention") != "sliding_attention":
        return 0
    return getattr(config, "sliding_window", None) or 0


def _kv_heads(config: Any, attention: Any) -> int:
    if groups := getattr(attention, "num_key_value_groups", None):  # the config may differ per layer
        return config.num_attention_heads // groups
    for holder, name in ((attention, "num_kv_heads"), (config, "num_key_value_heads")):
        if found := getattr(holder, name, None):
            return found
    return config.num_attention_heads


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


def _copies(family: Family, config: Any, attention: Any) -> int:
    if family.copies_heads is None or not getattr(config, family.copies_heads):
        return 1
    return config.num_attention_heads // _kv_heads(config, attention)


def _head_size(attention: Any) -> int:
    found = getattr(attention, "head_dim", None)
    return attention.head_size if found is None else found
