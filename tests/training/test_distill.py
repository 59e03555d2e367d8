"""Students: their initial layers, their approach to the teacher, and that they are ordinary models with a
record."""

import json

import pytest
import tiny
import torch

import qcore
from qcore import library
from qcore.base.errors import InputError
from qcore.cli import main
from qcore.training import distill
from qcore.training.distill import Distill, begin, evenly, hidden_loss
from qcore.training.loop import Schedule
from qcore.verbs import distill as verb
from qcore.verbs import prune

pytestmark = pytest.mark.usefixtures("own_home")


def quiet(*step) -> None:
    pass


def asked(words, **changes) -> Distill:
    about = {"layers": 1, "text": str(words / "train.txt"), "window": 64, "tokens": 8192, "rate": 3e-3}
    return Distill(**{"schedule": Schedule(steps=40, batch=8, validations=4), **about, **changes})


@pytest.mark.slow
def test_a_student_of_half_the_depth_beats_the_model_that_is_merely_cut(learned, words, tmp_path):
    removed = prune.Prune(method="layers", calibration=str(words / "train.txt"), tokens=512)
    cut = prune.run(str(learned), removed, tmp_path / "cut", progress=quiet)
    result = verb.run(str(learned), asked(words), tmp_path / "student", compare=True, progress=quiet)
    first, best = (
        result["history"]["validations"][0],
        min(result["history"]["validations"], key=lambda each: each[1]),
    )
    assert best[1] < 0.2 * first[1] and best[2] - 1 < 0.7 * (first[2] - 1)
    assert result["stored_bytes"] == cut["stored_bytes"]
    record = json.loads((tmp_path / "student" / "qcore-made.json").read_text())
    assert (
        record["trained_seconds"] > 0
        and record["kept_layers"] == [0]
        and record["from"]["model"] == str(learned)
    )
    assert result["compared"]["after"]["stored_bytes"] < result["compared"]["before"]["stored_bytes"]
    again = library.load(str(tmp_path / "student"))
    assert again.checkpoint.config["num_hidden_layers"] == 1
    assert "to 1 layers, trained for" in again.checkpoint.description
    assert qcore.quantize(again, "int4-g32").ledger.coverage > 0.3
    with pytest.raises(InputError, match="must not be evaluated on"):
        qcore.evaluate(str(tmp_path / "student"), words / "train.txt", tokens=500)


def test_narrowing_temperature_and_hidden_states_go_together(learned, words):
    options = asked(
        words,
        layers=2,
        neurons=0.875,
        temperature=2.0,
        hidden=0.5,
        schedule=Schedule(steps=24, batch=8, validations=4),
    )
    made, record, _ = distill.run(library.load(str(learned)), options, quiet)
    assert made.model.config.intermediate_size == 16 and record["history"]["best_step"] > 0


def test_the_teacher_is_left_as_it_was():
    teacher = tiny.sharp("llama")
    before = {name: value.clone() for name, value in teacher.named_parameters()}
    student, layers = begin(teacher, Distill(layers=1, keep="influence"), torch.arange(60).view(2, 30), quiet)
    assert layers in ([0], [1])
    for parameter in student.model.layers.parameters():
        parameter.data.add_(1.0)
    assert all(torch.equal(value, before[name]) for name, value in teacher.named_parameters())


def test_layers_at_even_distances():
    assert evenly(30, 15)[0] == 0 and evenly(30, 15)[-1] == 29 and len(set(evenly(30, 15))) == 15
    assert evenly(12, 1) == [0] and evenly(4, 4) == [0, 1, 2, 3]


def test_hidden_states_of_the_same_model_cost_nothing():
    states = list(torch.randn(4, 1, 5, 8, generator=torch.Generator().manual_seed(0)))
    assert float(hidden_loss(states, states, [0, 1, 2])) == 0
    doubled = [2 * state for state in states]
    assert float(hidden_loss(states, doubled, [0, 1, 2])) == pytest.approx(1.0)


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"layers": 0}, "layers is 0"),
        ({"keep": "first"}, "even or influence"),
        ({"temperature": 0.0}, "temperature is 0.0"),
        ({"hidden": -1.0}, "hidden is -1.0"),
        ({"neurons": 1.5}, "amount is 1.5"),
    ],
    ids=lambda value: "" if isinstance(value, dict) else value[:8],
)
def test_options_that_cannot_be_used_are_refused(changes, sentence):
    with pytest.raises(InputError, match=sentence):
        Distill(**{"layers": 1} | changes)


def test_a_student_must_be_smaller(learned, words, tmp_path):
    with pytest.raises(InputError, match="is no smaller"):
        verb.run(str(learned), asked(words, layers=2), tmp_path / "out", progress=quiet)


@pytest.mark.slow
def test_the_verbs_do_the_same(learned, words, tmp_path):
    about = {
        "text": str(words / "train.txt"),
        "window": 64,
        "tokens": 2048,
        "schedule": {"steps": 2, "validations": 1},
    }
    assert qcore.qat(str(learned), "int3-g64", tmp_path / "q", **about)["recipe"] == "int3-g64"
    assert qcore.distill(str(learned), 1, tmp_path / "d", **about)["kept_layers"] == [0]
    assert qcore.prune(str(learned), "magnitude", 0.5, tmp_path / "p")["sparsity"] == 0.5
    with pytest.raises(InputError, match="Did you mean"):
        qcore.qat(str(learned), "int3-g64", tmp_path / "x", windows=64)


@pytest.mark.slow
def test_the_commands_train_and_say_so(learned, words, tmp_path, capsys):
    text = [
        "--text",
        str(words / "train.txt"),
        "--tokens",
        "2048",
        "--window",
        "64",
        "--steps",
        "4",
        "--validations",
        "2",
    ]
    out, other = str(tmp_path / "q"), str(tmp_path / "d")
    assert (
        main.main(
            [
                "qat",
                str(learned),
                "--recipe",
                "int3-g64",
                *text,
                "--out",
                out,
                "--compare",
                "--json",
                str(tmp_path / "r.json"),
            ]
        )
        == 0
    )
    said = capsys.readouterr().out
    assert "4 steps in" in said and "ended by steps" in said and "quantized without training: " in said
    result = json.loads((tmp_path / "r.json").read_text())
    assert set(result["compared"]) >= {"before", "rounded", "after"} and len(result["history"]["curve"]) == 4
    assert main.main(["distill", str(learned), "--layers", "1", *text, "--out", other]) == 0
    assert "Saved in" in capsys.readouterr().out
    for folder in (out, other):
        assert main.main(["eval", folder, "--tokens", "200", "--window", "100"]) == 0
    assert (
        main.main(
            [
                "compare",
                other,
                "--recipes",
                "fp32",
                "--tokens",
                "200",
                "--window",
                "100",
                "--prompt-tokens",
                "8",
                "--new-tokens",
                "4",
                "--no-generate",
            ]
        )
        == 0
    )
    assert main.main(["qat", out, "--recipe", "int3-g64", "--out", str(tmp_path / "x")]) == 2
    assert "quantized already" in capsys.readouterr().err
