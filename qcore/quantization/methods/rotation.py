"""Rotation of the residual stream: spread the outliers of a few channels over all channels, without changing
the function of the model.

RMSNorm without a weight commutes with an orthogonal R:  norm(x R) = norm(x) R.  So (QuaRot, arXiv 2404.00456,
computational invariance of SliceGPT, arXiv 2401.15024)

    a norm's weight is multiplied into the columns of the layers that read the norm, and becomes 1
    the embedding, and every layer that writes to the stream:   W ← Rᵀ W   (rows are outputs)
    every layer that reads the stream, and the head:            W ← W R

R is a randomized Hadamard matrix: random signs, times the Hadamard matrix of the largest power of two that
divides the width, ⊗ a random orthogonal matrix of the remaining factor (1 if the width is a power of two). A
head tied to the embedding becomes a matrix of its own, because the last norm's weight is multiplied into the
head but not into the embedding; its bytes are counted.

Readers and writers of the stream are found by running the model. The rotated model must reproduce the
original logits; otherwise `InputError` is raised, and the model is unchanged. Models with LayerNorm fail,
because it subtracts a mean, which does not commute with R.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from qcore.base.errors import InputError
from qcore.layers.text_part import text_part

if TYPE_CHECKING:
    from transformers import PreTrainedModel

TOLERANCE = 1e-4  # relative change of the logits
Change = Callable[[torch.Tensor], torch.Tensor]  # from a parameter to its rotated form


def orthogonal(width: int, seed: int = 0) -> torch.Tensor:
    """Return R (width, width), float64, with R Rᵀ = 1."""
    generator = torch.Generator().manual_seed(seed)
    power = width & -width
    hadamard = torch.ones(1, 1, dtype=torch.float64)
    while len(hadamard) < power:
        hadamard = torch.cat((torch.cat((hadamard, hadamard), 1), torch.cat((hadamard, -hadamard), 1)))
    odd = width // power
    rest = torch.linalg.qr(torch.randn(odd, odd, generator=generator, dtype=torch.float64)).Q
    signs = torch.randint(0, 2, (width, 1), generator=generator, dtype=torch.float64) * 2 - 1
    return signs * torch.kron(hadamard / power**0.5, rest.contiguous())


@torch.no_grad()
def rotate(model: PreTrainedModel, seed: int = 0) -> dict[str, str]:
    """Rotate `model` in place (QuaRot, arXiv 2404.00456). Return {parameter name: note} for the ledger, for
    changed parameters that are not quantized.

    Raise `InputError` if the residual stream is not normalized by RMSNorm alone, or if the rotated model does
    not reproduce the original logits; the model is then unchanged.
    """
    text = text_part(model)
    embedding, head = text.embedding, text.head
    if text.towers:
        raise _refusal(model, f"{text.towers[0]} writes into the residual stream, and would stay unrotated")
    width = embedding.weight.shape[1]
    if head is None or head.weight.shape[1] != width:
        raise _refusal(model, "its output head does not read the residual stream")
    probe = torch.arange(2, 2 + 16, device=embedding.weight.device).remainder(len(embedding.weight))[None]
    norms, readers = _readers(model, probe, width)
    if not any(head is layer for layers in readers.values() for layer in layers):
        raise _refusal(model, "its last norm does not feed the head")
    matrix = orthogonal(width, seed).to(embedding.weight.device)
    changes = _changes(model, embedding, norms, readers, matrix)
    _check(model, probe, changes)
    tied = head.weight is embedding.weight
    if tied:
        head.weight = nn.Parameter(head.weight.detach().clone(), requires_grad=False)
        model.config.get_text_config().tie_word_embeddings = model.config.tie_word_embeddings = False
    for module, made in changes.items():
        for name, change in made.items():
            _set(module, name, change(getattr(module, name)))
    changed = {
        f"{name}.weight": "Multiplied into the layers that read the norm, for the rotation." for name in norms
    }
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    changed[names[id(embedding.weight)]] = "Rotated with the residual stream."
    own = " It was tied to the embedding, and is now a separate matrix." if tied else ""
    changed[names[id(head.weight)]] = f"Rotated with the residual stream.{own}"
    return changed


def _readers(
    model: PreTrainedModel, probe: torch.Tensor, width: int
) -> tuple[dict[str, nn.Module], dict[str, list[nn.Module]]]:
    """Return the norms of the residual stream by name, and per norm the modules that read its output."""
    norms = {
        name: module
        for name, module in model.named_modules()
        if "Norm" in type(module).__name__
        and getattr(module, "weight", None) is not None
        and module.weight.shape == (width,)
    }
    if not norms or any(
        "RMSNorm" not in type(norm).__name__ or getattr(norm, "bias", None) is not None
        for norm in norms.values()
    ):
        raise _refusal(model, "its norms are not RMSNorm, which alone commutes with a rotation")
    made: list[tuple[str, torch.Tensor]] = []
    readers: dict[str, list[nn.Module]] = {name: [] for name in norms}

    def note(module, arguments, keywords):
        given = [value for value in (*arguments, *keywords.values()) if isinstance(value, torch.Tensor)]
        for name, output in made:
            if any(
                value.data_ptr() == output.data_ptr() and value.numel() == output.numel() for value in given
            ):
                readers[name].append(module)

    hooks = [
        norm.register_forward_hook(lambda module, arguments, output, name=name: made.append((name, output)))
        for name, norm in norms.items()
    ]
    hooks += [
        module.register_forward_pre_hook(note, with_kwargs=True)
        for module in model.modules()
        if _matrices(module)
    ]
    try:
        model(input_ids=probe, use_cache=False)
    finally:
        for hook in hooks:
            hook.remove()
    return norms, readers


def _matrices(module: nn.Module) -> list[str]:
    """Return the names of the module's own weights that multiply its input."""
    if isinstance(module, nn.Embedding):
        return []
    return [name for name, parameter in module.named_parameters(recurse=False) if parameter.ndim > 1]


def _writers(model: PreTrainedModel, width: int, reading: set[nn.Module]) -> list[nn.Module]:
    """Return the modules whose outputs are added to the stream: those that do not read it and whose output
    has its width."""
    found = []
    for module in model.modules():
        writes = isinstance(module, nn.Linear) and module not in reading and module.weight.shape[0] == width
        if writes or (hasattr(module, "is_transposed") and hasattr(module, "down_proj")):
            found.append(module)
    return found


def _changes(
    model: PreTrainedModel,
    embedding: nn.Module,
    norms: dict[str, nn.Module],
    readers: dict[str, list[nn.Module]],
    matrix: torch.Tensor,
) -> dict[nn.Module, dict[str, Change]]:
    """Return the change of each parameter, per module. The changes are functions, not tensors, because a
    rotated copy of the model would double the memory."""
    width = len(matrix)
    changes: dict[nn.Module, dict[str, Change]] = {
        embedding: {"weight": lambda weight: weight.double() @ matrix}
    }
    for name, norm in norms.items():
        gain, plain = _gain(norm, width), _plain(norm, width)
        changes[norm] = {"weight": partial(torch.full_like, fill_value=plain)}
        for layer in readers[name]:
            changes.setdefault(layer, {}).update(_columns(layer, matrix, gain))
    reading = {layer for layers in readers.values() for layer in layers}
    for module in _writers(model, width, reading):
        changes.setdefault(module, {}).update(_rows(module, matrix))
    return changes


def _check(model: PreTrainedModel, probe: torch.Tensor, changes: dict[nn.Module, dict[str, Change]]) -> None:
    """Raise `InputError` if the rotated model does not reproduce the logits. Each module has its rotated
    parameters only while it runs."""
    before = model(input_ids=probe, use_cache=False).logits
    own: dict[nn.Module, dict[str, nn.Parameter]] = {}

    def swap(module: nn.Module, _) -> None:
        own[module] = {name: getattr(module, name) for name in changes[module]}
        for name, change in changes[module].items():
            _set(module, name, change(own[module][name]))

    def swap_back(module: nn.Module, *_) -> None:
        for name, parameter in own.pop(module, {}).items():
            setattr(module, name, parameter)

    hooks = [module.register_forward_pre_hook(swap) for module in changes]
    hooks += [module.register_forward_hook(swap_back, always_call=True) for module in changes]
    try:
        after = model(input_ids=probe, use_cache=False).logits
    finally:
        for hook in hooks:
            hook.remove()
        for module in list(own):
            swap_back(module)
    error = float((after - before).norm() / before.norm())
    if not error < TOLERANCE:
        raise _refusal(model, f"its logits would change by {error:.1%}")


def _columns(layer: nn.Module, matrix: torch.Tensor, gain: torch.Tensor) -> dict[str, Change]:
    """Return W ← W · diag(gain) · R for the weights by which `layer` multiplies the stream: those of a linear
    layer, a router, or the first matrices of fused experts."""
    transposed = getattr(layer, "is_transposed", False)

    def change(weight: torch.Tensor) -> torch.Tensor:
        weight = weight.double().transpose(-1, -2) if transposed else weight.double()
        rotated = (weight * gain.double()) @ matrix
        return rotated.transpose(-1, -2) if transposed else rotated

    return {name: change for name in _matrices(layer) if not name.startswith("down_proj")}


def _rows(module: nn.Module, matrix: torch.Tensor) -> dict[str, Change]:
    """Return W ← Rᵀ · W for the output weight of `module`, and the same for its bias."""
    name, bias = ("weight", "bias") if isinstance(module, nn.Linear) else ("down_proj", "down_proj_bias")
    transposed = getattr(module, "is_transposed", False)

    def change(weight: torch.Tensor) -> torch.Tensor:
        return weight.double() @ matrix if transposed else matrix.T @ weight.double()

    made: dict[str, Change] = {name: change}
    if getattr(module, bias, None) is not None:
        made[bias] = lambda value: value.double() @ matrix
    return made


def _gain(norm: Any, width: int) -> torch.Tensor:
    """Return the factor (width,) of the norm per channel: its weight, or 1 + its weight in some
    architectures."""
    ones = torch.ones(1, 1, width, device=norm.weight.device)
    return norm(ones)[0, 0]


def _plain(norm: Any, width: int) -> float:
    """Return the weight with which the norm's factor is 1: 1, or 0 in architectures that add 1."""
    own, ones = norm.weight, torch.ones(width, device=norm.weight.device)
    try:
        for value in (1.0, 0.0):
            _set(norm, "weight", torch.full_like(own, value))
            if torch.allclose(_gain(norm, width), ones, atol=1e-4):
                return value
    finally:
        norm.weight = own
    return 0.0  # neither: then `_check` raises


def _set(module: nn.Module, name: str, value: torch.Tensor) -> None:
    setattr(module, name, nn.Parameter(value.float().contiguous(), requires_grad=False))


def _refusal(model: PreTrainedModel, why: str) -> InputError:
    return InputError(
        f"{type(model).__name__} cannot be rotated: {why}. Choose the same recipe without rot-."
    )
