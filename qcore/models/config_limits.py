"""The limits of config.json. A model's class allocates and loops by its numbers, before a weight is read.

    check_sizes     before anything heavy is imported: the usual sizes, and every list and text
    check_fields    every number that the model's class reads, by the words of its name
    check_against   numbers that count layers must have tensors to fill them

Fields that no class has are notes (`global_step`, `trained_tokens`), which nothing reads.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Mapping
from typing import Any

from qcore.base.errors import InputError
from qcore.models.headers import TensorInfo

LAYERS = ("num_hidden_layers", "n_layer", "n_layers", "num_layers", "num_decoder_layers")
VOCABULARY, WIDTH = ("vocab_size",), ("hidden_size", "n_embd", "d_model")
_MOST_LAYERS = 2048
_LARGEST = {  # of fields that must be whole numbers, or lists of them
    **dict.fromkeys(LAYERS, _MOST_LAYERS),
    **dict.fromkeys(VOCABULARY, 1 << 24),
    **dict.fromkeys((*WIDTH, "intermediate_size", "moe_intermediate_size", "n_inner", "ffn_dim"), 1 << 20),
    **dict.fromkeys(("num_attention_heads", "n_head", "num_key_value_heads", "head_dim"), 1 << 14),
    **dict.fromkeys(("num_experts", "num_local_experts", "n_routed_experts", "num_experts_per_tok"), 1 << 14),
    **dict.fromkeys(("max_position_embeddings", "n_positions", "n_ctx"), 1 << 28),
}
_MAY_BE_ZERO = (
    "num_experts",
    "num_local_experts",
    "n_routed_experts",
    "num_experts_per_tok",
    "moe_intermediate_size",
)
_LAYERED = re.compile(r"(layers?|blocks?|depths?|stages|levels|loops|passes|stacks)$|^n_layer$")
_PATTERNS = re.compile(r"pattern|layer_types|layers_block_type|block_types?$")  # with an entry per layer
_KINDS = (  # of other fields: the first fitting one decides
    (re.compile(r"(_id|_ids|_index|_indices|_idx|_offset|_value|seed)$"), 1 << 31),
    (re.compile(r"theta|base|period|timescale|temperature|rate"), 1 << 53),
    (re.compile(r"position|context|length|window|seq|max_len|distance|resolution|bytes|chunk"), 1 << 28),
    (re.compile(r"vocab|codebook_size|embeddings|buckets|tokens|codevectors|labels$"), 1 << 24),
    (_LAYERED, _MOST_LAYERS),
    (re.compile(r"heads?$|experts?$|groups?$|classes$|bins$|top_?k"), 1 << 14),
)
_OF_OTHERS = ("quantization_config", "compression_config", "task_specific_params")
_OTHER = 1 << 20  # sizes and widths, above all
_MOST_EXPERTS = 1 << 20  # in all layers
_LONGEST = 1 << 16  # entries of a list or an object, and characters of a text
_FEWEST = 512  # layers of a part that are allowed with fewer tensors: unused fields keep their defaults


def parts(config: Any) -> list[dict]:
    """Return a config and all objects inside it."""
    found, stack = [], [config]
    while stack:
        part = stack.pop()
        if isinstance(part, dict):
            found.append(part)
            stack.extend(part.values())
        elif isinstance(part, list):
            stack.extend(part)
    return found


def check_sizes(config: dict) -> None:
    """Raise `InputError` for a number, list or text of `config` that exceeds its limit, and for a size that
    is not a whole number."""
    if not isinstance(config.get("model_type"), str):
        raise InputError("config.json does not name a model_type, so its architecture is not known.")
    for part in parts(config):
        for key, largest in _LARGEST.items():
            values = part.get(key)
            for value in values if isinstance(values, list) else [values]:
                smallest = 0 if key in _MAY_BE_ZERO else 1
                if value is not None and (type(value) is not int or not smallest <= value <= largest):
                    raise InputError(
                        f"config.json has {key} = {_shown(value)}, but it must be a whole number from "
                        f"{smallest} to {largest}."
                    )
        if len(part) > _LONGEST:
            raise InputError(f"config.json has an object of {len(part)} entries, more than {_LONGEST}.")
        for key, value in part.items():
            _check_value(key, value)
        layers = max((part[key] for key in LAYERS if isinstance(part.get(key), int)), default=1)
        experts = max((value for key, value in _counts(part) if key.endswith("experts")), default=0)
        if layers * experts > _MOST_EXPERTS:
            raise InputError(
                f"config.json has {layers} layers with {experts} experts each, more than {_MOST_EXPERTS} in "
                "all."
            )


def check_against(config: dict, tensors: Mapping[str, TensorInfo]) -> None:
    """Raise `InputError` for sizes that the stored weights cannot fill, before a model is built."""
    text = text_settings(config)
    layers = next((text[key] for key in LAYERS if isinstance(text.get(key), int)), 1)
    if layers > len(tensors):
        raise InputError(
            f"config.json declares {layers} layers, but the weight files hold only {len(tensors)} tensors. "
            "They belong to different models."
        )
    for part in parts(config):
        for key, count in _counts(part):
            if (_LAYERED.search(key) or _PATTERNS.search(key)) and count > max(_FEWEST, len(tensors)):
                raise InputError(
                    f"config.json has {key} = {count}, but the weight files hold only {len(tensors)} "
                    "tensors. They belong to different models."
                )
    rows = next((text[key] for key in VOCABULARY if key in text), 1)
    width = next((text[key] for key in WIDTH if key in text), 1)
    elements = sum(tensor.elements for tensor in tensors.values())
    if isinstance(rows, int) and isinstance(width, int) and rows * width > 2 * elements:
        raise InputError(
            f"config.json declares an embedding of {rows} x {width}, but the weight files hold only "
            f"{elements} values. They belong to different models."
        )


def text_settings(config: dict) -> dict:
    """Return the settings of the text model in config.json: those inside the settings of a wrapper, else
    all."""
    inner = config.get("text_config")
    return inner if isinstance(inner, dict) else config


def _counts(part: dict) -> Iterator[tuple[str, int]]:
    """Yield the whole numbers of a part of a config, and the lengths of its lists and texts that have an
    entry per layer."""
    for key, value in part.items():
        if type(value) is int:
            yield key, value
        elif isinstance(value, list | str) and _PATTERNS.search(key):
            yield key, len(value)


def _check_value(key: str, value: Any) -> None:
    """Raise `InputError` for a value of the field `key` that exceeds its limit; objects are parts of their
    own."""
    if isinstance(value, list | str):
        most = _MOST_LAYERS if _PATTERNS.search(key) else _LONGEST
        if len(value) > most:
            what = "entries" if isinstance(value, list) else "characters"
            raise InputError(f"config.json has {len(value)} {what} in {key}, but it may have {most}.")
    elif type(value) is int and (_LAYERED.search(key) or key == "num_labels"):
        _check_number(key, value)


def check_fields(config: dict, known: Collection[str]) -> None:
    """Raise `InputError` for a number that exceeds the limit of its kind, in a field among `known`, those of
    the model's config class, or anywhere in the settings of its parts."""
    read = {key: value for key, value in config.items() if key in known or isinstance(value, dict | list)}
    for part in parts({key: value for key, value in read.items() if key not in _OF_OTHERS}):
        for key, value in part.items():
            for each in _numbers(value):
                _check_number(key, each)


def _numbers(value: Any) -> Iterator[int]:
    """Yield the whole numbers of a field; objects inside it are parts of their own."""
    stack = [value]
    while stack:
        each = stack.pop()
        if type(each) is int:
            yield each
        elif isinstance(each, list):
            stack += each


def _check_number(key: str, value: int) -> None:
    most = _LARGEST.get(key) or next((most for kind, most in _KINDS if kind.search(key)), _OTHER)
    if abs(value) > most:
        raise InputError(
            f"config.json has {key} = {_shown(value)}, but it must be a whole number from {-most} to {most}."
        )


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else text[:80] + "…"
