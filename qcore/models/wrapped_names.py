"""Names of tensors in checkpoints that were saved from a wrapper around the model.

    DataParallel            module.model.layers.0 …
    torch.compile           _orig_mod.model.layers.0 …, or model.layers.0._orig_mod.self_attn …
    FSDP, checkpointing     model.layers.0._fsdp_wrapped_module.self_attn …
    Fabric, DeepSpeed       _forward_module.model.layers.0 …
    a merged adapter        base_model.model.model.layers.0 …

The names of the wrappers are removed, and the description of the checkpoint says so.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping

from qcore.base.errors import InputError
from qcore.base.strict_json import repeated
from qcore.models.headers import TensorInfo

_ANYWHERE = {
    "_orig_mod": "torch.compile",
    "_fsdp_wrapped_module": "FSDP",
    "_checkpoint_wrapped_module": "activation checkpointing",
    "_forward_module": "Fabric or DeepSpeed",
}  # components that no model of transformers has
_IN_FRONT = {"module": "DataParallel", "base_model.model": "an adapter"}  # removed if every name begins so


def unwrapped(tensors: Mapping[str, TensorInfo]) -> tuple[dict[str, TensorInfo], str]:
    """Return the tensors under the model's own names, and a sentence on what was removed (empty: nothing).
    Raise `InputError` if two tensors would have the same name."""
    found: dict[str, str] = {}
    names = {name: name for name in tensors}
    for part, wrapper in _ANYWHERE.items():
        for stored, name in names.items():
            if part in (parts := name.split(".")):
                found[part] = wrapper
                names[stored] = ".".join(each for each in parts if each != part)
    while fronts := [front for front in _IN_FRONT if _all_begin(names.values(), f"{front}.")]:
        front = fronts[0]
        found[front] = _IN_FRONT[front]
        names = {stored: name.removeprefix(f"{front}.") for stored, name in names.items()}
    if not found:
        return dict(tensors), ""
    if len(set(names.values())) < len(names):
        raise InputError(
            f"Without what a wrapper left in the names of the tensors ({', '.join(found)}), two of them are "
            f"called {repeated(names.values())!r}, so their values are ambiguous. Save the model again, "
            "without the wrapper."
        )
    listed = " and ".join(f"{part} ({wrapper})" for part, wrapper in found.items())
    words = (
        f"The names of its tensors hold {listed}, left by a wrapper that it was saved from; that is removed."
    )
    return {name: tensors[stored] for stored, name in names.items()}, words


def _all_begin(names: Collection[str], front: str) -> bool:
    return bool(names) and all(name.startswith(front) for name in names)
