"""All undocumented parts of transformers that qcore uses; `torch_internals.py` has those of torch.

Each private part has one function here and one test in tests/models/test_transformers_internals.py, where an
upgrade that changes it fails. `CHECKED` holds the versions last checked. No other file of qcore names a
private attribute or module of these libraries, apart from the overrides listed in the test file.

transformers changes process-wide defaults (data type, initialisation, verbosity) while it builds a model and
restores them afterwards. Two threads at once would each restore the other's values, so all functions here
that touch such state hold one lock.
"""

from __future__ import annotations

import bisect
import logging
import math
import re
import threading
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from copy import deepcopy
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    import torch
    from torch import nn
    from transformers import PretrainedConfig, PreTrainedModel

CHECKED = {"transformers": "5.24.0", "torch": "2.13.0"}
_process = threading.RLock()  # held while process-wide state of the libraries is changed


# -- process-wide state --------------------------------------------------------------------------------------


@contextmanager
def quiet() -> Iterator[None]:
    """Switch off transformers' progress bars and messages below "critical" for the whole process, and restore
    the settings at the end. One thread at a time. qcore reports loading problems itself, in one sentence."""
    from transformers.utils import logging as library

    logger = logging.getLogger("transformers")
    with _process:
        level, bar = logger.level, library.is_progress_bar_enabled()
        logger.setLevel(logging.CRITICAL)
        library.disable_progress_bar()
        try:
            yield
        finally:
            logger.setLevel(level)
            if bar:
                library.enable_progress_bar()


@contextmanager
def without_weights(*, meta_buffers: bool) -> Iterator[None]:
    """Build models whose parameters are on the meta device and are not initialised; buffers too with
    `meta_buffers`, otherwise they are computed. One thread at a time."""
    import torch
    from accelerate import init_empty_weights
    from transformers.initialization import no_init_weights

    place = torch.device("meta") if meta_buffers else init_empty_weights(include_buffers=False)
    with _process, place, no_init_weights():
        yield


def from_config(kind: type[PreTrainedModel], config: PretrainedConfig, dtype: torch.dtype) -> PreTrainedModel:
    """Return a new model of the class `kind` in `dtype`, as `AutoModelForCausalLM.from_config` makes it."""
    return kind._from_config(config, dtype=dtype)


def loaded_types(model: PreTrainedModel, dtype: torch.dtype) -> dict[str, torch.dtype]:
    """Return the type of every parameter and buffer of `model`, by name, when transformers loads the model in
    `dtype`. Some stay in float32: those that the class names, and those that it creates so."""
    import torch
    from transformers.core_model_loading import build_glob_alternation

    with quiet(), without_weights(meta_buffers=True):
        new = from_config(type(model), deepcopy(model.config), dtype)
    tensors = (*new.named_parameters(remove_duplicate=False), *new.named_buffers(remove_duplicate=False))
    types = {name: tensor.dtype for name, tensor in tensors}
    if patterns := list(model._get_dtype_plan(dtype)):
        search = build_glob_alternation(patterns)[0].search
        types |= {name: torch.float32 for name in types if search(name)}
    return types


@contextmanager
def meta_stays_meta() -> Iterator[None]:
    """Let transformers load tensors on the meta device there. It would copy those that it joins in the memory
    of the host, such as Qwen4-exp's embedding of n-grams, and they have no values. One thread at a time."""
    from transformers import core_model_loading as loading

    def copied(tensor: Any, device: Any = None, dtype: Any = None) -> torch.Tensor:
        return original(tensor, "meta" if getattr(tensor, "is_meta", False) else device, dtype)

    with _process:
        original = loading._materialize_copy
        loading._materialize_copy = copied
        try:
            yield
        finally:
            loading._materialize_copy = original


@contextmanager
def without_conversion_bar() -> Iterator[None]:
    """Hide the progress bar of transformers' GGUF converter, which none of its switches turns off."""
    from transformers import modeling_gguf_pytorch_utils as converter

    with _process:
        drawn = converter.tqdm
        converter.tqdm = lambda items, **_: items
        try:
            yield
        finally:
            converter.tqdm = drawn


# -- GGUF ----------------------------------------------------------------------------------------------------


def gguf_config(path: Path) -> dict[str, Any]:
    """Return the settings of a GGUF file in the form of transformers' config. The library does not validate
    the file, so any exception may be raised."""
    from transformers.modeling_gguf_pytorch_utils import load_gguf_checkpoint

    with quiet():
        return load_gguf_checkpoint(str(path), return_tensors=False)["config"]


def gguf_setting_names(architecture: str) -> set[str] | None:
    """Return the settings that transformers reads from a GGUF file of llama.cpp's `architecture`, without
    the architecture in front; None if the library has no list of them."""
    from transformers.integrations.ggml import GGUF_CONFIG_MAPPING

    table: dict[str, Any] = GGUF_CONFIG_MAPPING
    known = table.get(architecture) or table.get(architecture.replace("-", "_"))
    return None if known is None else {key for key, name in known.items() if name is not None}


def gguf_tensor_names(model: PreTrainedModel, architecture: str) -> set[str]:
    """Return the tensors that transformers reads from a GGUF file of llama.cpp's `architecture` into `model`.
    Fused experts may have other names."""
    from transformers import modeling_gguf_pytorch_utils as converter

    processor = converter.TENSOR_PROCESSORS.get(architecture, converter.TensorProcessor)
    return set(converter.get_gguf_hf_weights_map(model, processor(config=model.config.to_dict())))


# -- chat templates ------------------------------------------------------------------------------------------


def compile_chat_template(template: str) -> None:
    """Compile a chat template as transformers does. Any exception may be raised."""
    from transformers.utils.chat_template_utils import _compile_jinja_template

    _compile_jinja_template(template)


# -- from stored names to the model's ------------------------------------------------------------------------


class StoredNames:
    """transformers' rules that map stored tensors to parameters of `model`, as applied when it loads a whole
    model. `model` may be on the meta device."""

    def __init__(self, model: PreTrainedModel):
        from transformers.conversion_mapping import get_model_conversion_mapping
        from transformers.core_model_loading import WeightConverter, WeightRenaming

        rules = get_model_conversion_mapping(model)
        self._renamings = [rule for rule in rules if isinstance(rule, WeightRenaming)]
        self._converters = [rule for rule in rules if isinstance(rule, WeightConverter)]
        self._by_pattern = {pattern: rule for rule in self._converters for pattern in rule.source_patterns}
        self._prefix, self._wanted = model.base_model_prefix, model.state_dict()
        self._ignored = tuple(getattr(model, "_keys_to_ignore_on_load_unexpected", None) or ())

    def ignores(self, stored: str) -> bool:
        """Return whether the model's class expects the stored tensor and has no use for it."""
        return any(re.search(pattern, stored) for pattern in self._ignored)

    def place(self, stored: str) -> tuple[str, str | None, Any] | None:
        """Return (parameter, the rule's pattern, the rule) of a stored tensor; pattern and rule are None if
        the tensor is stored in the model's layout. Return None if the model has no place for it."""
        from transformers.core_model_loading import rename_source_key

        name, pattern = rename_source_key(
            stored, self._renamings, self._converters, self._prefix, self._wanted
        )
        if name not in self._wanted and stored in self._wanted:
            name, pattern = rename_source_key(stored, [], [], self._prefix, self._wanted)
        if name not in self._wanted:
            return None
        return name, pattern, None if pattern is None else self._by_pattern.get(pattern)


def tie(model: PreTrainedModel) -> None:
    """Tie the weights of `model` as its config says. While transformers builds a model that it will load,
    `model.tie_weights()` does nothing."""
    for target, source in model.get_expanded_tied_weights_keys(all_submodels=True).items():
        owner, _, name = target.rpartition(".")
        setattr(model.get_submodule(owner), name, model.get_parameter(source))


def absent() -> nn.Module:
    """Return a stand-in for a layer whose weights are not loaded. It has no parameters; `weight` and `bias`
    are there because a model may initialize those of its layers."""
    import torch
    from torch import nn

    module, done = nn.Module(), torch.empty(0)
    vars(done)["_is_hf_initialized"] = True
    vars(module).update(weight=done, bias=done)
    return module


def compute_buffers(model: PreTrainedModel, part: nn.Module) -> None:
    """Compute the buffers of `part`, which belongs into `model` and was not there when transformers computed
    those of the others. Parameters on the meta device stay there."""
    import torch

    for module in part.modules():
        missing = {name: buffer for name, buffer in module.named_buffers(recurse=False) if buffer.is_meta}
        for name, buffer in missing.items():
            setattr(module, name, torch.empty_like(buffer, device="cpu"))
        if missing:
            model._init_weights(module)


def load_only(model: PreTrainedModel, incomplete: list[str]) -> None:
    """Let transformers load into `model`, whose quantized weights are left out, without a report of the
    tensors that it has no place for. The modules called `incomplete`, which lack a parameter of their own,
    are not initialized, and embeddings are not tied to a head that is left out."""
    vars(model)["_keys_to_ignore_on_load_unexpected"] = {"."}
    for name in incomplete:
        vars(model.get_submodule(name))["_is_hf_initialized"] = True
    present = {name for name, _ in model.named_parameters(remove_duplicate=False)}
    model.all_tied_weights_keys = {
        target: source
        for target, source in model.all_tied_weights_keys.items()
        if {target, source} <= present
    }


class StoredRows(NamedTuple):
    """The rows of a parameter that one stored tensor holds: `count` rows from `first`, where a row is an
    output of a matrix (an element of a vector), and those of experts follow each other."""

    parameter: str
    first: int
    count: int  # type: ignore[assignment]


def stored_rows(
    model: PreTrainedModel, shapes: Mapping[str, tuple[int, ...]], transposed: Collection[str] = ()
) -> dict[str, StoredRows]:
    """Return {stored name: its rows} of the parameters with these `shapes` (…, N, K) as transformers saves
    them: it renames, and takes apart what it fused at loading. Parameters in `transposed` are (…, K, N) in
    `model`.

    Runs the reversed rules on the numbers of the rows in place of the weights. Raise `ValueError` for a rule
    that mixes rows."""
    import torch
    from transformers.core_model_loading import revert_weight_conversion

    numbers: dict[str, torch.Tensor] = {}
    starts: list[int] = []
    total = 0
    for name, shape in shapes.items():
        rows = (*shape[:-1], 1) if len(shape) > 1 else shape
        count = math.prod(rows)
        number = torch.arange(total, total + count).view(rows)
        numbers[name] = number.transpose(-1, -2) if name in transposed else number
        starts.append(total)
        total += count
    names, found = list(shapes), {}
    for stored, rows in revert_weight_conversion(model, numbers).items():
        first = int(rows.flatten()[0])
        if not torch.equal(rows.flatten(), torch.arange(first, first + rows.numel())):
            raise ValueError(f"{stored} is not a run of rows of one parameter")
        place = bisect.bisect_right(starts, first) - 1
        found[stored] = StoredRows(names[place], first - starts[place], rows.numel())
    return found


def stored_order(name: str) -> list:
    """Return the sort key by which transformers orders stored names: "experts.10" comes after "experts.9"."""
    from transformers.core_model_loading import dot_natural_key

    return dot_natural_key(name)


def rule_targets(rule: Any, first: str) -> list[str]:
    """Return all parameters that `rule` produces at once; `first` identifies the rule."""
    pattern = next((pattern for pattern in rule.target_patterns if pattern in first), None)
    if pattern is None:
        return [first]
    return [first.replace(pattern, other, 1) for other in rule.target_patterns]


def apply_rule(
    rule: Any, first: str, stored: dict[str, list[tuple[str, torch.Tensor]]], model: PreTrainedModel
) -> dict[str, torch.Tensor]:
    """Return {parameter: tensor} that `rule` computes from the `stored` tensors {pattern: [(stored name,
    tensor)]}."""
    rule = deepcopy(rule)
    for pattern, members in stored.items():
        for name, tensor in members:
            rule.add_tensor(first, name, pattern, tensor)
    made = rule.convert(first, model=model, config=model.config)
    return {name: value[0] if isinstance(value, list) else value for name, value in made.items()}


def stacks_experts(rule: Any) -> bool:
    """Return whether `rule` stacks experts that are stored one by one, and its other operations apply per
    expert."""
    from transformers.core_model_loading import Concatenate, MergeModulelist, Transpose

    first, *others = rule.operations
    if type(first) is not MergeModulelist or first.dim != 0:
        return False
    return all(
        (type(each) is Concatenate and each.dim > 0)
        or (type(each) is Transpose and min(each.dim0, each.dim1) > 0)
        for each in others
    )


# -- caches and hooks ----------------------------------------------------------------------------------------


def cache_layers(config: PretrainedConfig) -> tuple[list[str], list[dict[str, Any]]]:
    """Return (kind, such as "sliding_attention"; options, such as {"sliding_window": 512}) of the cache of
    each layer of a text `config`, as transformers uses it to build its own caches."""
    from transformers.cache_utils import get_layer_types_and_kwargs

    return get_layer_types_and_kwargs(config)


def is_stateful(model: Any) -> bool:
    """Return whether the class of `model` says that it carries more than keys and values of tokens."""
    return bool(getattr(model, "_is_stateful", False))


def is_old_style(model: Any) -> bool:
    """Return whether the class of `model` says neither that its attention is interchangeable nor that its
    forward can be compiled whole. Those are classes with a forward of their own kind."""
    known = ("_supports_attention_backend", "_can_compile_fullgraph")
    return not any(getattr(model, name, False) for name in known)


def collects_outputs(hook: Callable) -> bool:
    """Return whether `hook` is one that transformers leaves on modules to collect their outputs. Such a hook
    does nothing unless outputs are requested."""
    return getattr(hook, "__module__", None) == "transformers.utils.output_capturing"


# -- mixtures of experts -------------------------------------------------------------------------------------


def use_eager_experts(module: Any) -> None:
    """Make the experts `module` read its weights one expert at a time, by transformers' own code."""
    set_experts(module, "eager")


def register_experts(name: str, forward: Callable[..., Any]) -> None:
    """Add `forward(module, hidden_states, top_k_index, top_k_weights)` to the forwards of experts that
    `set_experts` can choose."""
    from transformers.integrations.moe import ALL_EXPERTS_FUNCTIONS

    ALL_EXPERTS_FUNCTIONS.register(name, forward)


def set_experts(module: Any, name: str) -> None:
    """Let the experts `module`, and all that share its config, run by the registered forward `name`. Classes
    outside of transformers' experts interface have one implementation, and are left as they are."""
    if hasattr(module, "is_transposed"):
        module.config._experts_implementation = name


def experts_gate(module: Any) -> Callable[[torch.Tensor], torch.Tensor]:
    """Return the function with which the experts `module` combine gate and up (…, 2 * inner)."""
    return module._apply_gate


@contextmanager
def eager_experts(module: Any) -> Iterator[None]:
    """Apply `use_eager_experts` within the block, and restore the setting at the end."""
    chooses = hasattr(module, "is_transposed")
    previous = module.config._experts_implementation if chooses else None
    use_eager_experts(module)
    try:
        yield
    finally:
        if chooses:
            module.config._experts_implementation = previous
