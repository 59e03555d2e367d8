"""The formulas, exactly, with a clock that moves only when read; and the calls of the model."""

import math
from dataclasses import replace

import pytest
import tiny
import torch
from hypothesis import given
from hypothesis import strategies as st

from qcore.base.errors import InputError, RunError
from qcore.base.quantile import quantile
from qcore.measurement import throughput
from qcore.measurement.throughput import Sample, Throughput, measure


class Clock:
    """A clock that moves to the next of `times` with each reading."""

    def __init__(self, *seconds: float):
        self._times = iter(seconds)
        self.looks = 0

    def __call__(self) -> float:
        self.looks += 1
        return next(self._times)


def round_of(ttft: float, *gaps: float) -> list[float]:
    """Return the readings of one repeat: start, first token, each token after it."""
    times = [100.0, 100.0 + ttft]
    for gap in gaps:
        times.append(times[-1] + gap)
    return times


def test_exact_values():
    clock = Clock(
        *round_of(9, 9, 9, 9),
        *round_of(0.5, 0.25, 0.25, 0.5),
        *round_of(1.0, 0.125, 0.125, 0.25),
        *round_of(2.0, 1, 1, 2),
    )
    result = measure(tiny.model("llama"), 16, 4, repeats=3, warmup=1, clock=clock)
    assert clock.looks == 4 * 5
    assert (result.ttft_s, result.prefill_tok_s) == (1.0, 16.0)  # medians of 0.5, 1, 2 and of 32, 16, 8
    assert result.decode_tok_s == 3.0  # median of 3 / 1, 3 / 0.5, 3 / 4
    assert result.p50_ms == 250.0  # of 125 125 250 250 | 250 | 500 1000 1000 2000
    assert result.p90_ms == pytest.approx(1000 + 0.2 * 1000) and result.p99_ms == pytest.approx(
        1000 + 0.92 * 1000
    )
    assert result.samples == (
        Sample(0.5, (0.25, 0.25, 0.5)),
        Sample(1.0, (0.125, 0.125, 0.25)),
        Sample(2.0, (1.0, 1.0, 2.0)),
    )
    assert (result.prompt_tokens, result.new_tokens, result.dtype, result.device) == (16, 4, "float32", "cpu")
    assert result.threads == torch.get_num_threads()
    assert result.to_dict()["samples"][0] == {"ttft_s": 0.5, "token_s": (0.25, 0.25, 0.5)}


class Watch:
    """A stopwatch of other work that started after `calls` calls of the model."""

    started: list[int] = []

    def __init__(self):
        self.started.append(len(calls))

    def share(self) -> float:
        return 0.3


calls: list[int] = []


def test_other_work_is_recorded_without_that_of_the_warm_up(monkeypatch):
    model = tiny.model("llama")
    model.get_input_embeddings().register_forward_hook(lambda *_: calls.append(1))
    monkeypatch.setattr(throughput, "OtherWork", Watch)
    found = measure(model, 8, 3, repeats=2, warmup=2)
    assert Watch.started[-1] == 2 * 3 and len(calls) == 4 * 3
    assert found.others_share == 0.3 and found.disturbed and found.to_dict()["disturbed"]
    quiet = replace(found, others_share=0.01)
    assert not quiet.disturbed and not quiet.to_dict()["disturbed"]


@given(times=st.lists(st.floats(1e-4, 10), min_size=1, max_size=30), factor=st.floats(0.5, 4))
def test_a_clock_that_runs_faster_scales_every_figure(times, factor):
    fields = dict(threads=1, dtype="float32", device="cpu")
    plain = Throughput.of([Sample(times[0], tuple(times))], 10, **fields)
    scaled = Throughput.of([Sample(times[0] * factor, tuple(t * factor for t in times))], 10, **fields)
    for name, power in (
        ("ttft_s", 1),
        ("p50_ms", 1),
        ("p90_ms", 1),
        ("p99_ms", 1),
        ("decode_tok_s", -1),
        ("prefill_tok_s", -1),
    ):
        assert getattr(scaled, name) == pytest.approx(getattr(plain, name) * factor**power)
    assert plain.decode_tok_s == pytest.approx(len(times) / math.fsum(times))


@given(values=st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=40), q=st.floats(0, 1))
def test_quantile_is_numpys(values, q):
    ordered = sorted(values)
    expected = torch.quantile(torch.tensor(ordered, dtype=torch.float64), q).item()
    assert quantile(ordered, q) == pytest.approx(expected, abs=1e-6)
    assert quantile(torch.tensor(ordered, dtype=torch.float64), q) == quantile(ordered, q)


@pytest.mark.parametrize("kind", tiny.CONFIGS)
def test_the_model_reads_the_prompt_once_and_then_one_token_at_a_time(kind):
    model, seen = tiny.model(kind), []
    model.get_input_embeddings().register_forward_hook(
        lambda module, arguments, output: seen.append(tuple(arguments[0].shape))
    )
    measure(model, 8, 3, repeats=1, warmup=0)
    assert seen == [(1, 8), (1, 1), (1, 1)]


def test_it_writes_what_generate_writes():
    model, written = tiny.model("llama"), []
    prompt = torch.arange(1, 11)
    expected = model.generate(
        prompt[None], max_new_tokens=6, min_new_tokens=6, do_sample=False, pad_token_id=0
    )[0, 10:].tolist()
    model.get_input_embeddings().register_forward_hook(
        lambda module, arguments, output: written.append(arguments[0][0].tolist())
    )
    measure(model, prompt, 6, repeats=1, warmup=0)
    assert written[0] == prompt.tolist() and [token for (token,) in written[1:]] == expected[:-1]


def test_a_number_of_prompt_tokens_draws_the_same_prompt_for_the_same_seed():
    model, prompts = tiny.model("llama"), []
    hook = lambda module, arguments, output: prompts.append(arguments[0][0].tolist())  # noqa: E731
    model.get_input_embeddings().register_forward_hook(hook)
    for seed in (0, 0, 1):
        measure(model, 12, 2, repeats=1, warmup=0, seed=seed)
    assert prompts[0] == prompts[2] != prompts[4]


def test_progress():
    calls = []
    measure(tiny.model("llama"), 4, 2, repeats=2, warmup=1, progress=lambda *call: calls.append(call))
    assert calls == [(0, 3, "warm-up"), (1, 3, "repeat 1 of 2"), (2, 3, "repeat 2 of 2"), (3, 3, "measured")]


@pytest.mark.parametrize(
    ("prompt", "new", "options", "words"),
    [
        (0, 4, {}, "prompt tokens is 0"),
        (-5, 4, {}, "prompt tokens is -5"),
        (torch.tensor([], dtype=torch.long), 4, {}, "prompt tokens is 0"),
        (4, 1, {}, "new tokens is 1, but it must be at least 2"),
        (4, 4, {"repeats": 0}, "repeats is 0"),
        (4, 4, {"warmup": -1}, "warm-up rounds is -1"),
        (510, 4, {}, "more than the 512 positions"),
    ],
    ids=str,
)
def test_bad_numbers(prompt, new, options, words):
    with pytest.raises(InputError, match=words):
        measure(tiny.model("llama"), prompt, new, **options)


def test_nan_logits_have_no_speed():
    model = tiny.model("llama")
    torch.nn.init.constant_(model.lm_head.weight, math.nan)
    with pytest.raises(RunError, match="NaN"):
        measure(model, 4, 3, repeats=1)
