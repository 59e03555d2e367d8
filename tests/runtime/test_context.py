"""One native call per step against the modules it replaces: the same logits and tokens, on every supported
architecture and recipe; and the modules wherever the native step would compute something else."""

import threading

import pytest
import tiny
import torch
from decoder_models import CONFIGS, RECIPES, ids, make
from transformers import LlamaModel

from qcore import library, recipes
from qcore.formats.kv import KV_FORMATS
from qcore.quantization.convert import quantize
from qcore.runtime import Context, detach, supports
from qcore.runtime.weights import Weights


@pytest.fixture(autouse=True)
def inference():
    with torch.inference_mode():
        yield


@pytest.fixture
def calls(monkeypatch):
    """Record the number of tokens of each native call that computes logits."""
    seen, run = [], Weights.run

    def count(self, tokens, *args, logits=None, **kwargs):
        if logits is not None:
            seen.append(tokens.shape[1])
        return run(self, tokens, *args, logits=logits, **kwargs)

    monkeypatch.setattr(Weights, "run", count)
    return seen


def greedy(model: torch.nn.Module, prompt: torch.Tensor, count: int) -> list[int]:
    """Return the `count` most likely tokens after `prompt` (T,), one after the other."""
    context, written = Context(model), []
    logits = context.append(prompt[None])
    while len(written) < count:
        written.append(int(logits.argmax()))
        logits = context.append(torch.tensor([written[-1:]]))
    return written


@pytest.mark.parametrize("config", CONFIGS)
def test_exact_logits_equal_the_modules_for_any_split_into_calls(config, calls):
    model, tokens = make(config, "int4-g32", "fp32"), ids(40)
    expected = model(tokens[None]).logits[0]
    close = dict(rtol=0, atol=2e-5 * expected.abs().max().item())
    for split in ([40], [1] * 40, [1, 39], [3, 4, 5, 28], [20, 1, 1, 18]):
        context, position = Context(model), 0
        for part in tokens.split(split):
            (logits,), position = context.append(part[None]), position + len(part)
            torch.testing.assert_close(logits, expected[position - 1], **close)
    assert calls == [40, *[1] * 40, 1, 39, 3, 4, 5, 28, 20, 1, 1, 18]


@pytest.mark.parametrize("recipe", RECIPES)
@pytest.mark.parametrize("config", ["llama", "qwen2"])
def test_tokens_are_those_of_generate(config, recipe):
    model, prompt = make(config, recipe), ids(17)
    expected = model.generate(
        prompt[None], max_new_tokens=24, min_new_tokens=24, do_sample=False, pad_token_id=0, eos_token_id=None
    )[0, 17:]
    assert greedy(model, prompt, 24) == expected.tolist()


def test_layers_of_different_formats_work_side_by_side():
    model = make("llama", "int4-g32", "fp32")
    other = make("llama", "int8", "fp32")
    for mine, theirs in zip(model.model.layers, other.model.layers, strict=True):
        mine.self_attn.k_proj, mine.mlp.up_proj = theirs.self_attn.k_proj, theirs.mlp.up_proj
    tokens = ids(20)
    expected = model(tokens[None]).logits[0]
    for split in ([20], [1] * 20):
        context = Context(model)
        got = torch.cat([context.append(part[None]) for part in tokens.split(split)])
        torch.testing.assert_close(
            got, expected[-len(split) :], rtol=0, atol=2e-5 * expected.abs().max().item()
        )


def test_what_is_forgotten_may_be_read_anew():
    model, tokens = make("llama", "int4-g32"), ids(20)
    context = Context(model)
    first = context.append(tokens[None])
    context.append(ids(5, 1)[None])
    context.cache.crop(-13)
    again = context.append(tokens[None, 12:])
    torch.testing.assert_close(again, first, rtol=0, atol=1e-3 * first.abs().max().item())


def test_bytes_are_those_that_are_reserved():
    model = make("llama", "int4-g32")
    context = Context(model)
    assert context.nbytes is None
    context.append(ids(20)[None])
    assert context.nbytes == 2 * 2 * 2 * 256 * 16 * 4  # layers, keys and values, heads, slots, head size
    detach(model)
    plain = Context(model)
    plain.append(ids(20)[None])
    assert plain.nbytes == 2 * 2 * 2 * 20 * 16 * 4


@pytest.mark.parametrize("listener", ["", "model", "lm_head", "model.layers.1.mlp"])
def test_hooks_are_heard(listener, calls):
    model, heard = make("llama", "int4-g32", "fp32"), []
    expected = Context(model).append(ids(5)[None])
    hook = model.get_submodule(listener).register_forward_hook(lambda *_: heard.append(1))
    got = Context(model).append(ids(5)[None])
    hook.remove()
    assert heard == [1] and calls == [5]
    torch.testing.assert_close(got, expected, rtol=0, atol=2e-5 * expected.abs().max().item())
    Context(model).append(ids(5)[None])
    assert heard == [1] and calls == [5, 5]


def test_a_replaced_forward_of_the_model_is_called(calls):
    model = make("llama", "int4-g32", "fp32")
    forward = model.forward

    def doubled(input_ids, cache=None, use_cache=None):
        output = forward(input_ids=input_ids, cache=cache, use_cache=use_cache)
        output.logits = 2 * output.logits
        return output

    expected = Context(model).append(ids(5)[None])
    model.forward = doubled
    got = Context(model).append(ids(5)[None])
    assert calls == [5]
    torch.testing.assert_close(got, 2 * expected, rtol=0, atol=4e-5 * expected.abs().max().item())


def test_an_exchanged_head_is_used(calls):
    model, tokens = make("llama", "int4-g32", "fp32"), ids(5)[None]
    Context(model).append(tokens)
    model.lm_head = make("llama", "int4-g32-head8", "fp32").lm_head
    expected = model(tokens).logits[0, -1:]
    got = Context(model).append(tokens)
    torch.testing.assert_close(got, expected, rtol=0, atol=2e-5 * expected.abs().max().item())
    assert calls == [5, 5]


def test_several_sequences_and_quantized_caches_go_through_the_model(calls):
    model = make("llama", "int4-g32", "fp32")
    batch = torch.stack([ids(5), ids(5, 1)])
    expected = model(batch).logits[:, -1]
    got = Context(model).append(batch)
    torch.testing.assert_close(got, expected, rtol=0, atol=2e-5 * expected.abs().max().item())
    Context(model, KV_FORMATS["int4"]).append(batch)
    assert calls == []


@pytest.mark.parametrize("threads", [1, 2, 3])
def test_number_of_threads_changes_nothing(threads):
    model, before = make("llama", "int4-g32"), torch.get_num_threads()
    expected = greedy(model, ids(30), 10)
    try:
        torch.set_num_threads(threads)
        assert greedy(model, ids(30), 10) == expected
    finally:
        torch.set_num_threads(before)


def test_two_contexts_of_one_model_run_at_once():
    model = make("llama", "int4-g32")
    prompts = [ids(12, 1), ids(30, 2)]
    expected = [greedy(model, prompt, 20) for prompt in prompts]
    got = [None, None]

    def work(i: int) -> None:
        with torch.inference_mode():
            got[i] = greedy(model, prompts[i], 20)

    threads = [threading.Thread(target=work, args=(i,)) for i in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert got == expected


def test_a_nan_shows_in_the_logits():
    model = make("llama", "int4-g32")
    model.model.norm.weight[3] = float("nan")
    assert not Context(model).append(ids(3)[None]).isfinite().any()


@pytest.mark.parametrize("bad", [258, -1])
def test_tokens_outside_the_vocabulary_are_refused(bad):
    context = Context(make("llama", "int4-g32"))
    with pytest.raises(IndexError, match="vocabulary of 258"):
        context.append(torch.tensor([[3, bad]]))
    assert context.cache is None


def test_other_models_are_refused_with_the_reason():
    other = tiny.model("llama")
    other.model.__class__ = type("SomeModel", (LlamaModel,), {})
    assert "The decoder knows Llama, " in supports(other)
    assert "needs quantized layers" in supports(tiny.model("llama"))
    model = make("llama", "int4-g32")
    model.model.layers[1].mlp.act_fn = torch.nn.Mish()
    assert "Mish" in supports(model)
    dynamic = make("llama", "int4-g32")
    dynamic.config.rope_parameters = {"rope_type": "dynamic"}
    assert "dynamic" in supports(dynamic)
    odd = tiny.model("llama")
    quantize(odd, recipes.parse("int4-g24"))
    assert "groups of 32" in supports(odd)


@pytest.mark.slow
def test_default_model_writes_what_its_modules_write():
    """Token by token on the module path's own text. Both paths round activations to 16 bits, so only near
    ties may differ."""
    loaded = library.load("smollm2-135m")
    quantize(loaded.model, recipes.parse("int4-g32-head8"))
    prompt = loaded.tokenizer("The first animals to live on land were", return_tensors="pt").input_ids
    text = loaded.model.generate(
        prompt, max_new_tokens=40, do_sample=False, pad_token_id=0, eos_token_id=None
    )[0]
    expected, context = loaded.model(text[None]).logits[0], Context(loaded.model)
    parts = text[None].split([prompt.shape[1], *[1] * (len(text) - prompt.shape[1])], dim=1)
    got = torch.cat([context.append(part) for part in parts])
    expected = expected[prompt.shape[1] - 1 :]
    torch.testing.assert_close(got, expected, rtol=0, atol=2e-3 * expected.abs().max().item())
    best = expected.topk(2).values
    clear = best[:, 0] - best[:, 1] > 4e-3 * best[:, 0].abs()
    assert clear.float().mean() > 0.8 and torch.equal(got.argmax(-1)[clear], expected.argmax(-1)[clear])
