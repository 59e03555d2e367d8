"""The decoder against the modules it stands for: the same logits, the same tokens, on every architecture and
recipe it takes."""

import threading

import pytest
import tiny
import torch
from decoder_models import CONFIGS, RECIPES, ids, make

from qcore import library, recipes
from qcore.base.errors import InputError
from qcore.quantization.convert import quantize
from qcore.runtime import Decoder, supports


@pytest.fixture(autouse=True)
def inference():
    with torch.inference_mode():
        yield


@pytest.mark.parametrize("config", CONFIGS)
def test_exact_logits_equal_the_modules_for_any_split_into_calls(config):
    model, tokens = make(config, "int4-g32", "fp32"), ids(40)
    expected = model(tokens[None]).logits[0]
    close = dict(rtol=0, atol=2e-5 * expected.abs().max().item())
    decoder = Decoder(model, capacity=64)
    torch.testing.assert_close(torch.stack([decoder.step(int(token)) for token in tokens]), expected, **close)
    for split in ([40], [1, 39], [3, 4, 5, 28], [20, 1, 1, 18]):
        decoder.reset()
        for part in tokens.split(split):
            logits = decoder.prefill(part)
            torch.testing.assert_close(logits, expected[decoder.position - 1], **close)


@pytest.mark.parametrize("recipe", RECIPES)
@pytest.mark.parametrize("config", ["llama", "qwen2"])
def test_tokens_are_those_of_generate(config, recipe):
    model, prompt = make(config, recipe), ids(17)
    expected = model.generate(
        prompt[None], max_new_tokens=24, min_new_tokens=24, do_sample=False, pad_token_id=0, eos_token_id=None
    )[0, 17:]
    decoder = Decoder(model)
    assert decoder.greedy(prompt, 24) == expected.tolist()
    decoder.reset()
    logits, written = decoder.prefill(prompt), []
    for _ in range(24):
        written.append(int(logits.argmax()))
        logits = decoder.step(written[-1])
    assert written == expected.tolist()


def test_prompts_longer_than_a_chunk_are_right(monkeypatch):
    monkeypatch.setattr("qcore.runtime.sequence.CHUNK", 16)
    model, tokens = make("llama", "int8", "fp32"), ids(301)
    expected = model(tokens[None]).logits[0, -1]
    torch.testing.assert_close(
        Decoder(model, capacity=304).prefill(tokens),
        expected,
        rtol=0,
        atol=2e-5 * expected.abs().max().item(),
    )
    monkeypatch.undo()
    torch.testing.assert_close(
        Decoder(model, capacity=304).prefill(tokens),
        expected,
        rtol=0,
        atol=2e-5 * expected.abs().max().item(),
    )


def test_layers_of_different_formats_work_side_by_side():
    model = make("llama", "int4-g32", "fp32")
    other = make("llama", "int8", "fp32")
    for mine, theirs in zip(model.model.layers, other.model.layers, strict=True):
        mine.self_attn.k_proj, mine.mlp.up_proj = theirs.self_attn.k_proj, theirs.mlp.up_proj
    tokens = ids(20)
    expected = model(tokens[None]).logits[0]
    for calls in ([20], [1] * 20):
        decoder = Decoder(model)
        got = torch.stack([decoder.prefill(part) for part in tokens.split(calls)])
        torch.testing.assert_close(
            got, expected[-len(calls) :], rtol=0, atol=2e-5 * expected.abs().max().item()
        )


def test_a_half_cache_takes_half_the_bytes_and_is_close():
    model, tokens = make("llama", "int4-g32", "fp32"), ids(40)
    full, half = Decoder(model), Decoder(model, half_cache=True)
    assert half.cache_bytes * 2 == full.cache_bytes
    expected = full.prefill(tokens)
    torch.testing.assert_close(
        half.prefill(tokens), expected, rtol=0, atol=5e-3 * expected.abs().max().item()
    )


def test_reset_goes_back_to_any_earlier_position():
    model, tokens = make("llama", "int4-g32"), ids(20)
    decoder = Decoder(model)
    first = decoder.prefill(tokens)
    decoder.prefill(ids(5, 1))
    decoder.reset(12)
    assert decoder.position == 12
    torch.testing.assert_close(
        decoder.prefill(tokens[12:]), first, rtol=0, atol=1e-3 * first.abs().max().item()
    )
    with pytest.raises(InputError, match="cannot go back to 21"):
        decoder.reset(21)


@pytest.mark.parametrize("threads", [1, 2, 3])
def test_number_of_threads_changes_nothing(threads):
    model, before = make("llama", "int4-g32"), torch.get_num_threads()
    expected = Decoder(model).greedy(ids(30), 10)
    try:
        torch.set_num_threads(threads)
        assert Decoder(model).greedy(ids(30), 10) == expected
    finally:
        torch.set_num_threads(before)


def test_two_decoders_of_one_model_run_at_once():
    model = make("llama", "int4-g32")
    prompts = [ids(12, 1), ids(30, 2)]
    expected = [Decoder(model).greedy(prompt, 20) for prompt in prompts]
    got = [None, None]

    def work(i: int) -> None:
        with torch.inference_mode():
            got[i] = Decoder(model).greedy(prompts[i], 20)

    threads = [threading.Thread(target=work, args=(i,)) for i in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert got == expected


def test_a_nan_shows_in_the_logits():
    model = make("llama", "int4-g32")
    model.model.norm.weight[3] = float("nan")
    assert not Decoder(model).prefill(ids(3)).isfinite().any()


@pytest.mark.parametrize(
    ("bad", "message"),
    [([], "at least one"), ([258], "vocabulary"), ([-1], "vocabulary"), ([1] * 9, "9 tokens do not fit")],
    ids=["empty", "beyond", "negative", "long"],
)
def test_bad_tokens_are_refused(bad, message):
    with pytest.raises(InputError, match=message):
        Decoder(make("llama", "int4-g32"), capacity=8).prefill(bad)


def test_more_tokens_than_the_cache_holds_are_refused_before_anything_runs():
    decoder = Decoder(make("llama", "int4-g32"), capacity=8)
    with pytest.raises(InputError, match="5 tokens and 5 new ones do not fit into the 8 free"):
        decoder.greedy(ids(5), 5)
    assert decoder.position == 0 and len(decoder.greedy(ids(5), 4)) == 4


def test_other_models_are_refused_with_the_reason():
    assert "GPT2LMHeadModel" in supports(tiny.model("gpt2"))
    assert "MixtralForCausalLM" in supports(tiny.model("moe"))
    assert "needs quantized layers" in supports(tiny.model("llama"))
    model = make("llama", "int4-g32")
    model.config.hidden_act = "gelu"
    assert "gelu" in supports(model)
    dynamic = make("llama", "int4-g32")
    dynamic.config.rope_parameters = {"rope_type": "dynamic"}
    assert "dynamic" in supports(dynamic)
    odd = tiny.model("llama")
    quantize(odd, recipes.parse("int4-g24"))
    assert "groups of 32" in supports(odd)
    with pytest.raises(InputError, match="needs quantized layers"):
        Decoder(tiny.model("llama"))


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
    expected, decoder = loaded.model(text[None]).logits[0], Decoder(loaded.model)
    got = torch.stack(
        [
            decoder.prefill(text[: prompt.shape[1]]),
            *(decoder.step(int(token)) for token in text[prompt.shape[1] :]),
        ]
    )
    expected = expected[prompt.shape[1] - 1 :]
    torch.testing.assert_close(got, expected, rtol=0, atol=2e-3 * expected.abs().max().item())
    best = expected.topk(2).values
    clear = best[:, 0] - best[:, 1] > 4e-3 * best[:, 0].abs()
    assert clear.float().mean() > 0.8 and torch.equal(got.argmax(-1)[clear], expected.argmax(-1)[clear])
