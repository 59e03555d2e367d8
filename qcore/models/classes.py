"""The class of transformers that a config stands for: a causal language model, or a wrapper around one."""

from __future__ import annotations

import inspect
from typing import TYPE_CHECKING, Any

from qcore.base.errors import InputError

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedModel


def with_class(config: PreTrainedConfig) -> PreTrainedConfig:
    """Return `config` if it has a class, or the text config inside it if it names the class of a text model
    alone. Raise `InputError` as `model_class` does.

    A config that says to have an encoder, of an architecture that has none, is corrected: transformers would
    look for the encoder while it generates."""
    if config.is_encoder_decoder and not _has_encoder(config):
        config.is_encoder_decoder = False
    text, named = config.get_text_config(), config.architectures or ()
    if any(one.__name__ in named and one.config_class is type(text) for one in _classes(config)):
        return text
    model_class(config)
    return config


def model_class(config: PreTrainedConfig) -> type[PreTrainedModel]:
    """Return transformers' class for `config` that predicts the next token of a text: a causal language
    model, or a wrapper around one that also reads images or sounds. Of several, return the one that the
    config names.

    Raise `InputError` if there is none.
    """
    kind = config.model_type
    flat = (
        config.get_text_config() is config
    )  # several flat configs share a class, such as InternLM 3 and Llama
    fitting = [one for one in _classes(config) if flat or isinstance(config, one.config_class or ())]
    if not fitting or config.is_encoder_decoder:
        raise InputError(f"A {kind} model does not predict the next token. Choose a causal language model.")
    chosen = next((one for one in fitting if one.__name__ in (config.architectures or ())), fitting[0])
    if needed := _required(chosen):
        raise InputError(
            f"A {kind} model does not read text alone: it requires {needed}. Choose a causal language model."
        )
    return chosen


def _has_encoder(config: PreTrainedConfig) -> bool:
    """Return whether the architecture of `config`, or of a part of it, has an encoder and a decoder by
    default."""
    parts = (getattr(config, name, None) for name in config.sub_configs)
    return any(type(each).is_encoder_decoder for each in (config, *parts) if each is not None)


def _classes(config: PreTrainedConfig) -> list[type[PreTrainedModel]]:
    """Return the classes of text models and wrappers that transformers registers for `config`."""
    from transformers.models.auto import modeling_auto as auto

    found: dict[type[PreTrainedModel], None] = {}
    for mapping in (
        auto.MODEL_FOR_CAUSAL_LM_MAPPING,
        auto.MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING,
        auto.MODEL_FOR_MULTIMODAL_LM_MAPPING,
    ):
        found |= dict.fromkeys(_registered(mapping, config))
    return list(found)


def _registered(mapping: Any, config: PreTrainedConfig) -> list[type[PreTrainedModel]]:
    """Return the classes that one of transformers' registries has for `config`."""
    classes = mapping.get(type(config), [])
    return list(classes) if isinstance(classes, tuple | list) else [classes]


def _required(chosen: type[PreTrainedModel]) -> str | None:
    """Return the name of an input, other than a text's tokens, that `chosen` cannot do without; None if there
    is none."""
    parameters = list(inspect.signature(chosen.forward).parameters.values())[1:]
    return next(
        (
            each.name
            for each in parameters
            if each.default is each.empty
            and each.kind is each.POSITIONAL_OR_KEYWORD
            and each.name != "input_ids"
        ),
        None,
    )


def auto_class(config: PreTrainedConfig) -> str:
    """Return the name of the class of transformers whose `from_pretrained` loads a model of `config`, such as
    "AutoModelForCausalLM"."""
    from transformers.models.auto import modeling_auto as auto

    chosen = model_class(config)
    for name in ("AutoModelForCausalLM", "AutoModelForImageTextToText"):
        if chosen in _registered(getattr(auto, name)._model_mapping, config):
            return name
    return "AutoModelForMultimodalLM"
