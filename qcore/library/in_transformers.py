"""Let transformers load folders that qcore saved: `AutoModelForCausalLM.from_pretrained(folder)` after
`import qcore`.

config.json names the quantization method `qcore`, whose quantizer `register` adds to transformers. For an
unknown method, transformers 5.24 only warns, and then initializes the missing weights at random. So
config.json also has the field `transformers_weights`, the name of a file that does not exist: without qcore,
the load ends with an error that quotes `NEEDED`. The quantizer removes the field.

transformers loads the tensors that are not quantized. The quantized ones are left out of the model meanwhile.
Then all tensors come from the same code as in `qcore.load`, so the logits are equal bit for bit.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from torch import nn
from transformers.quantizers import HfQuantizer, register_quantization_config, register_quantizer
from transformers.utils import logging
from transformers.utils.quantization_config import QuantizationConfigMixin

from qcore.base.errors import InputError
from qcore.library.saving import MANIFEST
from qcore.models.config import OURS

if TYPE_CHECKING:
    import torch
    from transformers import PretrainedConfig, PreTrainedModel

logger = logging.get_logger(__name__)


class QcoreConfig(QuantizationConfigMixin):
    """The `quantization_config` of a saved model: the name of its `recipe`. The rest is in qcore.json."""

    def __init__(self, recipe: str | None = None, **_: Any):
        self.quant_method = cast(Any, OURS)  # the enumeration of the annotation is closed
        self.recipe = recipe


class QcoreQuantizer(HfQuantizer):
    """Loads a model that qcore quantized. It does not quantize, train or save: `qcore.quantize` and
    `qcore.save` do."""

    requires_calibration = True  # transformers' word for: only checkpoints that are quantized already

    def __init__(self, quantization_config: QuantizationConfigMixin, **kwargs: Any):
        super().__init__(quantization_config, **kwargs)
        self._device: Any = None
        self._reading: Any = None
        self._away: list[tuple[nn.Module, str, Any]] = []

    def update_device_map(self, device_map: Any) -> Any:
        """Accept one device. Raise `ValueError` for a model split over several."""
        if device_map == "auto":
            device_map = {"": "cpu"}
        if device_map is not None and set(device_map) != {""}:
            raise ValueError(
                "A model quantized by qcore is loaded onto one device. Leave out device_map, or name one "
                "device."
            )
        self._device = None if device_map is None else device_map[""]
        return device_map

    def update_dtype(self, dtype: torch.dtype) -> torch.dtype:
        """Return float32, in which the layers compute."""
        import torch

        if dtype != torch.float32:
            logger.warning(f"A model quantized by qcore computes in float32, not in {dtype}.")
        return torch.float32

    def update_attn_implementation(self, config: PretrainedConfig) -> PretrainedConfig:
        """Remove the field that keeps transformers without qcore from loading the model. Of the quantizer's
        methods, only this one gets the config before the files are searched."""
        vars(config).pop("transformers_weights", None)
        return config

    def _process_model_before_weight_loading(
        self, model: PreTrainedModel, checkpoint_files: list[str] | None = None, **_: Any
    ) -> PreTrainedModel:
        """Check the folder against `model`, and take the quantized weights out of it until the others are
        loaded."""
        from qcore.base.transformers_internals import absent, load_only, tie
        from qcore.library import safetensors

        if not checkpoint_files:
            raise InputError("A model quantized by qcore is loaded from a folder, not from a state_dict.")
        self._reading = safetensors.begin(_folder(model, Path(checkpoint_files[0])))
        tie(model)  # transformers ties later, but the manifest describes a tied model
        targets = self._reading.check(model)
        for target in targets:
            owner_name, _, last = (target.name if target.fused else target.module).rpartition(".")
            owner = model.get_submodule(owner_name)
            self._away.append((owner, last, getattr(owner, last)))
            setattr(owner, last, None if target.fused else absent())  # at the same place in the order
        load_only(model, [target.module for target in targets if target.fused])
        return model

    def _process_model_after_weight_loading(self, model: PreTrainedModel, **_: Any) -> PreTrainedModel:
        """Put every stored tensor into `model`."""
        from qcore.base.transformers_internals import compute_buffers

        for owner, name, value in self._away:
            if isinstance(value, nn.Module):
                compute_buffers(model, value)
            setattr(owner, name, value)
        self._away = []
        self._reading.fill(model, widen=True)
        self._reading = None
        cast("nn.Module", model).requires_grad_(False)
        if self._device is not None:
            cast("nn.Module", model).to(self._device)
        return model

    def is_serializable(self) -> bool:
        """Return False: `save_pretrained` would lose the manifest. `qcore.save` writes a loaded model."""
        return False

    @property
    def is_trainable(self) -> bool:
        """False: the codes have no gradients. `qcore.qat` trains."""
        return False


def register() -> None:
    """Add the quantizer and its config to transformers. Once per process."""
    from transformers.quantizers.auto import AUTO_QUANTIZER_MAPPING

    if OURS not in AUTO_QUANTIZER_MAPPING:
        register_quantization_config(OURS)(QcoreConfig)
        register_quantizer(OURS)(QcoreQuantizer)


def _folder(model: PreTrainedModel, weights: Path) -> Path:
    """Return the folder with the manifest of the model whose `weights` transformers found. From a hub,
    transformers fetches only the files it knows, so fetch the manifest into the same snapshot."""
    if not (weights.parent / MANIFEST).exists() and weights.parent.parent.name == "snapshots":
        from transformers.utils import cached_file

        cached_file(str(model.config.name_or_path), MANIFEST, revision=weights.parent.name)
    return weights.parent
