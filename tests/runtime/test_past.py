"""What a model carries from call to call (recurrent states, own caches, or nothing), and that qcore reads on
where the model left off."""

from functools import cache

import pytest
import tiny
import torch

from qcore.base.errors import InputError
from qcore.base.prompts import Prompt
from qcore.evaluation.generation import compare_generations
from qcore.evaluation.logits import LogitReader
from qcore.formats.kv import KV_FORMATS, kept_layers
from qcore.planning import cache as planned
from qcore.runtime import Context
from qcore.runtime.kv_cache import quantized_cache
from qcore.runtime.past import Past, held_bytes, past_of
from qcore.verbs.record import execution
from tests import zoo

INT8 = KV_FORMATS["int8"]
# one architecture of each kind of past; the first ones run always
USUAL = ("qwen3_5_text", "jamba", "bamba", "lfm2")
OTHERS = ("qwen3_next", "minimax", "mamba", "mamba2", "zamba2", "falcon_h1", "rwkv", "xlstm", "gemma3n_text")


def _slow(*names):
    return [pytest.param(name, marks=pytest.mark.slow) for name in names]


EVERY = [*_slow("recurrent_gemma", "deepseek_v4"), *USUAL, *_slow(*OTHERS)]


@cache
def model(name):
    return zoo.model(name).float()


def text(tokens, seed=1):
    return torch.randint(250, (tokens,), generator=torch.Generator().manual_seed(seed))


@torch.no_grad()
def whole(made, ids):
    return made(input_ids=ids[None], use_cache=False).logits[0]


@pytest.mark.parametrize("name", EVERY)
@torch.no_grad()
def test_a_context_reads_on_where_it_left_off(name):
    """Bamba began each call at position 0, Jamba forgot its state between calls of several tokens, RWKV and
    RecurrentGemma raised AttributeError."""
    made, ids = model(name), text(40)
    expected, context = whole(made, ids), Context(made)
    for start, stop in ((0, 20), (20, 27), (27, 28), (28, 29), (29, 40)):
        found = context.append(ids[None, start:stop])
        assert torch.allclose(found[0], expected[stop - 1], atol=1e-3), (start, stop)
    assert context.length == 40


@pytest.mark.parametrize("name", EVERY)
def test_prompts_decoded_together_are_those_decoded_alone(name):
    made, tokenizer = model(name), tiny.tokenizer()
    prompts = [
        Prompt(str(i), "x", each) for i, each in enumerate(("Hello", "The quick brown fox", "ab " * 12))
    ]
    together, alone = (
        [each.tokens for each in compare_generations(made, tokenizer, prompts, 8, chat=False, batch=size)]
        for size in (3, 1)
    )
    assert together == alone


def test_what_models_carry():
    assert past_of(model("jamba")).step == past_of(model("mamba")).step == 1
    assert past_of(model("qwen3_next")).step is past_of(model("mamba2")).step is None
    assert past_of(model("recurrent_gemma")).argument is None
    assert past_of(model("rwkv")).argument == "state"
    assert past_of(model("minimax")).cache.__name__ == "MiniMaxCache"
    assert past_of(model("llama")) == past_of(model("gpt_neo")) == Past("cache")


@torch.no_grad()
def test_old_classes_are_tried():
    """CPM-Ant wants all tokens in every call, and ProphetNet one per call: both raised their own errors."""
    made, ids = model("cpmant"), text(40)
    assert past_of(made) == Past(None)
    context = Context(made)
    for start, stop in ((0, 20), (20, 21), (21, 40)):
        logits = context.append(ids[None, start:stop])  # of the whole text: attention looks ahead
        assert torch.allclose(logits[0], whole(made, ids[:stop])[-1], atol=1e-3), (start, stop)
    made = model("prophetnet")
    assert past_of(made) == Past("cache", step=1)
    together, alone = Context(made), Context(made)
    for context, step in ((together, 20), (alone, 1)):
        context.append(ids[None, :20])
        found = [context.append(each) for each in ids[None, 20:].split(step, dim=1)]
    assert torch.equal(together.append(ids[None, :1]), alone.append(ids[None, :1])) and found


@pytest.mark.parametrize("name", ["cpmant", "xlstm"])
def test_a_cache_without_keys_and_values_is_not_quantized(name):
    """The first raised RuntimeError in the second call, the second TypeError."""
    with pytest.raises(InputError, match="quantized"):
        Context(model(name), INT8)


@pytest.mark.slow
def test_layers_that_run_twice_are_planned_twice():
    """The plan of Inkling 2 raised ValueError: the cache has more layers than the model."""
    made = model("inkling2_loop_text")
    layers, context = planned.layout(made), Context(made)
    assert len(layers) == made.config.num_hidden_layers + 1
    context.append(text(5)[None])
    assert context.nbytes == planned.kv_bytes(layers, 5)


@pytest.mark.parametrize("name", [*USUAL, *_slow("recurrent_gemma", *OTHERS)])
@torch.no_grad()
def test_the_plan_counts_the_bytes_of_keys_values_and_states(name):
    """States of recurrences once counted as nothing."""
    made = model(name)
    layers = planned.layout(made)
    for tokens in (5, 40):
        context = Context(made)
        context.append(text(tokens)[None])
        assert (context.nbytes or 0) == planned.kv_bytes(layers, tokens)
    assert planned.kv_bytes(layers, 5, 3) == 3 * planned.kv_bytes(layers, 5)


def test_a_layout_names_the_states():
    layers = planned.layout(model("jamba"))
    assert "layers with a state of" in planned.describe(layers)


@pytest.mark.parametrize(
    "name", [*_slow("qwen3_next", "jamba"), "falcon_h1", "minimax", "gemma3n_text", "llama4_text", "lfm2"]
)
@torch.no_grad()
def test_attention_layers_of_hybrids_are_quantized_and_the_others_kept(name):
    """The whole model was once refused."""
    made, ids = model(name), text(150)
    expected, held = whole(made, ids), quantized_cache(made, INT8)
    options, step = past_of(made), past_of(made).step or 32
    parts = []
    for start in range(0, 150, step):
        more = {"position_ids": torch.arange(start, min(start + step, 150))[None]} if options.counts else {}
        parts.append(
            made(input_ids=ids[None, start : start + step], cache=held, use_cache=True, **more).logits[0]
        )
    error = (torch.cat(parts) - expected).abs()
    assert error[:32].max() < 1e-3 and 0 < error.mean() < 0.1
    layers = planned.layout(made)
    assert held_bytes(held) == planned.kv_bytes(layers, 150, 1, planned.FORMATS["int8"])
    read = torch.cat([chunk.logits for chunk in LogitReader(made, kv=INT8).read(ids)])
    assert torch.allclose(read, torch.cat(parts), atol=1e-3)


def test_the_layers_that_keep_their_cache_are_named():
    assert kept_layers(model("qwen3_next").config) == {"linear_attention": 2}
    assert kept_layers(model("falcon_h1").config) == {}
    assert execution(model("qwen3_next"), INT8)[0].endswith("Layers that keep theirs: 2 linear_attention.")
