"""The quantized cache under tiny models: exact while no token is old, close afterwards, and counted to the
byte."""

from copy import deepcopy

import pytest
import tiny
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import (
    AutoModelForCausalLM,
    BambaConfig,
    DeepseekV3Config,
    DynamicCache,
    Gemma3TextConfig,
    LlamaConfig,
    MistralConfig,
)

from qcore import recipes
from qcore.base.errors import InputError
from qcore.base.prompts import Prompt
from qcore.evaluation import Reference, evaluate
from qcore.evaluation.generation import compare_generations, generate_text
from qcore.evaluation.logits import LogitReader
from qcore.formats.kv import (
    GROUP,
    KV_FORMATS,
    RECENT,
    check_config,
    kv_format_named,
    tokens_dropped,
    tokens_held,
)
from qcore.measurement import throughput
from qcore.planning import cache as planned
from qcore.quantization import convert
from qcore.runtime.kv_cache import QuantizedKVCache
from qcore.verbs.record import execution

COMMON = dict(
    hidden_size=64, intermediate_size=128, num_hidden_layers=3, num_attention_heads=4, vocab_size=258
)
CONFIGS = {
    **tiny.CONFIGS,
    "sliding": MistralConfig(num_key_value_heads=2, sliding_window=50, **COMMON),
    "sliding and full": Gemma3TextConfig(
        num_key_value_heads=1,
        head_dim=40,
        sliding_window=40,
        layer_types=["sliding_attention", "full_attention", "sliding_attention"],
        **COMMON,
    ),
}
INT8, INT4 = KV_FORMATS["int8"], KV_FORMATS["int4"]


def model(kind):
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(deepcopy(CONFIGS[kind]), dtype=torch.float32).eval()


def text(tokens, seed=0):
    return torch.randint(256, (tokens,), generator=torch.Generator().manual_seed(seed))


@torch.no_grad()
def logits(model, ids, cache, step):
    """Return the logits of `model` after each token, `step` tokens at a time through `cache`."""
    return torch.cat(
        [model(input_ids=part[None], cache=cache, use_cache=True).logits[0] for part in ids.split(step)]
    )


@pytest.mark.parametrize("form", KV_FORMATS.values(), ids=KV_FORMATS)
@pytest.mark.parametrize("kind", CONFIGS)
def test_bytes_are_what_the_plan_counts(kind, form):
    made = model(kind)
    layers = planned.layout(made)
    for tokens in (1, RECENT + GROUP - 1, RECENT + GROUP, 150):
        for users in (1, 3):
            held = QuantizedKVCache(made.config, form)
            with torch.no_grad():
                made(text(tokens).expand(users, -1), cache=held, use_cache=True)
            assert held.nbytes == planned.kv_bytes(layers, tokens, users, planned.FORMATS[form.name]), (
                tokens,
                users,
            )


@pytest.mark.parametrize("kind", CONFIGS)
def test_while_all_tokens_are_recent_nothing_changes(kind):
    made, ids = model(kind), text(RECENT + GROUP - 1)
    expected = logits(made, ids, DynamicCache(config=made.config), 1)
    found = logits(made, ids, QuantizedKVCache(made.config, INT4), 1)
    # with a sliding window more masked tokens may be held, so that sums are taken in another order
    assert torch.allclose(found, expected, atol=1e-5) if "sliding" in kind else torch.equal(found, expected)


@pytest.mark.parametrize("kind", ["llama", "gpt2", "sliding and full"])
def test_groups_of_tokens_read_what_single_tokens_read(kind):
    made, ids = model(kind), text(170)
    one = logits(made, ids, QuantizedKVCache(made.config, INT4), 1)
    many = logits(made, ids, QuantizedKVCache(made.config, INT4), GROUP)
    full = logits(made, ids, DynamicCache(config=made.config), GROUP)
    assert torch.allclose(one, full, atol=0.05)
    by_codes, by_rounding = ((one - other)[RECENT + GROUP :].abs().mean() for other in (full, many))
    assert by_rounding < 0.05 * by_codes  # rounding changes a code now and then


@given(
    st.lists(st.integers(1, 90), min_size=1, max_size=5),
    st.sampled_from((INT8, INT4)),
    st.sampled_from((None, 50)),
    st.integers(0, 99),
)
@settings(max_examples=40)
def test_keys_and_values_come_back_near_and_the_newest_exactly(steps, form, window, seed):
    """In whatever portions the tokens arrive, the cache returns them: exactly if recent, within half a step
    if old."""
    config = LlamaConfig(num_key_value_heads=2, head_dim=16, **COMMON)
    held = QuantizedKVCache(config, form)
    layer = held.layers[0]
    layer.window = window
    generator = torch.Generator().manual_seed(seed)
    keys, values = (torch.randn(2, 2, sum(steps), 16, generator=generator) for _ in range(2))
    keys[..., 3] += 30  # a channel far from zero, as keys have them
    at = 0
    for step in steps:
        length, offset = layer.get_mask_sizes(step)
        read_keys, read_values = layer.update(keys[:, :, at : at + step], values[:, :, at : at + step])
        quantized, exact = tokens_held(at, window)
        assert (
            offset == tokens_dropped(at, window) and read_keys.shape[2] == length == quantized + exact + step
        )
        at += step
        for read, real in ((read_keys, keys[:, :, offset:at]), (read_values, values[:, :, offset:at])):
            assert torch.equal(read[:, :, quantized:], real[:, :, quantized:])
            spread = 9.0 / (2**form.bits - 1)
            assert (read - real).abs().max() <= spread
    assert layer.get_seq_length() == sum(steps)


def test_a_generation_within_the_recent_tokens_is_the_unquantized_one():
    made, tokenizer = tiny.sharp("llama"), tiny.tokenizer()
    plain, kept = (generate_text(made, tokenizer, "Hello there", 40, kv=kv) for kv in (None, INT4))
    assert plain.tokens == kept.tokens


def test_a_long_generation_reads_the_codes():
    """Written token by token through `generate` of transformers with the same cache: the same tokens."""
    made, tokenizer = tiny.sharp("llama"), tiny.tokenizer()
    ids = tokenizer("Hello there", return_tensors="pt").input_ids
    own = generate_text(made, tokenizer, "Hello there", 120, kv=INT4)
    held = QuantizedKVCache(made.config, INT4)
    theirs = made.generate(
        ids,
        attention_mask=torch.ones_like(ids),
        cache=held,
        max_new_tokens=120,
        do_sample=False,
        pad_token_id=0,
    )
    assert [*own.tokens, *([257] if own.reason == "end" else [])] == theirs[0, ids.shape[1] :].tolist()
    assert held.nbytes < 0.6 * 4 * 2 * 2 * 2 * 16 * held.get_seq_length()


def test_beams_take_their_codes_along():
    made = tiny.sharp("llama")
    ids = text(70)[None]
    options = dict(
        attention_mask=torch.ones_like(ids), max_new_tokens=6, num_beams=3, do_sample=False, pad_token_id=0
    )
    held = QuantizedKVCache(made.config, INT8)
    assert made.generate(ids, cache=held, **options).shape[1] > 70
    assert held.layers[0].keys.shape[0] == 3


def test_evaluation_reads_the_codes(tmp_path):
    made, ids = tiny.sharp("llama"), text(300)
    plain = evaluate(made, ids, window=128, record=tmp_path / "reference")
    found = {
        name: evaluate(made, ids, window=128, kv=form, reference=Reference.open(tmp_path / "reference"))
        for name, form in KV_FORMATS.items()
    }
    short = evaluate(made, ids[:65], window=64, kv=INT4)
    assert short.nll_sum == pytest.approx(
        evaluate(made, ids[:65], window=64).nll_sum, rel=1e-6
    )  # the last codes are never read
    assert 0 < found["int8"].divergence.kl_mean < 0.02 * found["int4"].divergence.kl_mean
    assert found["int8"].perplexity == pytest.approx(plain.perplexity, rel=1e-2)
    assert [len(found["int4"].window_nll), found["int4"].tokens_scored] == [3, 299]


def test_evaluation_scores_what_decoding_sees():
    """Each logit of the reader equals that of token-by-token decoding through the cache."""
    made, ids = tiny.sharp("gpt2"), text(150)
    read = torch.cat([chunk.logits for chunk in LogitReader(made, kv=INT4).read(ids)])
    assert torch.allclose(read, logits(made, ids, QuantizedKVCache(made.config, INT4), 1), atol=1e-3)


def test_speed_is_measured_through_the_cache_and_its_bytes_are_its_own():
    made = tiny.model("llama")
    plain, kept = (throughput.measure(made, 100, 3, repeats=1, kv=kv) for kv in (None, INT8))
    layers = planned.layout(made)
    assert kept.cache_tokens == plain.cache_tokens == 102
    assert (
        kept.cache_bytes
        == planned.kv_bytes(layers, 102, 1, planned.FORMATS["int8"])
        < plain.cache_bytes
        == planned.kv_bytes(layers, 102)
    )


def test_the_native_step_leaves_such_a_cache_to_the_modules_and_says_so():
    made = tiny.model("llama")
    convert.quantize(made, recipes.parse("int4-g32"))
    first, *kernels = execution(made, INT4)
    assert first == "module by module: the native step does not read a cache in int4." and kernels
    ids, held = text(100), QuantizedKVCache(made.config, INT4)
    logits(made, ids, held, 100)
    assert type(held) is QuantizedKVCache and held.get_seq_length() == 100 and held.layers[0]._old is not None


def test_prompts_are_decoded_one_by_one():
    """Padding would share a scale with tokens next to it: each answer equals the prompt's alone."""
    made, tokenizer = tiny.sharp("llama"), tiny.tokenizer()
    prompts = [Prompt(str(i), "x", "ab " * (30 + i)) for i in range(3)]
    answers = compare_generations(made, tokenizer, prompts, 10, kv=INT4)
    assert [answer.tokens for answer in answers] == [
        generate_text(made, tokenizer, each.text, 10, kv=INT4).tokens for each in prompts
    ]


@pytest.mark.parametrize("name", ["int9", "8", "INT8", ""])
def test_an_unknown_form_is_one_sentence(name):
    with pytest.raises(InputError, match="Unknown KV cache format .*int8"):
        kv_format_named(name)


def test_none_is_no_form():
    assert kv_format_named("none") is kv_format_named(None) is None


LATENT = DeepseekV3Config(
    num_key_value_heads=4,
    kv_lora_rank=16,
    q_lora_rank=24,
    qk_nope_head_dim=16,
    qk_rope_head_dim=8,
    v_head_dim=16,
    moe_intermediate_size=32,
    n_routed_experts=4,
    n_group=1,
    topk_group=1,
    num_experts_per_tok=2,
    first_k_dense_replace=1,
    **COMMON,
)


@pytest.mark.parametrize(
    ("config", "words"),
    [
        (LATENT, "compressed vector"),
        (
            BambaConfig(num_key_value_heads=2, attn_layer_indices=[], **COMMON),
            "no layers that cache plain keys and values",
        ),
        (LlamaConfig(num_key_value_heads=2, head_dim=12, **COMMON), "heads of 12 numbers"),
    ],
    ids=["latent", "state", "odd heads"],
)
def test_an_architecture_without_plain_keys_and_values_is_one_sentence(config, words):
    with pytest.raises(InputError, match=words) as error:
        QuantizedKVCache(config, INT8)
    assert "\n" not in str(error.value) and len(str(error.value)) < 250
    with pytest.raises(InputError):
        check_config(config)
    assert planned.formats_for(config) == ("fp32", "fp16")
