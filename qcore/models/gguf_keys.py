"""The settings of a GGUF file that describe its architecture, and the check that none is ignored.

    Keys(path, header)     reads settings by name, without the architecture before it, and notes each
    check_all_used         refuses the file for a setting that nothing read, unless it changes no prediction

A setting that changes predictions and is ignored gives a model that runs and is wrong, so settings that are
not known are refused as well.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from qcore.base.errors import InputError
from qcore.models.gguf_header import Header

_UNUSED = (  # describe the file, its training, or limits that no prediction depends on
    "vocab_size",
    "context_length",
    "tensor_data_layout",
    "pooling_type",
    "mm.tokens_per_image",
    "rope.scaling.finetuned",
    "rope.scaling.original_context_length",  # only the kinds of scaling that need it read it
)
_NEUTRAL: dict[str, tuple[Any, ...]] = {  # values that mean the same as none
    "logit_scale": (0, 1),
    "embedding_scale": (0, 1),
    "residual_scale": (0, 1),
    "attention.scale": (0,),
    "attention.clamp_kqv": (0,),
    "attention.max_alibi_bias": (0,),
    "attention.causal": (True,),
    "attention.sliding_window": (0,),
    "attn_logit_softcapping": (0,),
    "final_logit_softcapping": (0,),
    "use_parallel_residual": (False,),
    "rope.scaling.factor": (0, 1),
    "rope.scaling.attn_factor": (0, 1),
    "rope.scaling.yarn_ext_factor": (-1, 1),
    "rope.scaling.yarn_attn_factor": (1,),
    "rope.scaling.yarn_beta_fast": (32,),
    "rope.scaling.yarn_beta_slow": (1,),
    "rope.scaling.yarn_log_multiplier": (0,),
    "expert_count": (0,),
    "expert_used_count": (0,),
    "expert_shared_count": (0,),
    "expert_group_count": (0, 1),
    "expert_group_used_count": (0, 1),
    "expert_gating_func": (0, 1),  # softmax
    "expert_weights_scale": (0, 1),
    "leading_dense_block_count": (0,),
    "interleave_moe_layer_step": (0, 1),
    "nextn_predict_layers": (0,),
}


class Keys:
    """The settings of the architecture of the GGUF file `path`. Names are without the architecture."""

    def __init__(self, path: Path, header: Header):
        self._path, self._header, self._used = path, header, set[str]()

    def number(self, key: str) -> int | float | None:
        """Return the number of the setting; None if there is none. Raise `InputError` for a list."""
        full = self._full(key)
        if full in self._header.lengths:
            raise InputError(
                f"{self._path.name} gives {full} as a list, one value per layer, and transformers' model has "
                "one for all layers. Choose another file of this model, or its safetensors."
            )
        return self._header.number(full)

    def text(self, key: str) -> str | None:
        """Return the text of the setting; None if there is none."""
        return self._header.text(self._full(key))

    def flags(self, key: str) -> list[bool] | None:
        """Return the list of truth values of the setting; None if there is none."""
        return self._header.flags(self._full(key))

    def use(self, *keys: str) -> None:
        """Count settings as read."""
        self._used |= {f"{self._header.architecture}.{key}" for key in keys}

    def check_all_used(self) -> None:
        """Raise `InputError` for a setting that was not read and that changes predictions."""
        prefix = f"{self._header.architecture}."
        for full in self._header.entries:
            key = full.removeprefix(prefix)
            if not full.startswith(prefix) or full in self._used or key in _UNUSED:
                continue
            value = (
                self._header.text(full) if self._header.number(full) is None else self._header.number(full)
            )
            if self._is_neutral(key, value):
                continue
            shown = "a list" if value is None else repr(value)
            raise InputError(
                f"{self._path.name} has the setting {full} ({shown}), which this architecture does not have "
                "in transformers. Without it the model would compute something else, so the file is refused. "
                "Choose another file of this model, or its safetensors."
            )

    def _is_neutral(self, key: str, value: Any) -> bool:
        context = self._header.number(f"{self._header.architecture}.context_length")
        if key == "attention.sliding_window" and value is not None and context and value >= context:
            return True
        return key in _NEUTRAL and value in _NEUTRAL[key]

    def _full(self, key: str) -> str:
        full = f"{self._header.architecture}.{key}"
        self._used.add(full)
        return full
