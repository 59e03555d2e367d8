"""Perplexity against models with an exact answer, and against a loop in transformers alone."""

import math

import pytest
import tiny
import torch
from hypothesis import given
from hypothesis import strategies as st
from tokenizers.processors import TemplateProcessing
from transformers import AutoModelForCausalLM, CohereConfig, Gemma2Config, GraniteConfig

from qcore.base.errors import InputError, RunError
from qcore.base.texts import tokenize
from qcore.evaluation import evaluate
from qcore.evaluation.logits import LogitReader
from qcore.evaluation.windows import windows

SMALL = dict(
    vocab_size=258,
    hidden_size=32,
    intermediate_size=48,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    max_position_embeddings=512,
    bos_token_id=256,
    eos_token_id=257,
    pad_token_id=0,
)
SCALED = {
    "softcap": Gemma2Config(**SMALL, head_dim=8, final_logit_softcapping=0.5, sliding_window=16),
    "divided": GraniteConfig(**SMALL, logits_scaling=8.0),
    "multiplied": CohereConfig(**SMALL, logit_scale=3.0),
}


def text(tokens: int, seed: int = 0) -> torch.Tensor:
    return torch.randint(0, 256, (tokens,), generator=torch.Generator().manual_seed(seed))


def transformers_loop(model, ids: torch.Tensor, window: int, stride: int) -> float:
    """The strided loop of the transformers documentation, with max_length = window + 1: the last token of a
    window is only a target."""
    max_length, total, count, previous_end = window + 1, 0.0, 0, 0
    for begin in range(0, len(ids), stride):
        end = min(begin + max_length, len(ids))
        labels = ids[begin:end].clone()
        labels[: -(end - previous_end)] = -100
        scored = int((labels[1:] != -100).sum())
        with torch.no_grad():
            loss = model(input_ids=ids[None, begin:end], labels=labels[None]).loss
        total, count, previous_end = total + float(loss) * scored, count + scored, end
        if end == len(ids):
            break
    assert count == len(ids) - 1
    return math.exp(total / count)


@given(tokens=st.integers(2, 300), window=st.integers(1, 64), data=st.data())
def test_every_token_but_the_first_is_scored_once(tokens, window, data):
    stride = data.draw(st.integers(1, window))
    spans = list(windows(tokens, window, stride))
    positions = [p for span in spans for p in range(span.begin + span.skip, span.end)]
    assert positions == list(range(tokens - 1))  # position p predicts token p + 1
    assert all(span.end - span.begin <= window and span.scored > 0 for span in spans)
    assert [span.begin for span in spans] == [stride * i for i in range(len(spans))]


ZERO = tiny.model("llama")
torch.nn.init.zeros_(ZERO.lm_head.weight)


@given(tokens=st.integers(2, 80), window=st.integers(1, 100), chunk=st.integers(1, 50), data=st.data())
def test_zero_logits_give_the_vocabulary_size(tokens, window, chunk, data):
    stride = data.draw(st.integers(1, window))
    result = evaluate(ZERO, text(tokens), window=window, stride=stride, chunk=chunk)
    assert result.perplexity == pytest.approx(tiny.VOCABULARY, rel=1e-13)
    assert result.tokens_scored == sum(result.window_tokens) == tokens - 1


def test_bits_per_byte_count_the_scored_tokens():
    """A tokenizer with one byte per token, so that bits per byte equal bits per token."""
    tokenizer = tiny.tokenizer()
    ids = tokenize("One byte each.", tokenizer)
    result = evaluate(ZERO, ids, tokenizer=tokenizer)
    assert result.bits_per_byte == pytest.approx(math.log2(tiny.VOCABULARY), rel=1e-13)


@pytest.mark.parametrize("adds", [True, False])
def test_the_record_says_whether_the_tokenizer_added_a_bos_token(adds):
    tokenizer = tiny.tokenizer()
    if adds:
        tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
            single="<bos> $A", special_tokens=[("<bos>", 256)]
        )
    ids = tokenize("A text of some words.", tokenizer)
    assert (int(ids[0]) == 256) is adds
    expected = "<bos> at the beginning of the text, added by the tokenizer" if adds else "none added"
    assert evaluate(tiny.model("llama"), ids, tokenizer=tokenizer).bos_policy == expected
    assert evaluate(tiny.model("llama"), ids[2:], tokenizer=tokenizer).bos_policy == "none added"


@pytest.mark.parametrize("stride", [64, 40, 1], ids=lambda s: f"stride{s}")
@pytest.mark.parametrize("kind", tiny.CONFIGS)
def test_agrees_with_a_transformers_loop(kind, stride):
    model, ids = tiny.sharp(kind), text(150)
    result = evaluate(model, ids, window=64, stride=stride)
    assert result.perplexity == pytest.approx(transformers_loop(model, ids, 64, stride), rel=1e-6)
    assert result.perplexity == pytest.approx(math.exp(math.fsum(result.window_nll) / result.tokens_scored))
    assert (result.window, result.stride, result.bos_policy, result.bits_per_byte) == (
        64,
        stride,
        "unknown: the text was given as token ids",
        None,
    )


def test_one_window_equals_the_loss_of_the_model():
    model, ids = tiny.sharp("llama"), text(100)
    loss = float(model(input_ids=ids[None], labels=ids[None]).loss.detach())
    assert evaluate(model, ids, window=512).perplexity == pytest.approx(math.exp(loss), rel=1e-6)


@pytest.mark.parametrize("chunk", [1, 7, 64, 1000])
def test_chunked_equals_unchunked(chunk):
    model, ids = tiny.sharp("llama"), text(200)
    assert evaluate(model, ids, window=64, chunk=chunk).perplexity == pytest.approx(
        evaluate(model, ids, window=64).perplexity, rel=1e-6
    )


@pytest.mark.parametrize("name", SCALED)
def test_logits_that_are_scaled_or_capped_after_the_head(name):
    torch.manual_seed(0)
    model, ids = AutoModelForCausalLM.from_config(SCALED[name]).eval(), text(70)
    with torch.no_grad():
        model.get_output_embeddings().weight.mul_(20)
        logits = model(input_ids=ids[None, :-1]).logits[0]
    reader = LogitReader(model)
    parts = list(reader.read(ids[:-1]))
    assert reader.head is not None and parts[0].hidden is not None
    torch.testing.assert_close(torch.cat([part.logits for part in parts]), logits)
    expected = float(torch.nn.functional.cross_entropy(logits.double(), ids[1:]).exp())
    assert evaluate(model, ids, window=100).perplexity == pytest.approx(expected, rel=1e-6)


def test_a_head_that_is_not_understood_is_read_whole():
    model, ids = tiny.sharp("llama"), text(150)
    expected = evaluate(model, ids, window=64).perplexity
    forward = model.forward

    def doubled(*arguments, **options):
        output = forward(*arguments, **options)
        output.logits = output.logits * 2
        return output

    model.forward = doubled
    reader = LogitReader(model)
    assert next(reader.read(ids)).hidden is None and reader.head is None
    model.forward = lambda *arguments, **options: forward(*arguments, **options)
    model.get_output_embeddings = lambda: None
    assert evaluate(model, ids, window=64).perplexity == pytest.approx(expected, rel=1e-6)


def test_the_head_sees_only_a_chunk_at_a_time():
    model, seen = tiny.model("llama"), []
    model.lm_head.register_forward_hook(lambda module, arguments, output: seen.append(output.shape[-2]))
    evaluate(model, text(200), window=100, chunk=16)
    assert max(seen) == 16


def test_training_mode_is_put_back_and_has_no_say():
    model = tiny.model("gpt2")  # has dropout
    expected = evaluate(model, text(50)).perplexity
    assert evaluate(model.train(), text(50)).perplexity == expected
    assert model.training


def test_progress_ends_at_the_number_of_scored_tokens():
    calls = []
    evaluate(tiny.model("llama"), text(100), window=32, progress=lambda *call: calls.append(call))
    assert [done for done, _, _ in calls] == [32, 64, 96, 99]
    assert calls[-1] == (99, 99, "window 4 of 4")


@pytest.mark.row("40")
@pytest.mark.parametrize("value", [math.nan, math.inf], ids=str)
def test_broken_logits_get_no_number(value):
    model = tiny.model("llama")
    with torch.no_grad():
        model.lm_head.weight[3] = value
    with pytest.raises(RunError, match="NaN or infinite"):
        evaluate(model, text(20))


def test_a_perplexity_beyond_all_numbers_is_a_failure():
    model = tiny.model("llama")
    with torch.no_grad():
        model.lm_head.weight.mul_(1e6)
    with pytest.raises(RunError, match="the perplexity overflows"):
        evaluate(model, text(20))


@pytest.mark.parametrize(
    ("ids", "options", "words"),
    [
        (torch.tensor([1]), {}, "has 1 token; scoring needs at least 2"),
        (torch.tensor([], dtype=torch.long), {}, "has 0 tokens"),
        (text(6).view(2, 3), {}, r"shape \(2, 3\)"),
        (torch.tensor([1, 258]), {}, "Token id 258 is outside"),
        (torch.tensor([1, -1]), {}, "Token id -1 is outside"),
        (text(9), {"window": 0}, "window is 0"),
        (text(9), {"window": True}, "window is True"),
        (text(9), {"window": 2.5}, "window is 2.5"),
        (text(9), {"window": 4, "stride": 5}, r"stride \(5\) is larger than the window \(4\)"),
        (text(9), {"stride": -1}, "stride is -1"),
        (text(600), {"window": 513}, "longer than the 512"),
    ],
)
def test_bad_input(ids, options, words):
    with pytest.raises(InputError, match=words):
        evaluate(ZERO, ids, **options)


def test_a_window_longer_than_the_model_is_fine_if_the_text_is_short():
    assert evaluate(ZERO, text(100), window=4096).tokens_scored == 99
