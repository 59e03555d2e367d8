"""The verbs of `import qcore` that compare two evaluations and answer questions."""

import json

import pytest
import tiny

import qcore
from qcore.base.errors import InputError
from qcore.evaluation.questions import load_questions


@pytest.fixture
def model(tmp_path):
    return str(tiny.checkpoint("llama", tmp_path / "llama"))


def test_judge_pairs_two_evaluations(model, tmp_path):
    (tmp_path / "text.txt").write_text("It was the best of tokens, it was the worst of tokens. " * 9)
    conditions = {"text": tmp_path / "text.txt", "tokens": 200, "window": 32}
    before = qcore.evaluate(model, **conditions)
    after = qcore.evaluate(qcore.quantize(model, "int2"), **conditions)
    found = qcore.judge(before, after, margin=0.5)
    assert found.outcome == "equivalent" and found.ratio.estimate == pytest.approx(
        after.perplexity / before.perplexity
    )
    assert (
        found.ratio.low < found.ratio.estimate < found.ratio.high and found.kl is None and found.flips is None
    )
    assert qcore.judge(before, before).sentence == "Equivalent: every prediction is the baseline's."
    with pytest.raises(InputError, match="same windows"):
        qcore.judge(before, qcore.evaluate(model, **{**conditions, "window": 16}))
    with pytest.raises(InputError, match="margin is 0"):
        qcore.judge(before, after, margin=0)


def test_a_quantized_cache_and_its_plan(model, tmp_path):
    (tmp_path / "text.txt").write_text("It was the best of tokens, it was the worst of tokens. " * 9)
    plain, kept = (
        qcore.evaluate(model, tmp_path / "text.txt", tokens=200, window=128, kv=kv) for kv in ("none", "int4")
    )
    assert plain.perplexity != kept.perplexity == pytest.approx(plain.perplexity, rel=0.05)
    found = qcore.measure(model, prompt_tokens=99, new_tokens=2, repeats=1, kv="int8")
    (row,) = qcore.plan(model, ["int8"], context=found.cache_tokens, kv=["int8"]).rows
    assert row.kv_bytes == found.cache_bytes
    with pytest.raises(InputError, match="Unknown KV cache format"):
        qcore.evaluate(model, tmp_path / "text.txt", kv="int9")


def test_ask_takes_a_file_or_the_packaged_questions(model, tmp_path):
    file = tmp_path / "q.json"
    file.write_text(
        json.dumps([{"question": "Hot and", "choices": ["cold", "very much so"], "answer": "cold"}])
    )
    answers = qcore.ask(model, file)
    assert answers.questions == 1 and len(answers.scores[0]) == 2
    packaged = qcore.ask(model)
    assert (
        packaged.questions == len(load_questions().questions)
        and packaged.accuracy.low < packaged.accuracy.estimate
    )
