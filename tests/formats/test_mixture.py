"""Mixtures of types against the files that llama.cpp wrote (llama-cpp-python 0.3.36), for models of several
shapes.

`llamacpp_mixtures.json` lists the type of each tensor by role: one type for all blocks, or a run per block
such as "2xQ6_K Q4_K".
"""

import json
from pathlib import Path

import pytest

from qcore.formats.mixture import SIZES, Mixture, Place
from qcore.interop import ggml
from qcore.recipes import parse

MODELS = json.loads((Path(__file__).parent / "llamacpp_mixtures.json").read_text())
FILES = {title: size for size, (_, title) in SIZES.items()}


def per_block(text: str, blocks: int) -> list[str]:
    """The type in each block."""
    runs = [(run.partition("x") if "x" in run else ("1", "x", run)) for run in text.split()]
    types = [name for count, _, name in runs for _ in range(int(count))]
    return types * blocks if len(types) == 1 else types


@pytest.mark.parametrize("case", MODELS, ids=lambda case: str(list(case["model"].values())))
@pytest.mark.parametrize("title", FILES)
def test_each_tensor_gets_the_type_that_llama_cpp_gives_it(case, title):
    model, mixture = case["model"], Mixture(FILES[title])
    sharing = model["heads"] // model["kv"]
    for role, text in case["files"][title].items():
        columns = model["inter"] if role == "ffn_down" else model["hidden"]
        for block, expected in enumerate(per_block(text, model["blocks"])):
            place = Place(role, block, model["blocks"], sharing, model.get("experts", 0), tied=model["tied"])
            assert ggml.type_of(mixture.format(place, columns), columns) == expected, (role, block)


def test_a_recipe_is_named_after_the_file():
    recipe = parse("gguf-q4_k_m-gptq")
    assert (recipe.weights, recipe.method) == (Mixture("q4_k_m"), "gptq")
    assert (recipe.modules.head, recipe.modules.embeddings) == ("same", "same")
    assert type(recipe).from_dict(recipe.to_dict()) == recipe
