"""A shortened copy of a model for timing: its real classes and shapes, random weights, as many blocks as
memory allows.

For qcore's recipes the codes are random, because kernel time does not depend on them. Other libraries
quantize random fp32 weights themselves. No file of the model is read.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import nn

from qcore.formats.budget import Budget
from qcore.formats.kinds import Format
from qcore.formats.packing import packed_width
from qcore.formats.tensor import QuantizedTensor
from qcore.layers.select import Target, select
from qcore.layers.text_part import output_head, text_part
from qcore.models.assembly import empty_model
from qcore.models.shorter import with_layers
from qcore.quantization.convert import install, quantize, run_whole_steps
from qcore.recipes import Engine, Float, Recipe

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_PATTERN = 1 << 20  # random numbers; larger tensors repeat them


def shortened(config, depth: int):
    """Return a copy of a transformers `config` with only the last `depth` blocks of the text model, which
    represent most of a model."""
    layers = config.get_text_config().num_hidden_layers
    return with_layers(config, range(layers - depth, layers))


def build(config, recipe: Recipe, seed: int = 0) -> PreTrainedModel:
    """Return a model of `config` under `recipe`, in evaluation mode. Raise the errors of quantizing
    (`InputError`, `NotAppliedError`, `UnavailableError`)."""
    generator = torch.Generator().manual_seed(seed)
    model = empty_model(config)
    own = not isinstance(recipe.weights, Engine | Float)
    recipe = recipe.with_modules(towers="keep")  # they do not run
    if own:
        _install_random(model, recipe, generator)
    _fill(model, generator)
    if own:
        run_whole_steps(model)
    elif recipe.name != "fp32":
        quantize(model, recipe)
    return model


def _install_random(model: PreTrainedModel, recipe: Recipe, generator: torch.Generator) -> None:
    if recipe.prepare == "rotation":  # which unties the head
        head, embedding = output_head(model), model.get_input_embeddings()
        if head is not None and head.weight is embedding.weight:
            head.weight = nn.Parameter(embedding.weight.clone(), requires_grad=False)
    made: dict[nn.Parameter, list[QuantizedTensor]] = {}
    for target in select(model, recipe).targets:
        module = model.get_submodule(target.module)
        weight = getattr(module, target.parameter)
        if weight not in made:  # tied weights share their codes
            made[weight] = _random_weights(model, target, generator)
        bias = getattr(module, "bias", None)
        if bias is not None and target.kind in ("linear", "conv1d", "head"):
            module.bias = nn.Parameter(torch.zeros(bias.shape), requires_grad=False)
        install(model, target, made[weight])


def _random_weights(
    model: PreTrainedModel, target: Target, generator: torch.Generator
) -> list[QuantizedTensor]:
    count, rows, columns = target.shape(model)
    format = target.format
    if isinstance(format, Budget):  # what is chosen is not known before
        format = format.largest.for_columns(columns)
    return [random_weight(format, rows, columns, generator) for _ in range(count)]


def random_weight(format: Format, rows: int, columns: int, generator: torch.Generator) -> QuantizedTensor:
    """Return a weight (rows, columns) in `format` with random codes and a small scale."""
    codes = _repeat(
        torch.randint(0, 256, (_PATTERN,), dtype=torch.uint8, generator=generator),
        rows * packed_width(columns, format.bits),
    )
    groups = format.groups(columns)
    scale = torch.full((rows, groups), 1e-3) if format.scaled else None
    zero_point = None
    if format.has_zero_points:
        zero_point = torch.full((rows, groups), 1 << (format.bits - 1), dtype=torch.uint8)
    minimum = torch.full((rows, groups), -1e-3 * (format.levels // 2)) if format.affine else None
    codebook = format.fixed
    if format.learned:
        codebook = torch.linspace(-1, 1, format.levels).half().mul(1e-2)
        if format.group_size is None:
            codebook = codebook.expand(rows, format.levels).contiguous()
    return QuantizedTensor.from_packed(
        format, (rows, columns), codes.view(rows, -1), scale, zero_point, codebook, minimum
    )


def _fill(model: PreTrainedModel, generator: torch.Generator) -> None:
    """Allocate every parameter still on the meta device: vectors get ones, matrices small random numbers, and
    towers, which do not run, zeros without memory of their own."""
    towers = text_part(model)
    pattern = torch.randn(_PATTERN, generator=generator) * 0.02
    filled: dict[nn.Parameter, nn.Parameter] = {}  # so that tied parameters stay one
    for module_name, module in model.named_modules():
        for name, parameter in list(module.named_parameters(recurse=False)):
            if not parameter.is_meta:
                continue
            if towers.tower_of(f"{module_name}.{name}"):
                filled[parameter] = nn.Parameter(torch.zeros(()).expand(parameter.shape), requires_grad=False)
            elif parameter not in filled:
                data = (
                    torch.ones(parameter.shape)
                    if parameter.ndim < 2
                    else _repeat(pattern, parameter.numel()).view(parameter.shape)
                )
                filled[parameter] = nn.Parameter(data, requires_grad=False)
            module.register_parameter(name, filled[parameter])


def _repeat(pattern: torch.Tensor, count: int) -> torch.Tensor:
    """Return the first `count` numbers of `pattern` repeated, as a new tensor."""
    return (
        pattern.repeat(-(-count // len(pattern)))[:count].clone()
        if count > len(pattern)
        else pattern[:count].clone()
    )
