"""`auto-4.25bpw`: names, the choice for a whole model, what is stored, what is refused."""

import json

import pytest
import tiny
import torch
from hypothesis import given
from hypothesis import strategies as st

from qcore import library, runtime
from qcore.base.errors import InputError
from qcore.formats.budget import CANDIDATES, Budget
from qcore.kernels import library as kernels_library
from qcore.layers.select import select
from qcore.library import safetensors
from qcore.planning import fit
from qcore.quantization.calibration import Calibration
from qcore.quantization.convert import quantize
from qcore.quantization.sensitivity.choosing import choose_formats
from qcore.quantization.sensitivity.store import tables
from qcore.recipes import Recipe, describe, parse
from qcore.verbs import layer_errors
from qcore.verbs.layer_errors import errors


def ids(rows: int = 3, columns: int = 40) -> torch.Tensor:
    return torch.randint(0, 256, (rows, columns), generator=torch.Generator().manual_seed(0))


def text() -> Calibration:
    return Calibration("random bytes", "0" * 64, ids())


def quiet(done, total, words):
    pass


@pytest.mark.parametrize(
    "name",
    [
        "auto-4.25bpw",
        "auto-3.35bpw-dq-gptq",
        "rot-auto-4bpw-signround",
        "auto-90mb-hqq-head8",
        "auto-0.1kl-awq-a8",
        "AUTO-5bpw",
    ],
)
def test_names_come_back(name):
    recipe = parse(name)
    assert recipe.name == name.lower() and recipe.calibrated and recipe.quantizes
    assert Recipe.from_dict(json.loads(json.dumps(recipe.to_dict()))) == recipe
    assert "sensitivity" in describe(recipe) and recipe.weights.words in describe(recipe)


@given(st.floats(0.0001, 16, allow_nan=False), st.sampled_from(["bpw", "mb", "kl"]))
def test_every_budget_can_be_named(amount, unit):
    amount = max(1e-4, float(f"{amount:.4f}"))
    budget = parse(f"auto-{amount:.4f}{unit}").weights
    assert (budget.amount, budget.unit) == (amount, unit)
    assert parse(f"auto-{budget.label}").weights == budget


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("auto", "needs one budget"),
        ("auto-4bpw-50mb", "needs one budget"),
        ("gguf-auto", "needs one budget"),
        ("gguf-auto-4bpw-dq", "no double quantization"),
        ("auto-4bpw-3bpw", "same option twice"),
        ("auto-0bpw", "above 0"),
        ("auto-17bpw", "at most 16"),
        ("auto-4bpw-g64", "chooses the group sizes"),
        ("auto-4bpw-sym", "chooses the group sizes"),
        ("auto-4bpw-hessian", "learns the table of kmeans4"),
        ("auto-4.25bp", "Did you mean auto-4.25bpw"),
        ("int4-4bpw", "belongs to auto"),
    ],
)
def test_a_wrong_name_gets_one_sentence(name, message):
    with pytest.raises(InputError, match=message):
        parse(name)


def test_budgets_check_themselves():
    for wrong in (
        {"unit": "bits"},
        {"amount": -1.0},
        {"candidates": CANDIDATES[:1]},
        {"candidates": CANDIDATES[:1] * 2},
    ):
        with pytest.raises(ValueError):
            Budget(**{"amount": 4.0, "unit": "bpw"} | wrong)


@pytest.mark.parametrize("kind", ["llama", "gpt2", "moe"])
@pytest.mark.parametrize("name", ["auto-4.8bpw", "auto-4.8bpw-gptq", "auto-5bpw-dq-hqq", "gguf-auto-5bpw"])
def test_the_result_stays_within_its_bits_and_says_what_was_chosen(kind, name):
    ledger = quantize(tiny.model(kind), parse(name), calibration=text())
    chosen = ledger.allocation
    assert ledger.bits_per_weight <= parse(name).weights.amount
    assert chosen["bits_per_weight"] == pytest.approx(ledger.bits_per_weight) and chosen["exact"]
    counted = {}
    for row in ledger.quantized:
        counted[row.format] = counted.get(row.format, 0) + 1
    assert counted == chosen["layers_by_format"] and len(counted) > 1
    points = chosen["frontier"]
    assert points == sorted(points) and [loss for _, loss in points] == sorted(
        (loss for _, loss in points), reverse=True
    )
    assert set(chosen["single"]) == set(chosen["candidates"])
    better = [loss for bits, loss in chosen["single"].values() if bits <= chosen["bits_per_weight"]]
    assert all(chosen["predicted_kl"] <= loss for loss in better), (
        "no single candidate of at most this size is predicted to be better"
    )


def test_the_whole_models_bytes_and_the_predicted_loss_can_be_limited():
    ledger = quantize(tiny.model("llama"), parse("auto-0.175mb"), calibration=text())
    assert 0.17e6 < ledger.stored_bytes <= 0.175e6
    ledger = quantize(tiny.model("llama"), parse("auto-0.0001kl"), calibration=text())
    assert 0.00005 < ledger.allocation["predicted_kl"] <= 0.0001
    tighter = quantize(tiny.model("llama"), parse("auto-0.00001kl"), calibration=text())
    assert tighter.stored_bytes > ledger.stored_bytes


def test_a_head_in_int8_counts_and_layers_outside_of_blocks_get_the_largest_candidate():
    ledger = quantize(tiny.model("llama"), parse("auto-5.5bpw-head8"), calibration=text())
    assert ledger.bits_per_weight <= 5.5 and any(
        row.name == "lm_head.weight" and row.format == "int8-sym" for row in ledger.rows
    )
    ledger = quantize(tiny.model("llama"), parse("auto-5.5bpw").with_modules(head="same"), calibration=text())
    assert ledger.bits_per_weight <= 5.5
    assert next(row for row in ledger.rows if row.name == "lm_head.weight").format == "int8-sym"


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("auto-2bpw", "Request 3.297bpw or more"),
        ("auto-0.01mb", "Request 0.164mb or more"),
        ("auto-0.0000000001kl", "Request 0.0000.*kl or more"),
    ],
)
def test_a_budget_that_cannot_be_met_says_what_can(name, message):
    model = tiny.model("llama")
    with pytest.raises(InputError, match=message) as caught:
        quantize(model, parse(name), calibration=text())
    asked = str(caught.value).rpartition("Request ")[2].removesuffix(" or more.")
    assert quantize(model, parse(f"auto-{asked}"), calibration=text()), "and that is true"


def test_text_is_needed():
    with pytest.raises(InputError, match="calibration text"):
        quantize(tiny.model("llama"), parse("auto-4.8bpw"))


@pytest.mark.parametrize("kind", tiny.CONFIGS)
@pytest.mark.parametrize("name", ["auto-5bpw", "auto-5bpw-gptq-head8", "gguf-auto-5.2bpw-gptq"])
def test_a_saved_model_comes_back_with_each_layers_format(kind, name, tmp_path):
    model, recipe = tiny.model(kind), parse(name)
    ledger = quantize(model, recipe, calibration=text())
    folder = safetensors.save(model, tiny.tokenizer(), recipe, ledger, tmp_path / "saved")
    loaded, loaded_ledger, loaded_recipe = safetensors.load(folder)
    with torch.no_grad():
        assert torch.equal(loaded(ids(1, 24)).logits, model(ids(1, 24)).logits)
    assert loaded_ledger == ledger and loaded_recipe == recipe


def test_the_decoder_runs_layers_of_different_formats():
    model = tiny.model("llama")
    ledger = quantize(model, parse("auto-5bpw"), calibration=text())
    assert len({row.format for row in ledger.quantized}) > 2
    if kernels_library.reason_missing() is None:
        assert runtime.weights.supports(model) is None


def test_sensitivities_are_computed_once_and_found_again(tmp_path, monkeypatch):
    monkeypatch.setenv("QCORE_HOME", str(tmp_path))
    seen = []

    def note(done, total, words):
        seen.append(words)

    for name in ("auto-4.8bpw", "auto-5bpw"):
        model, recipe = tiny.model("llama"), parse(name)
        chosen = choose_formats(
            model, recipe, list(select(model, recipe).targets), text(), note, identity="a digest"
        )
        assert chosen.record["sensitivities"] and bool(seen) == (name == "auto-4.8bpw")
        seen.clear()
    assert len(tables()) == 1
    other = choose_formats(
        model,
        parse("auto-5bpw-gptq"),
        list(select(model, parse("auto-5bpw-gptq")).targets),
        text(),
        note,
        "a digest",
    )
    assert seen and other.record["sensitivities"] != chosen.record["sensitivities"]


def test_a_stopped_run_is_not_taken_up_with_other_formats(tmp_path):
    def stop(done, total, words):
        choosing = ("rounding its layers", "reading the text", "reading the layers' inputs")
        if words.startswith("block 2") and not any(each in words for each in choosing):
            raise KeyboardInterrupt

    for name, fresh in (("auto-5bpw-gptq", True), ("auto-5bpw-gptq", False)):
        seen = []
        with pytest.raises(KeyboardInterrupt):
            quantize(
                tiny.model("llama"),
                parse(name),
                calibration=text(),
                work=tmp_path,
                identity="model",
                progress=lambda done, total, words, seen=seen: (seen.append(words), stop(done, total, words)),
            )
        assert any(words == "block 1 of 2: reading its inputs" for words in seen) == fresh
    assert len(list(tmp_path.glob("blocks-*"))) == 1


def test_planning_knows_the_size(tmp_path):
    checkpoint = library.resolve(str(tiny.checkpoint("llama", tmp_path / "model")))
    sizes = [
        fit.estimate(checkpoint, parse(name)).stored_bytes
        for name in ("auto-4bpw", "auto-5bpw", "auto-0.1kl", "int8")
    ]
    assert sizes[0] < sizes[1] < sizes[2] == sizes[3]
    with pytest.raises(InputError, match="Compute the sensitivities of the model"):
        errors(checkpoint, parse("auto-4bpw"))
    assert layer_errors.names(checkpoint, parse("int4"))


@pytest.mark.slow
def test_a_runs_record_holds_predicted_and_measured_loss(tmp_path, monkeypatch):
    from qcore.recipes.spec import RunSpec
    from qcore.verbs import compare

    monkeypatch.setenv("QCORE_HOME", str(tmp_path / "home"))
    read, scored = tmp_path / "calibration.txt", tmp_path / "scored.txt"
    read.write_text("It was the best of tokens, it was the worst of tokens. " * 20)
    scored.write_text("All happy models are alike; each unhappy one is quantized in its own way. " * 5)
    spec = RunSpec(
        str(tiny.checkpoint("llama", tmp_path / "llama")),
        "fp32,auto-5bpw-gptq",
        text=str(scored),
        tokens=120,
        window=40,
        prompt_tokens=8,
        new_tokens=2,
        repeats=1,
        generate=False,
        calibration=str(read),
        calibration_tokens=256,
    )
    base, mixed = (compare.run_recipe(spec, recipe, tmp_path, lambda event: None) for recipe in spec.recipes)
    assert base["record"]["allocation"] is None and mixed["bits_per_weight"] <= 5
    chosen = mixed["record"]["ledger"]["allocation"]
    assert mixed["record"]["allocation"] == {
        "predicted_kl": chosen["predicted_kl"],
        "measured_kl": mixed["kl_mean"],
    }
    assert spec.command and "auto-5bpw-gptq" in spec.command
    assert RunSpec.from_dict(json.loads(json.dumps(spec.to_dict()))) == spec
