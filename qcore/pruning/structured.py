"""Structured pruning: neurons, heads or whole layers are removed. The result is an ordinary, smaller model,
faster with ordinary kernels.

    neurons    of each MLP, those that contribute least to the down projection
    heads      of each attention, the key-value groups (all query heads that share keys and values) that
               contribute least to the output projection's output
    layers     those that change the hidden states least: 1 − cosine of a block's input and output, mean over
               tokens ("block influence", ShortGPT, arXiv 2403.03853)

With H = Σ x xᵀ over the inputs of the projection W on calibration text, columns P contribute tr(W_P H_PP
W_Pᵀ). Each token's output is divided by the norm of its hidden state, as the next norm does anyway: otherwise
a few tokens, thousands of times larger than the others, would decide alone. The columns S that stay
compensate for the pruned ones, R, by least squares (as OBS does for whole layers, arXiv 2203.07259): W_S +
W_R H_RS (H_SS + damping)⁻¹. Later layers read the outputs of the pruned ones before them.

Every layer loses the same number of neurons or groups, so that the model's config can express it, and the
saved folder loads wherever a model of that architecture does.
"""

from __future__ import annotations

from collections.abc import Sequence
from copy import deepcopy
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from qcore.base.errors import InputError
from qcore.base.progress import Progress
from qcore.base.registry import unknown
from qcore.layers.text_part import computing_type
from qcore.models import shorter
from qcore.models.assembly import empty_model
from qcore.quantization.calibration.blocks import Blocks
from qcore.quantization.calibration.inputs import Moments
from qcore.quantization.calibration.states import State
from qcore.quantization.methods.gptq import damped

if TYPE_CHECKING:
    from transformers import PreTrainedModel

METHODS = ("neurons", "heads", "layers")
_MLPS = (("gate_proj", "up_proj", "down_proj"), ("c_fc", "c_proj"), ("fc1", "fc2"), ("up_proj", "down_proj"))
_WIDTHS = ("intermediate_size", "n_inner", "ffn_dim")


@dataclass(frozen=True)
class Cut:
    """The pruning `method` and the share of each layer's neurons or key-value groups, or of the layers, to
    prune. Raise `InputError` if invalid."""

    method: str
    share: float

    def __post_init__(self):
        if self.method not in METHODS:
            raise unknown("pruning method", self.method, METHODS)
        if not 0 < self.share < 1:
            raise InputError(
                f"amount is {self.share!r}, but it must be more than 0 and less than 1: the share "
                f"of the {self.method} to prune."
            )


@torch.no_grad()
def cut(
    model: PreTrainedModel, what: Cut, ids: torch.Tensor, progress: Progress
) -> tuple[PreTrainedModel, dict]:
    """Return a smaller model with the weights of `model` that stay, and a record of the pruning. `ids`
    (windows, T) are read for the scores.

    Raise `InputError` for an unsupported architecture, or an amount that removes everything or nothing.
    """
    if what.method == "layers":
        influence = layer_influence(model, ids, progress)
        count = len(influence) - _part(what, len(influence), "layers")
        kept = sorted(sorted(range(len(influence)), key=lambda i: -influence[i])[:count])
        return with_layers(model, kept), {"kept_layers": kept, "influence": influence}
    return _narrow(model, what, ids, progress)


def with_layers(model: PreTrainedModel, kept: list[int]) -> PreTrainedModel:
    """Return a model of the blocks `kept`, in this order, with everything else of `model`. Raise `InputError`
    if its class cannot do without the others."""
    blocks = Blocks(model)
    try:
        config = shorter.with_layers(model.config, kept)
        own = empty_model(config, meta_buffers=True).state_dict()
    except Exception as error:  # classes of configs and models may raise anything
        raise InputError(f"{type(model).__name__} cannot do without the other layers: {error}.") from error
    places = {str(i): str(place) for place, i in enumerate(kept)}
    state = {}
    for name, tensor in model.state_dict().items():
        if not name.startswith(f"{blocks.name}."):
            state[name] = tensor
            continue
        number, _, rest = name.removeprefix(f"{blocks.name}.").partition(".")
        if number in places:
            state[f"{blocks.name}.{places[number]}.{rest}"] = tensor
    for name in state.keys() & own.keys():
        state[name] = _of_layers(state[name], own[name].shape, len(blocks), kept)
    return _build(model, config, state)


def _of_layers(tensor: torch.Tensor, shape: Sequence[int], total: int, kept: list[int]) -> torch.Tensor:
    """Return the part of the layers `kept` of a tensor outside the blocks that holds a part for each of the
    `total` layers, such as Gemma 4's inputs per layer; `shape` is that of the part."""
    for axis, (found, wanted) in enumerate(zip(tensor.shape, shape, strict=True)):
        if found != wanted:
            layers = tensor.unflatten(axis, (total, -1)).index_select(
                axis, torch.tensor(kept).to(tensor.device)
            )
            tensor = layers.flatten(axis, axis + 1)
    return tensor


def layer_influence(model: PreTrainedModel, ids: torch.Tensor, progress: Progress) -> list[float]:
    """Return 1 − cosine of each block's input and output, mean over the tokens of `ids` (windows, T)."""
    blocks = Blocks(model)
    hidden, found = blocks.embed(ids), []
    for position in range(len(blocks)):
        progress(position, len(blocks), f"scoring layer {position + 1} of {len(blocks)}")
        after = [blocks.run(position, state) for state in hidden]
        cosines = [
            nn.functional.cosine_similarity(a.hidden, b.hidden, dim=-1).mean()
            for a, b in zip(hidden, after, strict=True)
        ]
        found.append(1 - float(torch.stack(cosines).mean()))
        hidden = after
    return found


def _part(what: Cut, total: int, name: str) -> int:
    """Return how many of `total` to prune: at least one, and one stays."""
    count = round(what.share * total)
    if not 0 < count < total:
        raise InputError(
            f"{what.share:g} of {total} {name} is {'none' if not count else 'all'} of "
            "them. Choose another amount."
        )
    return count


def _narrow(
    model: PreTrainedModel, what: Cut, ids: torch.Tensor, progress: Progress
) -> tuple[PreTrainedModel, dict]:
    blocks = Blocks(model)
    config, state = deepcopy(model.config), dict(model.state_dict())
    text = config.get_text_config()
    hidden, size, kept = blocks.embed(ids), 0, []
    for position, block in enumerate(blocks.modules):
        progress(position, len(blocks), f"scoring {what.method} of layer {position + 1} of {len(blocks)}")
        plan = _neurons(block) if what.method == "neurons" else _heads(block, text)
        last = block.get_submodule(plan.out)
        weight, given = _matrix(last).float(), _given(blocks, position, last, hidden)
        parts = _parts(weight, given, plan.width_in)
        size = len(parts) - _part(
            what, len(parts), what.method if what.method == "neurons" else "key-value groups"
        )
        stays = parts.topk(size).indices.sort().values
        kept.append(stays.tolist())
        for name, width in plan.rows.items():
            _cut_rows(
                state, f"{blocks.name}.{position}.{name}", block.get_submodule(name), _spread(stays, width)
            )
        columns = _spread(stays, plan.width_in)
        left = _refitted(weight, given, columns)
        state[f"{blocks.name}.{position}.{plan.out}.weight"] = _like(last, left)
        hidden = _run_with(
            blocks, position, last, torch.zeros_like(weight).index_copy_(1, columns, left), hidden
        )
    if what.method == "neurons":
        setattr(text, next(name for name in _WIDTHS if hasattr(text, name)), size)
    else:
        shared = text.num_attention_heads // _groups(text)
        text.head_dim = _head_size(text)
        text.num_attention_heads, text.num_key_value_heads = size * shared, size
    return _build(model, config, state), {
        f"kept_{'neurons' if what.method == 'neurons' else 'groups'}": size,
        "kept": kept,
    }


def _given(blocks: Blocks, position: int, last: nn.Module, hidden: list[State]) -> torch.Tensor:
    """Return twice the mean x xᵀ (K, K) of the input of a block's module `last`, each token's x divided by
    the norm of its hidden state."""
    moments, seen = Moments.empty(_matrix(last).shape[1], hidden[0].device), []
    hook = last.register_forward_pre_hook(lambda module, given: seen.append(given[0].flatten(0, -2).float()))
    try:
        for state in hidden:
            sizes = blocks.run(position, state).hidden.flatten(0, -2).float().norm(dim=1, keepdim=True)
            moments.add(seen.pop(), weight=sizes.clamp_min(1e-12).reciprocal())
    finally:
        hook.remove()
    return moments.hessian


def _parts(weight: torch.Tensor, given: torch.Tensor, width: int) -> torch.Tensor:
    """Return tr(W_P H_PP W_Pᵀ) per part P of `width` columns of `weight` (N, K), with H `given` (K, K)."""
    columns = weight.unflatten(1, (-1, width))
    among = given.unflatten(1, (-1, width)).unflatten(0, (-1, width)).diagonal(dim1=0, dim2=2)
    return torch.einsum("npi,ijp,npj->p", columns, among, columns)


def _refitted(weight: torch.Tensor, given: torch.Tensor, columns: torch.Tensor) -> torch.Tensor:
    """Return `columns` of `weight` (N, K), corrected by least squares for the pruned ones."""
    gone = torch.ones(weight.shape[1], dtype=torch.bool).index_fill_(0, columns, False).nonzero().flatten()
    lost = weight[:, gone] @ given[gone][:, columns]
    factor = torch.linalg.cholesky(damped(given[columns][:, columns]))
    return weight[:, columns] + torch.cholesky_solve(lost.T, factor).T


def _run_with(
    blocks: Blocks, position: int, module: nn.Module, weight: torch.Tensor, hidden: list[State]
) -> list[State]:
    """Return the states after a block while its `module` has another `weight` (N, K)."""
    before = module.weight.data
    module.weight.data = _like(module, weight)
    try:
        return [blocks.run(position, state) for state in hidden]
    finally:
        module.weight.data = before


@dataclass(frozen=True)
class _Plan:
    """Modules whose `rows` belong to the parts, with the rows per part; `out` reads them, `width_in` columns
    per part."""

    rows: dict[str, int]
    out: str
    width_in: int


def _neurons(block: nn.Module) -> _Plan:
    for name, module in block.named_modules():
        for names in _MLPS:
            if all(isinstance(getattr(module, each, None), nn.Linear | Conv1D) for each in names):
                prefix = f"{name}." if name else ""
                return _Plan({f"{prefix}{each}": 1 for each in names[:-1]}, f"{prefix}{names[-1]}", 1)
    raise InputError(
        "The MLPs of this model are not of a known form (experts, for example), so their "
        "neurons cannot be cut. Prune layers."
    )


def _heads(block: nn.Module, config) -> _Plan:
    for name, module in block.named_modules():
        names = ("q_proj", "k_proj", "v_proj", "o_proj")
        if all(isinstance(getattr(module, each, None), nn.Linear) for each in names):
            size, shared = _head_size(config), config.num_attention_heads // _groups(config)
            rows = {f"{name}.q_proj": shared * size, f"{name}.k_proj": size, f"{name}.v_proj": size}
            return _Plan(rows, f"{name}.o_proj", shared * size)
    raise InputError(
        "The attention of this model has no separate query, key and value projections, and "
        "its config ties the heads' size to their "
        "number, so heads cannot be cut. Prune neurons or layers."
    )


def _groups(config) -> int:
    return getattr(config, "num_key_value_heads", None) or config.num_attention_heads


def _head_size(config) -> int:
    return getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads


def _spread(stays: torch.Tensor, width: int) -> torch.Tensor:
    """Return the indices of all rows of the parts that stay."""
    return (stays[:, None] * width + torch.arange(width)).flatten()


def _matrix(module: Any) -> torch.Tensor:
    """Return the weight (N, K)."""
    return module.weight.detach().T if isinstance(module, Conv1D) else module.weight.detach()


def _cut_rows(state: dict, name: str, module: Any, rows: torch.Tensor) -> None:
    axis = 1 if isinstance(module, Conv1D) else 0
    state[f"{name}.weight"] = module.weight.detach().index_select(axis, rows)
    if module.bias is not None:
        state[f"{name}.bias"] = module.bias.detach()[rows]


def _like(module: Any, weight: torch.Tensor) -> torch.Tensor:
    """Return the matrix `weight` (N, K) in the layout of `module`."""
    return (weight.T if isinstance(module, Conv1D) else weight).to(module.weight.dtype).contiguous()


def _build(model: PreTrainedModel, config, state: dict[str, torch.Tensor]) -> PreTrainedModel:
    """Return a model like `model` with the given config and weights."""
    smaller = empty_model(config, dtype=computing_type(model))
    smaller.load_state_dict({name: tensor.contiguous() for name, tensor in state.items()}, assign=True)
    smaller.tie_weights()
    smaller.generation_config = deepcopy(model.generation_config)
    return smaller.requires_grad_(False)
