"""Validation of config.json. It is untrusted: it must not select code, name other files, or demand absurd
sizes."""

from __future__ import annotations

import json
import math
import re
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qcore.base.errors import InputError
from qcore.base.registry import did_you_mean
from qcore.models.classes import with_class
from qcore.models.config_limits import check_fields, check_sizes, parts
from qcore.models.headers import LONGEST_SETTINGS, read_json

if TYPE_CHECKING:
    from transformers import PreTrainedConfig

OURS = "qcore"  # the quant_method of folders that qcore saved itself
# Their `transformers_weights`: the name of no file, which transformers quotes in its error if qcore was not
# imported. Not the name of a safetensors file, or transformers would search for it instead.
NEEDED = "The weights are quantized by qcore: run `import qcore` before from_pretrained."
# Fields that select code to run (attention kernels may be hub ids) or files to read; always removed.
_STRIPPED = (
    "trust_remote_code",
    "attn_implementation",
    "_attn_implementation",
    "_attn_implementation_internal",
    "experts_implementation",
    "_experts_implementation",
    "use_kernels",
    "kernel_config",
    "fusion_config",
    "transformers_weights",
    "_name_or_path",
    "name_or_path",
)
# Fields that only set in which form a model returns its outputs; qcore sets the form that it reads.
_OUTPUTS = ("return_dict", "use_return_dict", "output_hidden_states", "output_attentions", "torchscript")
_HARMLESS = ("_name_or_path", "name_or_path")  # stripped silently: present in every config
_MOST_HINTS = 1
_QUANTIZED = ("quantization_config", "compression_config")
_NAMED_ELSEWHERE = {"quantize_config.json": "gptq", "quant_config.json": "awq"}
_MLX = "quantization"  # MLX's own key

_REFUSED_FIELD = re.compile(r"Validation error for field '(\w+)'")  # of the classes' own validation
_EXPECTED = re.compile(r"expected (?:an? )?(\w+), got")
_TYPES = {
    "int": "a whole number",
    "float": "a number",
    "str": "a text",
    "bool": "true or false",
    "list": "a list",
    "dict": "an object",
    "NoneType": "null",
}
# JSON has no infinity and no NaN; transformers writes them as objects with this key.
_FLOAT = "__float__"
_FLOATS = {"Infinity": math.inf, "-Infinity": -math.inf, "NaN": math.nan}


def read_config(folder: Path, *, quantized: bool = False) -> tuple[dict, list[str]]:
    """Return the checked config.json of `folder` without the forbidden fields, and the names of the removed
    fields to report.

    Raise `InputError` if it requires its own code, is quantized by another library (unless `quantized`, for
    inspection only), is an adapter, or has absurd sizes.
    """
    if (folder / "adapter_config.json").exists():
        raise InputError(
            f"{folder.name} holds an adapter (adapter_config.json), not a whole model. Merge it into its "
            "base model first."
        )
    if not (folder / "config.json").exists():
        inside = [path.parent for path in sorted(folder.glob("*/config.json"))[:_MOST_HINTS]]
        inside += [path.parent for path in sorted(folder.glob("snapshots/*/config.json"))[:_MOST_HINTS]]
        found = f" Inside it, {inside[0].relative_to(folder)} has one." if inside else ""
        raise InputError(
            f"{folder.name} has no config.json, so it is not a model.{found} Give a folder with config.json "
            "and *.safetensors."
        )
    config = read_json(folder / "config.json", LONGEST_SETTINGS)
    _refuse_code(config, folder, "config.json")
    for name in ("tokenizer_config.json", "generation_config.json"):
        if (folder / name).exists():
            _refuse_code(read_json(folder / name, LONGEST_SETTINGS), folder, name)
    if not quantized:
        _refuse_quantized(config, folder)
    check_sizes(config)
    silent = {*_HARMLESS, "transformers_weights"} if is_ours(config) else {*_HARMLESS}
    stripped = sorted({key for part in parts(config) for key in part if key in _STRIPPED} - silent)
    return _without(config, _STRIPPED), stripped


def checked(config: dict) -> dict:
    """Return a config from another source, without the forbidden fields. Raise `InputError` for absurd
    sizes."""
    check_sizes(config)
    return _without(config, _STRIPPED)


def is_ours(config: dict) -> bool:
    """Return whether qcore saved this quantized model."""
    quantization = config.get("quantization_config")
    return isinstance(quantization, dict) and quantization.get("quant_method") == OURS


def without_quantization(config: dict) -> dict:
    """Return `config` as that of a model that is not quantized."""
    return _without(config, _QUANTIZED)


def _without(part: Any, keys: tuple[str, ...]) -> Any:
    if isinstance(part, dict):
        return {key: _without(value, keys) for key, value in part.items() if key not in keys}
    return [_without(value, keys) for value in part] if isinstance(part, list) else part


def _refuse_code(config: dict, folder: Path, name: str) -> None:
    if any(part.get("auto_map") for part in parts(config)):
        raise InputError(
            f"{folder.name} requires code of its own (auto_map in {name}), which qcore never runs. "
            "Choose a model whose architecture the transformers library knows."
        )


def quantization(config: dict, folder: Path) -> tuple[str, dict] | None:
    """Return (method, settings) with which another library quantized the model, from config.json or a file
    beside it, such as ("gptq", {"bits": 4, …}); None if none did. The method is "method not named" if the
    settings do not name it. Raise `InputError` if a file beside config.json cannot be read."""
    if is_ours(config):
        return None
    if isinstance(settings := config.get(_MLX), dict) and {"bits", "group_size"} <= set(settings):
        return "mlx", settings
    found = next((part[key] for part in parts(config) for key in _QUANTIZED if part.get(key)), None)
    if found is None:
        beside = next(
            ((file, name) for file, name in _NAMED_ELSEWHERE.items() if (folder / file).exists()), None
        )
        return None if beside is None else (beside[1], read_json(folder / beside[0], LONGEST_SETTINGS))
    settings = found if isinstance(found, dict) else {}
    name = settings.get("quant_method") or settings.get("quant_algo")
    return str(name or "method not named"), settings


def quantized_by(config: dict, folder: Path) -> str | None:
    """Return the method of `quantization`, None if no other library quantized the model."""
    found = quantization(config, folder)
    return None if found is None else found[0]


# The forms in which models are published, and not only quantized afterwards; see `library/widened.py`.
LOW_PRECISION = ("fp8", "fbgemm_fp8", "mxfp4")
# The other forms that are read as they are; see `foreign_forms.py`.
READ_AS_STORED = ("gptq", "awq", "compressed-tensors", "bitsandbytes", "mlx", "modelopt")


def _refuse_quantized(config: dict, folder: Path) -> None:
    name = quantized_by(config, folder)
    if name and name not in LOW_PRECISION:
        raise InputError(
            f"{folder.name} is already quantized ({name}). Start from the original model: quantizing it "
            "again would measure both losses at once."
            + (
                " Beside recipes of the original, file:NAME measures it as it is."
                if name in READ_AS_STORED
                else ""
            )
        )


def refuse_unknown(config: dict) -> None:
    """Raise `InputError` for an architecture that transformers has no code for. Its registry is the list of
    architectures that qcore builds: no other code is ever run for a model."""
    from transformers import __version__
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING_NAMES

    kind = config["model_type"]
    if kind not in CONFIG_MAPPING_NAMES:
        near = did_you_mean(kind, CONFIG_MAPPING_NAMES)
        hint = f"Unknown architecture {kind!r}." + (f" {near}" if near else "")
        raise InputError(
            f"{hint} transformers {__version__} has no code for it, and qcore runs no code that comes with a "
            "model."
        )


def to_transformers(config: dict) -> PreTrainedConfig:
    """Return the transformers config object for a checked `config`. Raise `InputError` for an unknown
    architecture, a number beyond its limit, or invalid values."""
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    kind = config["model_type"]
    refuse_unknown(config)
    check_fields(config, _known(CONFIG_MAPPING[kind]))
    try:
        built = CONFIG_MAPPING[kind].from_dict(
            {
                key: _with_floats(value)
                for key, value in _without(config, _OUTPUTS).items()
                if key != "quantization_config"
            }
        )
    except Exception as error:  # a config class may raise anything; each failure is the file's fault
        raise InputError(
            f"config.json does not describe a valid {kind} model: {_reason(error, config)}"
        ) from error
    if getattr(built, "rescale_every", 0):
        # RWKV would halve its states every few layers, against overflow in 16 bits, and divide weights in
        # place at the first call. qcore computes in fp32, and codes cannot be divided.
        built.rescale_every = 0
    return with_class(built)


def _known(kind: type[PreTrainedConfig]) -> set[str]:
    """Return the names of the fields of a config class."""
    return {*kind.attribute_map, *(field.name for field in fields(kind))}


def knows_field(kind: str, name: str) -> bool:
    """Return whether the config of the model type `kind`, which transformers knows, has the field `name`."""
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    return name in _known(CONFIG_MAPPING[kind])


def to_text(config: dict) -> str:
    """Return the text of a config.json that holds the dictionary of a transformers config object."""
    return json.dumps(_without_floats(config), indent=2, default=str)


def _with_floats(part: Any) -> Any:
    """Return `part` of a config.json with infinite numbers and NaN in place of the objects for them."""
    if isinstance(part, dict):
        if set(part) == {_FLOAT} and isinstance(part[_FLOAT], str):
            return _FLOATS.get(part[_FLOAT], part)
        return {key: _with_floats(value) for key, value in part.items()}
    return [_with_floats(value) for value in part] if isinstance(part, list) else part


def _without_floats(part: Any) -> Any:
    """Return `part` with objects in place of infinite numbers and NaN."""
    if isinstance(part, dict):
        return {key: _without_floats(value) for key, value in part.items()}
    if isinstance(part, list | tuple):
        return [_without_floats(value) for value in part]
    if isinstance(part, float) and not math.isfinite(part):
        return {_FLOAT: "NaN" if math.isnan(part) else "Infinity" if part > 0 else "-Infinity"}
    return part


def _reason(error: Exception, config: dict) -> str:
    """Return why a config class refused `config`: for a value of the wrong type the field, the value and the
    types that it may have."""
    name = _REFUSED_FIELD.search(str(error))
    if name is None or not (kinds := list(dict.fromkeys(_EXPECTED.findall(str(error))))):
        return _first_line(error)
    words = [_TYPES.get(kind, kind) for kind in kinds]
    allowed = " or ".join(filter(None, (", ".join(words[:-1]), words[-1])))
    return f"{name[1]} is {config.get(name[1])!r}, but it must be {allowed}"


def _first_line(error: Exception) -> str:
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
