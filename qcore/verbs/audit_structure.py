"""The weights of a checkpoint compared with the architecture that config.json names.

Quantized weights take part under the name and the shape of the original, so a GPTQ folder is compared in the
same way as a plain one. The comparison is that of loading: renamed tensors, fused experts and tied weights
count as loading counts them. It goes on after each difference.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from qcore.layers.text_part import output_head
from qcore.models.assembly import empty_model, fit
from qcore.models.config import to_transformers
from qcore.models.config_limits import check_against
from qcore.models.headers import TensorInfo
from qcore.verbs.audit_weights import StoredWeight

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_EXPERT = re.compile(r"(.*\.experts)\.(\d{1,5})\.(.*)")
_COUNTS = ("num_local_experts", "num_experts", "n_routed_experts")
# (beginning of a stored name, what stands in its place in the model)
PREFIXES = (
    ("", "model."),
    ("", "transformer."),
    ("", "model.language_model."),
    ("model.", ""),
    ("transformer.", ""),
    ("model.model.", "model."),
    ("model.language_model.", "model."),
    ("language_model.model.", "model."),
    ("language_model.", ""),
    ("module.", ""),
    ("base_model.model.", ""),
    ("_orig_mod.", ""),
)
_FEW, _MOST = 0.25, 0.75  # shares of the model's names that are found with a wrong and with the right prefix
_PARTS = (".qweight", ".weight_packed")
_OTHER_PARTS = re.compile(
    r"\.(qzeros|scales|g_idx|weight_scale|weight_shape|weight_zero_point|weight_g_idx|biases|SCB|weight_format"
    r"|weight_scale_inv)$|\.weight\.(absmax|quant_map|nested_absmax|nested_quant_map|quant_state\..*)$"
)


@dataclass(frozen=True)
class Prefix:
    """Stored names begin with `stored` where the model's begin with `wanted`. `bridged`: the checkpoint holds
    the bare decoder, as some are published, and loading adds the prefix."""

    stored: str
    wanted: str
    bridged: bool


@dataclass(frozen=True)
class Structure:
    """The comparison. `model` is on the meta device; `missing` are its parameters without a stored weight,
    `unclaimed` stored weights without a place, `mismatched` (name, stored shape, the model's shape),
    `experts` names of absent experts. `head` is the output head's parameter (None without a head), `tied`
    the tie flag, and `head_stored` and `embedding_stored` the stored weights of both."""

    model: PreTrainedModel
    missing: tuple[str, ...]
    unclaimed: tuple[str, ...]
    mismatched: tuple[tuple[str, tuple[int, ...], tuple[int, ...]], ...]
    experts: tuple[str, ...]
    prefix: Prefix | None
    tied: bool
    head: str | None
    embedding: str
    head_stored: StoredWeight | None
    embedding_stored: StoredWeight | None

    @property
    def parameters(self) -> int:
        """The number of the model's weights, a tied matrix once."""
        return sum(parameter.numel() for parameter in self.model.parameters())

    @property
    def linear(self) -> list[str]:
        """The names of the linear layers, in the model's order."""
        from torch import nn
        from transformers.pytorch_utils import Conv1D

        return [name for name, module in self.model.named_modules() if isinstance(module, nn.Linear | Conv1D)]

    def in_model(self, stored: str) -> str:
        """Return the model's name of a stored weight or module, with the prefix put right."""
        return _renamed(stored, self.prefix)


def compare(config: dict, weights: Sequence[StoredWeight], *, absent: Iterable[str] = ()) -> Structure:
    """Return the comparison of `weights` with the architecture of the checked `config`. `absent` are names of
    tensors in files that could not be read; their weights do not count as missing.

    Raise `InputError` if the architecture is not known, or its loader refuses such weights.
    """
    plain = {
        key: value
        for key, value in config.items()
        if key not in ("auto_map", "quantization", "compression_config", "quantization_config")
    }
    by_name = {weight.name: weight for weight in weights}
    check_against(
        plain,
        {
            name: TensorInfo("F32", weight.shape or (weight.nbytes * 2,), 0, "", 0)
            for name, weight in by_name.items()
        },
    )
    bare = empty_model(to_transformers(plain), meta_buffers=True)
    wanted = {name: tuple(tensor.shape) for name, tensor in bare.state_dict().items()}
    logical = [_logical(name) for name in absent]
    prefix = _prefix([*by_name, *filter(None, logical)], wanted, bare.base_model_prefix)
    shapes: dict[str, tuple[int, ...]] = {}
    for name, weight in by_name.items():
        renamed = _renamed(name, prefix)
        shape = weight.shape if weight.shape is not None else wanted.get(renamed)
        if weight.quantized and shape is not None and shape[::-1] == wanted.get(renamed):
            shape = shape[::-1]  # GPT-2's layers are transposed, their codes are not
        if shape is not None:
            shapes[renamed] = shape
    for name in filter(None, logical):
        renamed = _renamed(name, prefix)
        if (shape := wanted.get(renamed) or _of_sibling(renamed, shapes)) is not None:
            shapes[renamed] = shape
    experts = _absent_experts(shapes, bare.config.get_text_config())
    shapes |= experts
    found = fit(plain, shapes)
    stored_as = {_renamed(name, prefix): name for name in by_name}
    head, embedding = _ends(found.model)
    return Structure(
        found.model,
        tuple(name for name in found.missing if name != head),
        tuple(sorted(stored_as[name] for name in found.unexpected if name in stored_as)),
        found.mismatched,
        tuple(sorted(experts)),
        prefix,
        bool(getattr(found.model.config.get_text_config(), "tie_word_embeddings", False)),
        head,
        embedding,
        by_name.get(stored_as.get(head or "", "")),
        by_name.get(stored_as.get(embedding, "")),
    )


def _logical(stored: str) -> str | None:
    """Return the weight's name for the name of a stored tensor; None for scales and other parts."""
    if _OTHER_PARTS.search(stored):
        return None
    for suffix in _PARTS:
        if stored.endswith(suffix):
            return stored.removesuffix(suffix) + ".weight"
    return stored


def _renamed(name: str, prefix: Prefix | None) -> str:
    if prefix is None or not name.startswith(prefix.stored):
        return name
    if name.startswith(("lm_head.", "score.")) or (not prefix.stored and name.startswith(prefix.wanted)):
        return name
    return prefix.wanted + name.removeprefix(prefix.stored)


def _prefix(stored: Sequence[str], wanted: Mapping[str, object], base: str) -> Prefix | None:
    """Return the change of prefix with which the stored names are the model's; None if they are already, or
    no change does it."""
    names = [name for name in wanted if not name.startswith("lm_head.")]
    if not names:
        return None

    def share(prefix: Prefix | None) -> float:
        found = {_renamed(name, prefix) for name in stored}
        return sum(name in found for name in names) / len(names)

    if share(None) > _FEW:
        return None
    for old, new in PREFIXES:
        candidate = Prefix(old, new, False)
        if share(candidate) > _MOST:
            headless = not any(name.startswith("lm_head.") for name in stored)
            return Prefix(old, new, old == "" and new == f"{base}." and headless)
    return None


def _of_sibling(name: str, shapes: Mapping[str, tuple[int, ...]]) -> tuple[int, ...] | None:
    """Return the shape of a tensor whose name differs in numbers only."""
    pattern = re.compile(re.sub(r"\\?\.\d+(?=\\?\.)", r"\\.\\d+", re.escape(name)))
    return next((shape for other, shape in shapes.items() if pattern.fullmatch(other)), None)


def _absent_experts(shapes: Mapping[str, tuple[int, ...]], config: object) -> dict[str, tuple[int, ...]]:
    """Return the names of weights of experts that are not there, with the shape of their siblings. Experts
    that are stored as one tensor are not looked at."""
    families: dict[str, dict[int, dict[str, tuple[int, ...]]]] = {}
    for name, shape in shapes.items():
        if match := _EXPERT.fullmatch(name):
            families.setdefault(match[1], {}).setdefault(int(match[2]), {})[match[3]] = shape
    stated = next((getattr(config, key) for key in _COUNTS if isinstance(getattr(config, key, None), int)), 0)
    absent: dict[str, tuple[int, ...]] = {}
    for prefix, members in families.items():
        suffixes: dict[str, tuple[int, ...]] = {}
        for member in members.values():
            suffixes |= member
        for number in range(max(stated, max(members) + 1)):
            for suffix, shape in suffixes.items():
                if suffix not in members.get(number, {}):
                    absent[f"{prefix}.{number}.{suffix}"] = shape
    return absent


def _ends(model: PreTrainedModel) -> tuple[str | None, str]:
    """Return the names of the parameters of the output head (None without one) and of the embedding."""
    modules = {id(module): name for name, module in model.named_modules()}
    head, embedding = output_head(model), model.get_input_embeddings()
    return (
        None if head is None or id(head) not in modules else f"{modules[id(head)]}.weight",
        f"{modules[id(embedding)]}.weight",
    )
