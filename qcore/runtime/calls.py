"""What has to be known to call any causal language model of transformers."""

import inspect

import torch

from qcore.formats.kv import Form


def device_of(model: torch.nn.Module) -> torch.device:
    """Where the model's inputs must lie: the device of its first parameter or buffer."""
    for tensor in (*model.parameters(), *model.buffers()):
        return tensor.device
    return torch.device("cpu")


def last_only(model: torch.nn.Module) -> dict:
    """The argument that asks a model for the logits of the last position only, as `generate` does; empty if
    it has none."""
    return {"logits_to_keep": 1} if "logits_to_keep" in inspect.signature(model.forward).parameters else {}


def new_cache(model: torch.nn.Module, kv: Form | None):
    """An empty key-value cache in the form `kv` for `model`, or None, upon which the model makes its own.
    Raises `InputError` for an architecture whose cache cannot be quantized."""
    if kv is None:
        return None
    from qcore.runtime.kv_cache import QuantizedKVCache

    return QuantizedKVCache(model.config, kv)


def cache_bytes(cache) -> int | None:
    """Bytes that a cache of transformers takes as it is stored, room that it keeps free included; None for
    one without keys and values."""
    return sum(map(_layer_bytes, getattr(cache, "layers", ()))) or None


def _layer_bytes(layer) -> int:
    if hasattr(layer, "nbytes"):  # qcore's own layers, which store other tensors than they return
        return layer.nbytes
    parts = (getattr(layer, name, None) for name in ("keys", "values"))
    return sum(part.nbytes for part in parts if isinstance(part, torch.Tensor))
