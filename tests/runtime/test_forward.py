"""A quantized model's own forward takes the native step where possible, and equals its modules elsewhere."""

import pytest
import torch
from decoder_models import ALONE, CONFIGS, FALCON, LONG_ROPE, RECIPES, SIZES, close, detached, ids, make
from transformers import DynamicCache, FalconConfig, LlamaConfig, OPTConfig, StaticCache

from qcore import runtime
from qcore.layers.modules import QuantLinear
from qcore.runtime import NativeCache, attach, explain


@pytest.fixture(autouse=True)
def inference():
    with torch.no_grad():
        yield


def options(**more) -> dict:
    return (
        dict(max_new_tokens=12, min_new_tokens=12, do_sample=False, pad_token_id=0, eos_token_id=None) | more
    )


def padded(*lengths: int) -> dict:
    """Return prompts of these lengths, padded on the left."""
    width = max(lengths)
    tokens = torch.stack(
        [torch.cat((torch.zeros(width - n, dtype=torch.long), ids(n, seed=n))) for n in lengths]
    )
    return {
        "input_ids": tokens,
        "attention_mask": torch.stack([torch.arange(width) >= width - n for n in lengths]).long(),
    }


@pytest.mark.parametrize("config", CONFIGS)
def test_logits_are_those_of_the_modules(config, calls):
    model = make(config, "int4-g32", "fp32")
    expected = detached(model)(ids(40)[None]).logits
    assert calls == []
    torch.testing.assert_close(model(ids(40)[None]).logits, expected, **close(expected))
    assert calls == [(1, 40)]


@pytest.mark.parametrize("config", CONFIGS)
def test_padded_batches_are_those_of_the_modules(config, calls):
    model, batch = make(config, "int4-g32", "fp32"), padded(5, 11, 3)
    expected = detached(model)(**batch).logits
    kept = batch["attention_mask"].bool()
    torch.testing.assert_close(model(**batch).logits[kept], expected[kept], **close(expected))
    assert torch.equal(model.generate(**batch, **options()), detached(model).generate(**batch, **options()))
    assert len(calls) == 1 + 12


def test_angles_that_change_with_the_length_of_a_call_are_those_of_the_modules(calls, monkeypatch):
    monkeypatch.setitem(CONFIGS, "long", LONG_ROPE)
    model = make("long", "int4-g32", "fp32")
    modules, tokens = detached(model), ids(40)[None]
    own, theirs = DynamicCache(config=model.config), DynamicCache(config=model.config)
    for part in tokens.split([30, 2, 1, 7], 1):
        expected = modules(part, cache=theirs, use_cache=True).logits
        found = model(part, cache=own, use_cache=True).logits
        torch.testing.assert_close(found, expected, **close(expected))
    for length, more in ((36, 0), (31, 5)):  # more slots than short positions, and fewer positions
        batch = {name: torch.nn.functional.pad(part, (more, 0)) for name, part in padded(length, 9).items()}
        batch["position_ids"] = (batch["attention_mask"].cumsum(1) - 1).clamp(min=0)
        expected, kept = modules(**batch).logits, batch["attention_mask"].bool()
        torch.testing.assert_close(model(**batch).logits[kept], expected[kept], **close(expected))
    assert len(calls) == 6


@pytest.mark.parametrize("activations, least", [("fp32", 1), ("int8-block", 0.75)], ids=["fp32", "int8"])
@pytest.mark.parametrize("recipe, other", [("gguf-q4_k_m", "gguf-q6_k"), ("gguf-q2_k", "gguf-q4_1")])
def test_layers_of_other_kinds_read_the_same_input_in_forms_of_their_own(
    recipe, other, activations, least, calls, monkeypatch
):
    """Activations for groups of 16 inputs and for minimums have other sums than those for one zero point.

    Prompts of one token, so that none depends on another: a sum in another order moves some activation by a
    whole step of 8 bits in about one token of twenty, while activations in a wrong form change every token.
    """
    sizes = {**SIZES, "hidden_size": 256, "intermediate_size": 512}
    monkeypatch.setitem(CONFIGS, "whole super-blocks", LlamaConfig(**sizes))
    model, twin = (make("whole super-blocks", each, activations) for each in (recipe, other))
    for layer, second in zip(model.model.layers, twin.model.layers, strict=True):
        layer.mlp.up_proj, layer.self_attn.k_proj = second.mlp.up_proj, second.self_attn.k_proj
    modules = detached(model)
    for batch, times in ((1, 12), (3, 4), (40, 1)):
        prompts = [ids(batch, seed)[:, None] for seed in range(times)]
        expected = torch.cat([modules(tokens).logits for tokens in prompts])
        calls.clear()
        found = torch.cat([model(tokens).logits for tokens in prompts])
        assert calls == [(batch, 1)] * times
        same = (found - expected).abs().amax((1, 2)) <= close(expected)["atol"]
        assert same.float().mean() >= least, same


@pytest.mark.parametrize("recipe", RECIPES)
def test_generate_writes_the_same_tokens_with_one_call_per_token(recipe, calls):
    model, prompt = make("llama", recipe), ids(17)[None]
    expected = detached(model).generate(prompt, **options())
    assert calls == [] and torch.equal(model.generate(prompt, **options()), expected)
    assert calls == [(1, 17)] + [(1, 1)] * 11


@pytest.mark.parametrize(
    "more",
    [
        dict(do_sample=True, temperature=0.7, top_k=20, top_p=0.9),
        dict(num_beams=3),
        dict(num_return_sequences=2, do_sample=True),
        dict(prompt_lookup_num_tokens=3),
        dict(repetition_penalty=1.3),
    ],
    ids=["sampling", "beams", "several", "lookup", "penalty"],
)
def test_every_way_to_generate_works(more, calls):
    model, prompt = make("llama", "int4-g32", "fp32"), ids(9)[None]
    torch.manual_seed(5)
    expected = detached(model).generate(prompt, **options(**more))
    torch.manual_seed(5)
    assert torch.equal(model.generate(prompt, **options(**more)), expected) and calls


def test_layers_that_read_the_keys_of_others_need_the_last_token_of_a_prompt_only(calls):
    model, prompt = make("gemma4", "int4-g32", "fp32"), ids(30)[None]
    assert model.model(prompt, logits_to_keep=1).last_hidden_state.shape == (1, 1, 64)
    found = model(prompt, logits_to_keep=1).logits
    torch.testing.assert_close(found, model(prompt).logits[:, -1:], **close(found))
    batch = padded(5, 11, 3)
    for given in ({"input_ids": prompt}, batch):
        expected = detached(model).generate(**given, **options())
        assert torch.equal(model.generate(**given, **options()), expected)
    assert len(calls) == 3 + 2 * 12


@pytest.mark.parametrize("chunk", [7, 60])
@pytest.mark.parametrize("use_cache", [True, False])
def test_a_long_padded_batch_is_one_call(chunk, use_cache, calls, monkeypatch):
    """The number of tokens per pass through a layer does not change the result."""
    model, batch = make("llama", "int4-g32", "fp32"), padded(50, 20, 40, 50)
    expected = detached(model)(**batch).logits
    kept = batch["attention_mask"].bool()
    monkeypatch.setattr("qcore.runtime.weights.CHUNK", chunk)
    output = model(**batch, use_cache=use_cache)
    torch.testing.assert_close(output.logits[kept], expected[kept], **close(expected))
    assert (output.cache is None) == (not use_cache) and calls == [(4, 50)]


def test_a_cache_grows_and_goes_on(calls):
    model, tokens = make("llama", "int4-g32", "fp32"), ids(600)[None]
    expected = detached(model)(tokens).logits
    first = model(tokens[:, :200], use_cache=True)
    second = model(tokens[:, 200:], cache=first.cache, use_cache=True)
    assert isinstance(second.cache, NativeCache) and second.cache.get_seq_length() == 600
    torch.testing.assert_close(second.logits, expected[:, 200:], **close(expected))


@pytest.mark.parametrize("config", ["llama", "mistral-window", "gemma4", "falcon-groups", "deepseek-v3"])
def test_a_sequence_may_change_between_native_steps_and_modules(config, calls):
    model, tokens = make(config, "int4-g32", "fp32"), ids(40)[None]
    expected = detached(model)(tokens).logits
    cache, got = DynamicCache(config=model.config), []
    first = next(module for name, module in model.named_modules() if name.endswith(".0.mlp"))
    for number, part in enumerate(tokens.split(8, dim=1)):
        hook = first.register_forward_hook(lambda *_: None) if number % 2 else None
        got.append(model(part, cache=cache, use_cache=True).logits)
        if hook:
            hook.remove()
    torch.testing.assert_close(torch.cat(got, 1), expected, **close(expected))
    assert calls == [(1, 8)] * 3


def test_a_half_cache_takes_half_the_bytes_and_is_close(calls):
    model, tokens = make("llama", "int4-g32", "fp32"), ids(40)[None]
    full, half = NativeCache(model), NativeCache(model, half=True)
    expected = model(tokens, cache=full, use_cache=True).logits
    torch.testing.assert_close(
        model(tokens, cache=half, use_cache=True).logits, expected, **close(expected, 5e-3)
    )
    sizes = [sum(layer.nbytes for layer in cache.layers) for cache in (half, full)]
    assert 0 < 2 * sizes[0] == sizes[1]
    hook = model.model.layers[1].register_forward_hook(lambda *_: None)
    more = model(ids(3)[None], cache=half, use_cache=True).logits
    hook.remove()
    torch.testing.assert_close(
        model(ids(3)[None], cache=full, use_cache=True).logits, more, **close(expected, 5e-3)
    )


@pytest.mark.parametrize(
    "ask",
    [
        lambda model, tokens: model(tokens, output_hidden_states=True).hidden_states[-1].shape == (1, 20, 64),
        lambda model, tokens: len(model(tokens, position_ids=torch.arange(20)[None] + 7).logits) == 1,
        lambda model, tokens: (
            len(model(tokens, attention_mask=(torch.arange(20) != 3)[None].long()).logits) == 1
        ),
        lambda model, tokens: len(model(tokens, attention_mask=torch.zeros(1, 1, 20, 20)).logits) == 1,
        lambda model, tokens: (
            len(
                model(tokens, cache=StaticCache(config=model.config, max_cache_len=64), use_cache=True).logits
            )
            == 1
        ),
        lambda model, tokens: len(model.train()(tokens).logits) == 1,
        lambda model, tokens: len(model.to("meta")(tokens.to("meta")).logits) == 1,
    ],
    ids=["hidden states", "positions", "holes", "mask", "static cache", "training", "meta"],
)
def test_what_the_native_step_cannot_do_the_modules_do(ask, calls):
    model = make("llama", "int4-g32", "fp32")
    assert ask(model, ids(20)[None]) and calls == []


def test_gradients_flow(calls):
    model = make("llama", "int4-g32", "fp32")
    norm = model.model.layers[0].input_layernorm.weight.requires_grad_()
    with torch.enable_grad():
        model(ids(20)[None], labels=ids(20)[None]).loss.backward()
    assert calls == [] and norm.grad.abs().sum() > 0


@pytest.mark.parametrize(
    "more",
    [dict(cache_position=torch.arange(20)), dict(cu_seq_lens_q=torch.tensor([0, 20]))],
    ids=["cache position", "packed sequences"],
)
def test_tensors_as_further_keywords_go_to_the_modules(more, calls):
    model, tokens = make("llama", "int4-g32", "fp32"), ids(20)[None]
    expected = detached(model)(tokens, **more).logits
    torch.testing.assert_close(model(tokens, **more).logits, expected, rtol=0, atol=0)
    assert calls == []


def test_the_stack_returns_a_tuple_if_asked(calls):
    stack, tokens = make("llama", "int4-g32", "fp32").model, ids(20)[None]
    expected = stack(tokens, return_dict=True, use_cache=False).last_hidden_state
    hidden, cache = stack(tokens, return_dict=False, use_cache=True)
    assert torch.equal(hidden, expected) and cache.get_seq_length() == 20
    assert calls == [(1, 20)] * 2


@pytest.mark.filterwarnings("ignore:.*past_key_values.*:FutureWarning")
def test_the_stack_takes_a_cache_by_its_older_name(calls):
    stack, tokens = make("llama", "int4-g32", "fp32").model, ids(20)[None]
    expected = stack(tokens, use_cache=False).last_hidden_state
    cache = DynamicCache()
    parts = [stack(part, past_key_values=cache, use_cache=True) for part in tokens.split(10, dim=1)]
    assert cache.get_seq_length() == 20
    got = torch.cat([part.last_hidden_state for part in parts], 1)
    torch.testing.assert_close(got, expected, **close(expected))


def test_the_callers_cache_stays_what_it_is(calls):
    model, tokens = make("llama", "int4-g32", "fp32"), ids(20)[None]
    cache, modules_cache = DynamicCache(config=model.config), DynamicCache(config=model.config)
    assert model(tokens, cache=cache, use_cache=True).cache is cache
    detached(model)(tokens, cache=modules_cache, use_cache=True)
    assert type(cache) is DynamicCache and calls == [(1, 20)]
    for mine, theirs in zip(cache, modules_cache, strict=True):
        for got, expected in zip(mine[:2], theirs[:2], strict=True):
            torch.testing.assert_close(got, expected, **close(expected))
    with pytest.raises(ValueError, match="negative"):
        modules_cache.crop(5)
    with pytest.raises(ValueError, match="negative"):
        cache.crop(5)
    cache.crop(-5)
    assert cache.get_seq_length() == 15


def test_a_cache_that_was_reset_takes_another_batch(calls):
    model = make("llama", "int4-g32", "fp32")
    cache = DynamicCache(config=model.config)
    model(ids(20)[None], cache=cache, use_cache=True)
    cache.reset()
    batch = torch.stack([ids(6, seed) for seed in range(2)])
    expected = detached(model)(batch).logits
    torch.testing.assert_close(model(batch, cache=cache, use_cache=True).logits, expected, **close(expected))
    assert calls == [(1, 20), (2, 6)]


def test_tokens_outside_the_vocabulary_are_refused():
    with pytest.raises(IndexError, match="vocabulary of 258"):
        make("llama", "int4-g32")(torch.tensor([[258]]))


def test_a_model_says_how_it_runs():
    model = make("llama", "int4-g32")
    assert explain(model) == "whole step in one native call"
    assert "not attached" in explain(detached(model))
    forward = model.model.forward
    attach(model)
    assert model.model.forward is forward


def test_an_unsupported_model_says_why():
    model = make("llama", "int4-g32")
    model.model.layers[1].mlp.act_fn = torch.nn.Mish()
    assert runtime.explain(model) == (
        "module by module: The decoder does not know the activation function Mish."
    )


@pytest.mark.parametrize(
    ("config", "words"),
    [
        (FalconConfig(**FALCON, alibi=True), "linear biases of attention"),
        (OPTConfig(**ALONE, ffn_dim=120, do_layer_norm_before=False), "norms of the residual stream itself"),
        (OPTConfig(**ALONE, ffn_dim=120, word_embed_proj_dim=32), "embeddings of another width"),
    ],
    ids=["alibi", "norms after", "projected embeddings"],
)
def test_members_of_a_family_that_compute_something_else_say_what(config, words, monkeypatch):
    monkeypatch.setitem(CONFIGS, "other", config)
    assert f"The decoder does not know {words}" in explain(make("other", "int4-g32"))


def test_asking_whether_a_model_is_supported_packs_nothing():
    model = make("llama", "int4-g32-head8")
    assert explain(model) == "whole step in one native call"
    assert all(module.packed is None for module in model.modules() if isinstance(module, QuantLinear))


@pytest.mark.slow
def test_compiled_models_are_traced_through_their_modules(calls):
    model, tokens = make("llama", "int4-g32", "fp32"), ids(8)[None]
    expected = detached(model)(tokens, use_cache=False).logits
    compiled = torch.compile(model, backend="eager")
    torch.testing.assert_close(compiled(tokens, use_cache=False).logits, expected, **close(expected))
    assert calls == []
