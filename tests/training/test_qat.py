"""Quantization-aware training from end to end on a tiny trained model: the recovered quality, and that a kill
costs nothing."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
import tiny
import torch

from qcore import library
from qcore.base import texts
from qcore.base.errors import InputError, RunError
from qcore.evaluation import evaluate
from qcore.kernels import precision
from qcore.layers.modules import QuantizedModule
from qcore.library import safetensors
from qcore.quantization import convert
from qcore.quantization.calibration import check_record
from qcore.recipes import parse
from qcore.training import corpus, qat
from qcore.training.attach import TrainableSet
from qcore.training.checkpoint import TrainingState
from qcore.training.loop import History, Problem, Schedule, order, train
from qcore.training.teacher import Teacher, next_loss, soft_loss
from qcore.verbs import qat as verb

pytestmark = pytest.mark.usefixtures("own_home")


def quiet(*step) -> None:
    pass


def asked(words, steps: int = 60, **changes) -> qat.Qat:
    about = {"text": str(words / "train.txt"), "window": 64, "tokens": 8192, "rate": 1e-2}
    return qat.Qat(**about | changes | {"schedule": Schedule(steps=steps, batch=8, validations=4)})


def perplexity(model, words) -> float:
    ids = texts.tokenize((words / "test.txt").read_text(), tiny.tokenizer(), limit=2000)
    return evaluate(model, ids, window=128).perplexity


@pytest.mark.parametrize("fast", [True, False])
def test_steps_are_in_mixed_precision_where_the_processor_is_fast_at_it(monkeypatch, tmp_path, fast):
    monkeypatch.setattr(precision, "has_fast_bf16", lambda: fast)
    torch.manual_seed(0)
    student, ids, seen = torch.nn.Linear(8, 4, bias=False), torch.randn(4, 2, 8), {"step": [], "judge": []}

    def loss(model, numbers, ids):
        made = model(ids)
        seen["step"].append(made.dtype)
        return made.float().square().mean()

    def judge(model):
        made = model(ids)
        seen["judge"].append(made.dtype)
        return float(made.detach().square().mean()), 1.0

    problem = Problem(student, [{"params": [student.weight], "lr": 1e-2}], ids, loss, judge)
    history = train(problem, Schedule(steps=4), TrainingState({"kind": "test", "fast": fast}), quiet)
    assert set(seen["step"]) == {torch.bfloat16 if fast else torch.float32}
    assert set(seen["judge"]) == {torch.float32} and student.weight.dtype == torch.float32
    assert history.best < history.validations[0][1]


@pytest.mark.slow
def test_the_light_form_recovers_nine_tenths_of_what_rounding_loses(learned, words, tmp_path):
    recipe, checkpoint = parse("int2-g64-a32"), library.resolve(str(learned))
    rounded = library.load(checkpoint).model
    before = perplexity(rounded, words)
    ledger = convert.quantize(rounded, recipe)
    trained, history, kept = verb.train(checkpoint, recipe, asked(words), progress=quiet)
    lost, left = perplexity(rounded, words) - before, perplexity(trained.model, words) - before
    assert lost > 0.05 and left < 0.1 * lost
    assert trained.ledger.stored_bytes == ledger.stored_bytes
    old = {name: module for name, module in rounded.named_modules() if isinstance(module, QuantizedModule)}
    for name, module in trained.model.named_modules():
        if isinstance(module, QuantizedModule):
            assert torch.equal(module.quantized.codes, old[name].quantized.codes)
    assert history.ended == "steps" and len(history.curve) == 60 and len(history.validations) == 5
    assert trained.ledger.training["history"]["best_step"] == history.best_step > 0
    folder = safetensors.save(trained.model, trained.tokenizer, recipe, trained.ledger, tmp_path / "out")
    again = library.load(str(folder))
    text = torch.arange(50)[None]
    with torch.no_grad():
        assert torch.equal(again.model(text).logits, trained.model(text).logits)
    assert again.ledger.training == json.loads(json.dumps(trained.ledger.training))
    content = texts.load_text(words / "train.txt")
    with pytest.raises(InputError, match="must not be evaluated on its calibration text"):
        check_record(
            again.ledger.calibration,
            content.name,
            content.sha256,
            texts.tokenize(content, tiny.tokenizer(), limit=1000),
        )
    kept.remove()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("recipe", "changes"),
    [
        ("int3-g32", {"form": TrainableSet("full", True)}),
        ("int2-g64-gptq", {}),
        ("int2-g64", {"form": TrainableSet("full"), "loss": "next"}),
    ],
    ids=["lsq", "from the codes of gptq", "full, next token"],
)
def test_other_forms_and_beginnings_end_no_worse_than_they_began(learned, words, recipe, changes):
    trained, history, _ = verb.train(
        library.resolve(str(learned)), parse(recipe), asked(words, steps=12, **changes), progress=quiet
    )
    first, best = history.validations[0][1], history.best
    assert best < first and trained.recipe.name == recipe


def test_codes_are_not_chosen_by_what_the_model_is_judged_by(learned, words, monkeypatch):
    options, seen = asked(words, steps=1), []
    quantize = convert.quantize
    monkeypatch.setattr(
        convert,
        "quantize",
        lambda *given, calibration=None, **more: (
            seen.append(calibration),
            quantize(*given, calibration=calibration, **more),
        )[1],
    )
    verb.train(library.resolve(str(learned)), parse("int3-g64-gptq"), options, progress=quiet)
    found = corpus.load(options.text, None, tiny.tokenizer(), tokens=options.tokens, window=options.window)
    rows = lambda ids: set(map(tuple, ids.tolist()))  # noqa: E731
    assert (
        seen[0].ids.numel() >= 4096
        and rows(seen[0].ids) <= rows(found.train)
        and rows(seen[0].ids).isdisjoint(rows(found.held_out))
    )


def test_chosen_codes_are_trained_in_smaller_steps():
    options = qat.Qat()
    assert options.rate_for(parse("int3-g64-gptq")) == 0.4 * options.rate_for(parse("int3-g64"))
    assert qat.Qat(rate=0.01).rate_for(parse("int3-g64-gptq")) == 0.01


@pytest.mark.slow
def test_a_run_that_goes_on_takes_the_same_steps(learned, words):
    checkpoint, recipe, options = library.resolve(str(learned)), parse("int3-g64"), asked(words, steps=10)
    whole, history, kept = verb.train(checkpoint, recipe, options, progress=quiet)
    kept.remove()

    def stop(seen: History) -> None:
        if seen.step == 6:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        verb.train(checkpoint, recipe, options, progress=quiet, watch=stop)
    seen = []
    again, second, _ = verb.train(
        checkpoint, recipe, options, progress=quiet, watch=lambda each: seen.append(each.step)
    )
    assert seen[0] == 7 and [each[3] for each in second.curve] == pytest.approx(
        [each[3] for each in history.curve], rel=1e-4
    )
    for (name, one), (_, other) in zip(whole.model.named_modules(), again.model.named_modules(), strict=True):
        if isinstance(one, QuantizedModule):
            torch.testing.assert_close(one.weight, other.weight, rtol=1e-3, atol=1e-5, msg=name)


FOREVER = """
import sys
from qcore import library
from qcore.recipes import parse
from qcore.training import loop, qat
from qcore.verbs import qat as verb

loop.SAVE_SECONDS = 0.0
schedule = loop.Schedule(steps=100_000, batch=1, validations=1)
options = qat.Qat(text=sys.argv[2], window=64, tokens=8192, schedule=schedule)
verb.train(library.resolve(sys.argv[1]), parse("int3-g64"), options, progress=lambda done, total, words: None)
"""


@pytest.mark.row("31")
@pytest.mark.slow
def test_kill_9_leaves_a_state_to_go_on_from(learned, words, tmp_path):
    root, environment = (
        Path(__file__).resolve().parents[2],
        os.environ | {"QCORE_HOME": str(tmp_path / "home")},
    )
    command = [sys.executable, "-c", FOREVER, str(learned), str(words / "train.txt")]
    child = subprocess.Popen(command, cwd=root, env=environment)
    deadline = time.monotonic() + 120
    while (
        not list((tmp_path / "home" / "unfinished").glob("training-*/state.safetensors"))
        and time.monotonic() < deadline
    ):
        time.sleep(0.05)
    time.sleep(0.5)
    assert child.poll() is None
    child.kill()
    child.wait()
    options = qat.Qat(
        text=str(words / "train.txt"),
        window=64,
        tokens=8192,
        schedule=Schedule(steps=100_000, batch=1, validations=1),
    )
    seen = []

    def stop(history: History) -> None:
        seen.append(history.step)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        verb.train(library.resolve(str(learned)), parse("int3-g64"), options, progress=quiet, watch=stop)
    assert seen[0] > 1


# -- the loop ------------------------------------------------------------------------------------------------


class Line(torch.nn.Module):
    """A model of one number."""

    def __init__(self, value: float = 0.0):
        super().__init__()
        self.value = torch.nn.Parameter(torch.tensor([value]))


def line(target: float, judged: list[float] | None = None) -> Problem:
    student, told = Line(), iter(judged or [])

    def judge(model) -> tuple[float, float]:
        return (next(told) if judged else float((model.value.detach() - target).abs())), 1.0

    return Problem(
        student,
        [{"params": [student.value], "lr": 0.1}],
        torch.zeros(4, 3, dtype=torch.long),
        lambda model, numbers, ids: (model.value - target).square().mean(),
        judge,
    )


def test_training_stops_early_and_comes_out_with_the_best():
    problem = line(5.0, [4.0, 3.0, 1.0, 2.0, 2.5, 3.0, 0.0, 0.0, 0.0])
    values = []
    history = train(
        problem,
        Schedule(steps=80, validations=8, patience=3),
        TrainingState({"a": 1}),
        quiet,
        watch=lambda seen: values.append(float(problem.student.value.detach())),
    )
    assert history.ended == "early stop" and history.best_step == 20 and len(history.validations) == 6
    assert float(problem.student.value.detach()) == pytest.approx(values[20])


def test_a_loss_that_is_no_number_ends_the_run():
    problem = line(float("nan"))
    with pytest.raises(RunError, match="diverged"):
        train(problem, Schedule(steps=3), TrainingState({"b": 1}), quiet)


def test_each_window_is_read_once_before_any_is_read_again():
    schedule = Schedule(steps=10, batch=3, seed=7)
    read = [number for step in range(10) for number in order(5, schedule, step)]
    assert all(sorted(read[i : i + 5]) == [0, 1, 2, 3, 4] for i in range(0, 30, 5)) and read[:5] != read[5:10]


def test_a_time_limit_ends_the_run():
    history = train(line(5.0), Schedule(minutes=0.002, validations=1), TrainingState({"c": 1}), quiet)
    assert history.ended == "time" and 0 < history.step < 100_000


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"steps": 0}, "steps is 0"),
        ({"minutes": -1.0}, "minutes"),
        ({"batch": True}, "batch"),
        ({"patience": 0}, "patience"),
    ],
    ids=["steps", "minutes", "batch", "patience"],
)
def test_a_schedule_out_of_range_is_refused(options, words):
    with pytest.raises(InputError, match=words):
        Schedule(**options)


# -- losses and texts ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_a_teacher_says_the_same_from_what_it_kept(kind):
    model = tiny.sharp(kind)
    teacher, ids = Teacher(model), torch.arange(60).view(2, 30)
    first = teacher.logits([4, 7], ids)
    again = teacher.logits([7, 4], ids.flip(0))
    torch.testing.assert_close(again.flip(0), first, rtol=1e-5, atol=1e-5)
    assert torch.equal(first, model(ids).logits) and len(teacher._kept) == 2


def test_a_teacher_whose_head_is_followed_by_something_is_run_each_time():
    model = tiny.sharp("llama")
    forward = model.forward

    def capped(**keywords):
        out = forward(**keywords)
        out.logits = 3 * torch.tanh(out.logits / 3)
        return out

    model.forward = capped
    teacher, ids = Teacher(model), torch.arange(30)[None]
    first = teacher.logits([1], ids)
    assert (
        torch.equal(teacher.logits([1], ids), first) and not teacher._kept and float(first.abs().max()) <= 3
    )


def test_losses_are_those_of_the_definition():
    wanted, made = torch.randn(2, 1, 5, 7, generator=torch.Generator().manual_seed(0)).unbind()
    p, q = (wanted / 2).softmax(-1), (made / 2).softmax(-1)
    torch.testing.assert_close(soft_loss(wanted, made, 2.0), 4 * (p * (p / q).log()).sum(-1).mean())
    ids = torch.tensor([[1, 2, 3, 4, 5]])
    by_hand = -torch.stack([made[0, i].log_softmax(-1)[ids[0, i + 1]] for i in range(4)]).mean()
    torch.testing.assert_close(next_loss(ids, made), by_hand)


def test_validation_never_overlaps_training(words, tmp_path):
    tokenizer = tiny.tokenizer()
    found = corpus.load(words / "train.txt", None, tokenizer, tokens=10**6, window=64, judged=512)
    whole = torch.cat([found.train, found.held_out]).flatten()
    assert torch.equal(whole, texts.tokenize((words / "train.txt").read_text(), tokenizer)[: len(whole)])
    with pytest.raises(InputError, match="overlaps"):
        corpus.load(words / "train.txt", words / "train.txt", tokenizer, tokens=10**6, window=64)
    short = tmp_path / "short.txt"
    short.write_text("too short")
    with pytest.raises(InputError, match="training needs at least"):
        corpus.load(short, None, tokenizer, tokens=64, window=64)


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"loss": "mse"}, "kl .* or next"),
        ({"rate": 0.0}, "rate is 0.0"),
        ({"tokens": 1}, "tokens is 1"),
        ({"window": 4}, "window is 4"),
    ],
    ids=["loss", "rate", "tokens", "window"],
)
def test_options_that_cannot_be_used_are_refused(changes, sentence):
    with pytest.raises(InputError, match=sentence):
        qat.Qat(**changes)


@pytest.mark.parametrize(
    ("recipe", "sentence"), [("fp32", "keeps floating point"), ("bnb-nf4", "another library's format")]
)
def test_recipes_without_codes_of_our_own_are_refused(recipe, sentence):
    with pytest.raises(InputError, match=sentence):
        qat.check_recipe(parse(recipe))
