"""Every name of a recipe that parses can choose codes, and what no method can take is refused by name."""

import pytest
import tiny
import torch
from torch import nn

import qcore
from qcore.base.errors import InputError, NotAppliedError
from qcore.formats.kinds import Format
from qcore.formats.uniform import Uniform
from qcore.library import Loaded
from qcore.quantization import methods
from qcore.quantization.convert import quantize
from qcore.recipes import methods as infos
from qcore.recipes import parse
from qcore.recipes.names import known_bases

ALONE = sorted(option for option, info in infos.options().items() if not info.needs_text)
WITH_TEXT = sorted(set(infos.options()) - set(ALONE))

NO_MATRICES = {
    "no outputs": torch.randn(0, 64),
    "no inputs": torch.randn(64, 0),
    "3-D": torch.randn(2, 8, 64),
    "1-D": torch.randn(64),
    "0-D": torch.randn(()),
    "integers": torch.ones(8, 64, dtype=torch.int8),
}


def built(name: str):
    """Return the recipe called `name`, or the sentence that refuses it."""
    try:
        return parse(name)
    except InputError as error:
        return str(error)


@pytest.mark.row("F14")
@pytest.mark.parametrize("option", ALONE)
def test_a_method_takes_every_format_that_its_names_parse_with(option):
    weight = torch.randn(8, 256)
    taken = 0
    for base in known_bases():
        for name in (
            f"{base}-{option}",
            f"{base}-g32-{option}",
            f"{base}-dq-{option}",
            f"{base}-sym-{option}",
        ):
            recipe = built(name)
            if not isinstance(recipe, str) and isinstance(recipe.weights, Format):
                found = methods.quantize(weight, recipe.weights, recipe.method)
                assert found.dequantize().isfinite().all()
                taken += 1
    assert taken > 3


@pytest.mark.row("F14")
@pytest.mark.parametrize("option", [*ALONE, *WITH_TEXT])
def test_a_method_that_cannot_take_a_format_says_what_it_takes(option):
    info = infos.options()[option]
    refused = {"even": "int4", "fixed": "nf4", "learned": "kmeans4"}
    for grid, base in refused.items():
        recipe = built(f"{base}-g64-{option}")
        if grid in info.grids:
            assert not isinstance(recipe, str), recipe
        else:
            assert f"-{option} {info.limits}" in recipe


@pytest.mark.row("F13", "9")
@pytest.mark.parametrize("method", ["rtn", *(infos.options()[option].name for option in ALONE)])
@pytest.mark.parametrize("weight", NO_MATRICES.values(), ids=NO_MATRICES)
def test_what_is_no_matrix_of_weights_is_refused(method, weight):
    with pytest.raises(
        InputError, match="cannot be quantized: it must be a matrix of floating-point numbers"
    ):
        methods.quantize(weight, Uniform(4, 32, False), method)


@pytest.mark.row("F13", "9")
@pytest.mark.parametrize("name", ["int4-g64", "int4-g64-hqq", "nf4-g64", "bf16"])
@pytest.mark.parametrize(("inputs", "outputs"), [(64, 0), (0, 64)], ids=["no outputs", "no inputs"])
def test_a_layer_without_weights_is_kept_and_listed(name, inputs, outputs):
    model = tiny.model("llama")
    with pytest.warns(UserWarning, match="zero-element"):
        model.model.layers[0].mlp.extra = nn.Linear(inputs, outputs, bias=False)
    rows = {row.name: row for row in quantize(model, parse(name)).rows}
    row = rows["model.layers.0.mlp.extra.weight"]
    assert row.bytes_after == 0
    if name != "bf16":
        assert row.reason == "It has no inputs or no outputs, so it holds no weights." and row.format is None
    assert model(torch.arange(5)[None]).logits.isfinite().all()


@pytest.mark.row("F13")
def test_the_public_verb_refuses_a_weight_that_is_no_matrix():
    model = tiny.model("llama")
    model.model.layers[0].mlp.up_proj.weight = nn.Parameter(torch.randn(2, 64, 64), requires_grad=False)
    with pytest.raises(
        NotAppliedError, match="up_proj.weight.: Kept: it is large, but its layout is unknown"
    ):
        qcore.quantize(Loaded(model, tiny.tokenizer(), None), "int4-g64")
