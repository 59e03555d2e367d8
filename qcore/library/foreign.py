"""Models that other projects quantized, loaded with the codes that their files hold.

The weights come as a list of `StoredWeight`s (`models/gguf_weights.py`, `models/foreign_folder.py`). Codes
become the modules that qcore's own recipes make, so kernels, evaluation and measurement treat them alike. A
weight whose codes no format or module of qcore holds is dequantized by itself, and its row of the ledger says
so. Sizes in the ledger are those of the file.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from qcore.base.errors import InputError
from qcore.base.files import expanded
from qcore.base.progress import Progress
from qcore.formats.packing import pack
from qcore.formats.tensor import QuantizedTensor
from qcore.formats.uniform import Uniform
from qcore.layers.inventory import dtype_name, inventory
from qcore.layers.modules import QuantizedModule
from qcore.layers.select import Target, select
from qcore.library.finite import require_finite
from qcore.measurement.memory import give_back
from qcore.models import foreign_folder, gguf_header, gguf_weights
from qcore.models.assembly import empty_model, meta_model
from qcore.models.checkpoint import GGUF, Checkpoint
from qcore.models.config import to_transformers
from qcore.models.mapping import aligned
from qcore.models.stored import StoredWeight, Widened
from qcore.quantization.convert import install, run_whole_steps
from qcore.recipes import FILE, Modules, Recipe, Saved
from qcore.recipes.ledger import Ledger, LedgerRow

if TYPE_CHECKING:
    from transformers import PreTrainedModel

# Selects every parameter that a module with codes can replace; its format is not used.
_EVERY = Recipe(
    "every", Uniform(8, None, symmetric=True), "rtn", "int16", Modules(head="same", embeddings="same")
)


@dataclass
class _Parameter:
    """The stored weights of one parameter; `reason` says why it has no codes in the model, or what it is."""

    weights: list[StoredWeight] = field(default_factory=list)
    own_reason: str | None = None

    @property
    def has_codes(self) -> bool:
        """Whether all its weights are read as codes."""
        return all(weight.has_codes for weight in self.weights)

    @property
    def quantized(self) -> bool:
        """Whether one of its weights is of a quantized type."""
        return any(weight.quantized for weight in self.weights)

    @property
    def kind(self) -> str:
        """The names of its stored types."""
        return " + ".join(dict.fromkeys(weight.kind for weight in self.weights))

    @property
    def reason(self) -> str | None:
        """The note of its row in the ledger."""
        reasons = [weight.reason for weight in self.weights if weight.reason]
        if self.own_reason or reasons:
            return self.own_reason or reasons[0]
        return None if self.quantized else f"Stored as {self.kind}."

    @property
    def nbytes(self) -> int:
        """Bytes in the file."""
        return sum(weight.nbytes for weight in self.weights)


def load(checkpoint: Checkpoint, progress: Progress | None = None) -> tuple[PreTrainedModel, Ledger, Recipe]:
    """Return the model of `checkpoint` with its own codes, its ledger, and a recipe named after the file.

    Raise `InputError` for a parameter without weights, for an expert that is missing, and for weights that
    cannot be read.
    """
    model, ledger = _load(checkpoint, progress, widen=False)
    run_whole_steps(model)
    recipe = Recipe(FILE + Path(checkpoint.name).name, Saved(checkpoint.name))
    return model.eval(), replace(ledger, recipe=recipe.name), recipe


def values(checkpoint: Checkpoint, progress: Progress | None = None) -> PreTrainedModel:
    """Return the model of `checkpoint` with the values of its weights, in fp32. Raise `InputError` as `load`
    does."""
    model, _ = _load(checkpoint, progress, widen=True)
    return model.eval()


def _load(
    checkpoint: Checkpoint, progress: Progress | None, *, widen: bool
) -> tuple[PreTrainedModel, Ledger]:
    config = to_transformers(checkpoint.config)
    model = empty_model(config)
    found = _by_parameter(stored_weights(checkpoint, model))
    named = {name: (tensor, shared) for name, tensor, shared in inventory(model)}
    if any(name in found and shared in found for name, (_, shared) in named.items()):
        config.tie_word_embeddings = False  # a head that is stored apart has codes or values of its own
        model = empty_model(config)
        named = {name: (tensor, shared) for name, tensor, shared in inventory(model)}
    _check_complete(checkpoint, found, named)
    targets = {target.name: target for target in select(model, _EVERY).targets}
    coded = [name for name, parameter in found.items() if name in targets and parameter.has_codes]
    plain = {
        name: _values(checkpoint, parameter, named[name][0])
        for name, parameter in found.items()
        if name not in coded
    }
    model.load_state_dict(plain, strict=False, assign=True)
    model.tie_weights()
    for i, name in enumerate(coded):
        if progress is not None:
            progress(i, len(coded), f"reading {name}")
        users = [target for target in targets.values() if name in (target.name, named[target.name][1])]
        _fill(checkpoint, model, found[name], users, widen=widen)
        give_back()  # the work space of decoding, about 1 ms per weight
    return model, Ledger(checkpoint.name, tuple(_rows(found, named)))


def stored_weights(checkpoint: Checkpoint, model: PreTrainedModel) -> list[StoredWeight]:
    """Return the weights of `checkpoint`, not yet read, for `model`, which may be on the meta device. Raise
    `InputError` for weights that have no place in the model, or that cannot be read."""
    if checkpoint.foreign == GGUF:
        path = expanded(checkpoint.name).absolute()
        return gguf_weights.weights(path, gguf_header.read(path), model)
    return foreign_folder.weights(checkpoint, model)


def held_bytes(checkpoint: Checkpoint) -> tuple[int, int]:
    """Return (bytes of all weights of `checkpoint` in memory, bytes of codes among them). Values are fp32."""
    weights = stored_weights(checkpoint, meta_model(checkpoint))
    codes = sum(weight.nbytes for weight in weights if weight.has_codes)
    return codes + sum(4 * weight.count for weight in weights if not weight.has_codes), codes


def _by_parameter(weights: Iterable[StoredWeight]) -> dict[str, _Parameter]:
    found: dict[str, _Parameter] = {}
    for weight in weights:
        found.setdefault(weight.parameter, _Parameter()).weights.append(weight)
    return found


def _check_complete(
    checkpoint: Checkpoint, found: dict[str, _Parameter], named: dict[str, tuple[torch.Tensor, str | None]]
) -> None:
    """Raise `InputError` for a parameter, or an expert of one, that the file does not hold."""
    for name, (tensor, shared) in named.items():
        lost = None
        if name in found:
            experts = {weight.expert for weight in found[name].weights} - {None}
            missing = sorted(set(range(tensor.shape[0])) - experts) if experts else []
            lost = f"expert {missing[0]} of {name}" if missing else None
        elif shared is None:
            lost = name
        if lost:
            raise InputError(
                f"{checkpoint.name} lacks the weights of {lost}. Missing weights are never initialised at "
                "random."
            )


# -- one weight ----------------------------------------------------------------------------------------------


def _read(
    checkpoint: Checkpoint, parameter: _Parameter, weight: StoredWeight
) -> QuantizedTensor | torch.Tensor:
    """Return the codes or values of one weight. Raise `InputError` with its name if it cannot be read, or a
    scale or value is not finite."""
    try:
        found = weight.read()
    except InputError as error:
        raise InputError(f"{weight.name} of {checkpoint.name} cannot be read: {error}") from error
    if isinstance(found, Widened):
        parameter.own_reason, found = found.reason, found.values
    if isinstance(found, torch.Tensor):
        require_finite(weight.name, found)
        return found
    for what in (found.scales(), found.minimums()):
        if what is not None and not torch.isfinite(what).all():
            raise InputError(
                f"{weight.name} of {checkpoint.name} has a scale that is not finite, so its weights are not "
                "either. Download the file again, or choose another one."
            )
    return found


def _matrices(checkpoint: Checkpoint, parameter: _Parameter) -> list[QuantizedTensor | torch.Tensor]:
    """Return the parameter's matrices, one or one per expert, each put together from its parts. Parts of
    different formats are dequantized."""
    by_expert: dict[int, list[StoredWeight]] = {}
    for weight in parameter.weights:
        by_expert.setdefault(weight.expert or 0, []).append(weight)
    made: list[QuantizedTensor | torch.Tensor] = []
    for _, members in sorted(by_expert.items()):
        parts = [_read(checkpoint, parameter, each) for each in sorted(members, key=lambda each: each.part)]
        codes = [each for each in parts if isinstance(each, QuantizedTensor)]
        if len(codes) == len(parts) and len({each.format for each in codes}) == 1:
            made.append(stacked(codes))
        else:
            floats = [_floats(each) for each in parts]
            made.append(floats[0] if len(floats) == 1 else torch.cat(floats))  # cat copies even one
    return made


def stacked(weights: Sequence[QuantizedTensor]) -> QuantizedTensor:
    """Return the rows of several weights of one format and width as one weight, with the same codes."""
    if len(weights) == 1:
        return weights[0]
    first, rows = weights[0], sum(weight.shape[0] for weight in weights)
    parts = {
        name: torch.cat([getattr(weight, name) for weight in weights]) if first.is_stored(name) else part
        for name, part in first.parts().items()
    }
    if first.zero_point is not None:  # packed without regard to rows
        zeros = torch.cat([torch.as_tensor(weight.zero_points()) for weight in weights])
        parts["zero_point"] = pack(zeros.to(torch.uint8).flatten(), first.format.bits)
    return QuantizedTensor(first.format, (rows, first.shape[1]), **parts)


def _floats(weight: QuantizedTensor | torch.Tensor) -> torch.Tensor:
    if isinstance(weight, QuantizedTensor):
        return weight.dequantize()
    return weight.to(torch.float32) if weight.is_floating_point() else weight


def _values(checkpoint: Checkpoint, parameter: _Parameter, like: torch.Tensor) -> torch.Tensor:
    """Return the values of a parameter that stays without codes, in the shape of `like`."""
    matrices = [_floats(matrix) for matrix in _matrices(checkpoint, parameter)]
    fused = parameter.weights[0].expert is not None
    if parameter.has_codes and parameter.own_reason is None:
        parameter.own_reason = "Dequantized to fp32: the model computes with it outside of linear layers."
    values = torch.stack(matrices) if fused else matrices[0]
    if values.shape != like.shape:
        raise InputError(
            f"{parameter.weights[0].name} of {checkpoint.name} has the shape {tuple(values.shape)}, but its "
            f"config.json demands {tuple(like.shape)}."
        )
    return aligned(values)


def _fill(
    checkpoint: Checkpoint,
    model: PreTrainedModel,
    parameter: _Parameter,
    users: Sequence[Target],
    *,
    widen: bool,
) -> None:
    """Install the codes of a parameter in all modules that use it; its values if its parts have different
    formats, or with `widen`."""
    matrices = _matrices(checkpoint, parameter)
    count, *shape = users[0].shape(model)
    if len(matrices) != count or any(list(matrix.shape) != shape for matrix in matrices):
        raise InputError(
            f"{parameter.weights[0].name} of {checkpoint.name} has the shape {tuple(matrices[0].shape)}, but "
            f"its config.json demands {tuple(shape)}."
        )
    codes = [matrix for matrix in matrices if isinstance(matrix, QuantizedTensor) and not widen]
    if len(codes) < len(matrices):
        parameter.own_reason = (
            parameter.own_reason
            or "Dequantized to fp32: the matrices that the model joins have different types."
        )
        users[0].put(model, [_floats(matrix) for matrix in matrices])
        model.tie_weights()
        return
    for target in users:
        install(model, target, codes)
        module = model.get_submodule(target.module)
        if isinstance(module, QuantizedModule) and module.reason_for_reference() is None:
            module.executable()  # packed now, so that the codes of the whole model are never held twice


def _rows(
    found: dict[str, _Parameter], named: dict[str, tuple[torch.Tensor, str | None]]
) -> Iterator[LedgerRow]:
    """Return the ledger's rows, with the sizes in the file."""
    for name, (tensor, shared) in named.items():
        parameter = found[name] if name in found else found[shared or ""]
        alone = name in found
        yield LedgerRow(
            name=name,
            shape=tuple(tensor.shape),
            dtype=dtype_name(tensor.dtype),
            format=parameter.kind if parameter.quantized else None,
            bytes_before=tensor.nbytes if alone else 0,
            bytes_after=parameter.nbytes if alone else 0,
            weights=tensor.numel(),
            reason=parameter.reason if alone else f"Shares the codes of {shared}.",
            shares=None if alone else shared,
        )
