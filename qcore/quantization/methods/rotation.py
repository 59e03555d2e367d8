"""Rotation of the residual stream: outliers of a few channels are spread over all of them, and the model
computes the same function.

For an orthogonal R, RMSNorm without a weight commutes with it:  norm(x R) = norm(x) R.  So (QuaRot, arXiv
2404.00456; SliceGPT)

    norms' weights are multiplied into the columns of the layers that read them, and become 1
    the embedding, and every layer that writes to the stream:   W ← Rᵀ W   (rows are outputs)
    every layer that reads the stream, and the head:            W ← W R

R is a randomised Hadamard matrix: random signs, then H of the largest power of two that divides the width, ⊗
a random orthogonal matrix of what is left (1 for widths that are powers of two). A head that is tied to the
embedding must become a matrix of its own, because the last norm's weight goes into the one and not into the
other: those bytes are counted.

Which layers read and which write is found by running the model, and the result is compared with the model as
it was: what does not compute the same is refused, untouched models included (LayerNorm subtracts a mean,
which R does not commute with).
"""

import torch
from torch import nn

from qcore.base.errors import InputError

TOLERANCE = 1e-4  # of the logits, relative


def orthogonal(width: int, seed: int = 0) -> torch.Tensor:
    """R (width, width), float64; R Rᵀ = 1."""
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
def rotate(model: nn.Module, seed: int = 0) -> dict[str, str]:
    """Rotate `model` in place. Returns {parameter name: what became of it} for those that no recipe would
    name.

    Raises `InputError` for a model whose residual stream is not normalised by RMSNorm alone, or that does not
    compute the same.
    """
    embedding, head = model.get_input_embeddings(), model.get_output_embeddings()
    width = embedding.weight.shape[1]
    if head is None or head.weight.shape[1] != width:
        raise _refusal(model, "its output head does not read the residual stream")
    probe = torch.arange(2, 2 + 16).remainder(embedding.weight.shape[0])[None]
    norms, readers = _readers(model, probe, width)
    if not any(head is layer for layers in readers.values() for layer in layers):
        raise _refusal(model, "its last norm does not feed the head")
    before = model(input_ids=probe, use_cache=False).logits
    tied = head.weight is embedding.weight
    if tied:
        head.weight = nn.Parameter(head.weight.detach().clone(), requires_grad=False)
        model.config.get_text_config().tie_word_embeddings = model.config.tie_word_embeddings = False
    matrix = orthogonal(width, seed).to(embedding.weight.device)
    changed = {}
    reading: set[nn.Module] = set()
    for name, norm in norms.items():
        gain = _gain(norm, width)
        for layer in readers[name]:
            _columns(layer, matrix, gain)
        reading |= set(readers[name])
        _make_plain(norm, width)
        changed[f"{name}.weight"] = "Multiplied into the layers that read it, for the rotation."
    _set(embedding, "weight", (embedding.weight.double() @ matrix).float())
    for module in _writers(model, width, reading):
        _rows(module, matrix)
    error = float((model(input_ids=probe, use_cache=False).logits - before).norm() / before.norm())
    if not error < TOLERANCE:
        raise _refusal(model, f"its logits would change by {error:.1%}")
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    changed[names[id(embedding.weight)]] = "Rotated with the residual stream."
    own = " It was tied to the embedding and is a matrix of its own now." if tied else ""
    changed[names[id(head.weight)]] = f"Rotated with the residual stream.{own}"
    return changed


def _readers(
    model: nn.Module, probe: torch.Tensor, width: int
) -> tuple[dict[str, nn.Module], dict[str, list[nn.Module]]]:
    """The norms of the stream by name, and the modules that are given each one's output."""
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
    """Names of the module's own weights that multiply what it is given."""
    if isinstance(module, nn.Embedding):
        return []
    return [name for name, parameter in module.named_parameters(recurse=False) if parameter.ndim > 1]


def _writers(model: nn.Module, width: int, reading: set[nn.Module]) -> list[nn.Module]:
    """Modules inside the blocks whose outputs are added to the stream: those that read none of it and put out
    its width."""
    found = []
    for module in model.modules():
        writes = isinstance(module, nn.Linear) and module not in reading and module.weight.shape[0] == width
        if writes or (hasattr(module, "is_transposed") and hasattr(module, "down_proj")):
            found.append(module)
    return found


def _columns(layer: nn.Module, matrix: torch.Tensor, gain: torch.Tensor) -> None:
    """W ← W · diag(gain) · R for what `layer` reads with: a linear layer, a router, or the first matrices of
    fused experts."""
    for name in _matrices(layer):
        if name.startswith("down_proj"):
            continue
        weight = getattr(layer, name).double()
        if getattr(layer, "is_transposed", False):
            weight = weight.transpose(-1, -2)
        turned = (weight * gain.double()) @ matrix
        turned = turned.transpose(-1, -2) if getattr(layer, "is_transposed", False) else turned
        _set(layer, name, turned.float().contiguous())


def _rows(module: nn.Module, matrix: torch.Tensor) -> None:
    """W ← Rᵀ · W, and the same for a bias."""
    name = "weight" if isinstance(module, nn.Linear) else "down_proj"
    weight = getattr(module, name).double()
    turned = (weight @ matrix) if getattr(module, "is_transposed", False) else matrix.T @ weight
    _set(module, name, turned.float().contiguous())
    bias = getattr(module, "bias" if name == "weight" else "down_proj_bias", None)
    if bias is not None:
        _set(module, "bias" if name == "weight" else "down_proj_bias", (bias.double() @ matrix).float())


def _gain(norm: nn.Module, width: int) -> torch.Tensor:
    """What the norm multiplies each channel with: its weight, or 1 + its weight in some architectures."""
    ones = torch.ones(1, 1, width, device=norm.weight.device)
    return norm(ones)[0, 0]


def _make_plain(norm: nn.Module, width: int) -> None:
    for value in (1.0, 0.0):
        _set(norm, "weight", torch.full_like(norm.weight, value))
        if torch.allclose(_gain(norm, width), torch.ones(width, device=norm.weight.device), atol=1e-4):
            return


def _set(module: nn.Module, name: str, value: torch.Tensor) -> None:
    setattr(module, name, nn.Parameter(value, requires_grad=False))


def _refusal(model: nn.Module, why: str) -> InputError:
    return InputError(
        f"{type(model).__name__} cannot be rotated: {why}. Choose the same recipe without rot-."
    )
