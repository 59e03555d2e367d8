"""A model's graph against the model: in one pass, token by token with the cache, and for several
sequences."""

import numpy as np
import pytest
import tiny
import torch
from onnx_models import IDS, made

from qcore import recipes
from qcore.base.errors import InputError
from qcore.engines.onnx import accounts, graph
from qcore.engines.onnx.run_onnx import OnnxModel
from qcore.quantization import convert


def largest_difference(model, session: OnnxModel) -> float:
    """Over all logits of IDS: at once, and from the fifth token on one at a time."""
    with torch.no_grad():
        wanted = model(input_ids=IDS).logits.numpy()
    numbers = IDS.numpy()
    whole, _ = session.step(numbers, None, np.arange(IDS.shape[1]))
    logits, cache = session.step(numbers[:, :4])
    worst = np.abs(logits[:, 0] - wanted[:, 3]).max()
    for place in range(4, IDS.shape[1]):
        logits, cache = session.step(numbers[:, place : place + 1], cache)
        worst = max(worst, np.abs(logits[:, 0] - wanted[:, place]).max())
    return max(worst, np.abs(whole - wanted).max())


def greedy(model, ids: list[int], count: int) -> list[int]:
    tokens = model.generate(
        torch.tensor([ids]), max_new_tokens=count, min_new_tokens=count, do_sample=False, eos_token_id=None
    )
    return tokens[0, len(ids) :].tolist()


@pytest.mark.parametrize(
    "kind",
    ["qwen", pytest.param("llama", marks=pytest.mark.slow), pytest.param("gpt2", marks=pytest.mark.slow)],
)
def test_float32_logits_and_64_greedy_tokens(kind, tmp_path):
    model = made(kind)
    session = OnnxModel(graph.export(made(kind), tmp_path), threads=1)
    assert largest_difference(model, session) < 1e-4
    assert session.greedy(IDS[0].tolist(), 64) == greedy(model, IDS[0].tolist(), 64)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["int4-g32-head8", "int8"])
@pytest.mark.parametrize("kind", ["llama-tied", "gpt2"])
def test_quantized_layers_keep_their_codes(kind, name, tmp_path):
    recipe = recipes.parse(f"{name}-a32")
    model, exported = made(kind), made(kind)
    convert.quantize(model, recipe)
    convert.quantize(exported, recipe)
    path = graph.export(exported, tmp_path)
    session = OnnxModel(path, threads=1)
    assert largest_difference(model, session) < 1e-4
    assert session.greedy(IDS[0].tolist(), 32) == greedy(model, IDS[0].tolist(), 32)
    names = dict(accounts.initializers(path))
    tied = [
        name
        for name in names
        if name.startswith(("model.embed_tokens.", "lm_head.")) and name.endswith(".codes")
    ]
    assert len(tied) == ("head8" in name)  # both models are tied: one copy serves embedding and head


def test_a_mixture_of_experts_is_refused(tmp_path):
    with pytest.raises(InputError, match="mixture of experts"):
        graph.export(tiny.model("moe"), tmp_path)


def test_an_activation_that_the_operator_does_not_have_is_refused(tmp_path):
    model = made("llama")
    convert.quantize(model, recipes.parse("int4-g32-dynamic"))
    with pytest.raises(
        InputError, match="q_proj: MatMulNBits does not support activations with one scale per token"
    ):
        graph.export(model, tmp_path)
    assert not list(tmp_path.iterdir())


def test_what_the_exporter_cannot_trace_is_said_in_one_sentence(tmp_path, monkeypatch):
    def fail(*arguments, **options):
        raise RuntimeError("no operator of that name\nand many lines more")

    monkeypatch.setattr("torch.onnx.export", fail)
    with pytest.raises(
        InputError,
        match="^LlamaForCausalLM cannot be exported to ONNX: RuntimeError: no operator of that name$",
    ):
        graph.export(made("llama"), tmp_path)
