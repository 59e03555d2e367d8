"""Sensitivities requested from a terminal and from a page: output, storage, reuse, cancellation and
rejection."""

import json

import pytest
import tiny

from qcore import library
from qcore.cli import main
from qcore.jobs import jobs
from qcore.jobs.kind_sensitivity import SensitivityRequest
from qcore.quantization.calibration import load_calibration
from qcore.quantization.convert import quantize
from qcore.quantization.sensitivity.store import TableStore, tables
from qcore.recipes import parse
from qcore.verbs.sensitivity import Request
from qcore.verbs.sensitivity import run as compute

FORMATS = "int3-g32,int4-g32,int8"


pytestmark = [pytest.mark.usefixtures("own_home"), pytest.mark.slow]


@pytest.fixture
def model(tmp_path):
    return str(tiny.checkpoint("llama", tmp_path / "llama"))


@pytest.fixture
def text(tmp_path):
    path = tmp_path / "text.txt"
    path.write_text("It was the best of tokens, it was the worst of tokens. " * 40)
    return str(path)


@pytest.fixture
def said(capsys):
    def call(*arguments):
        capsys.readouterr()
        status = main.main(["sensitivity", *map(str, arguments)])
        captured = capsys.readouterr()
        return status, captured.out, captured.err

    return call


def test_the_command_prints_kinds_correlations_and_choices(said, model, text, tmp_path):
    out = tmp_path / "out.json"
    options = ("--formats", FORMATS, "--text", text, "--tokens", 512, "--measure", 256)
    status, printed, _ = said(model, *options, "--budget", "4.5bpw", "--budget", "0.5kl", "--json", out)
    assert status == 0
    record = json.loads(out.read_text())
    assert len(record["layers"]) == 14 and record["conditions"]["measured_tokens"] == 256
    assert (
        all(len(layer["kl"]) == 3 for layer in record["layers"])
        and record["correlations"]["loss"]["all"] > 0.5
    )
    for words in (
        "self_attn.q_proj",
        "all layers",
        "rank correlation",
        "most sensitive in int3-g32",
        "4.5bpw: 4.",
        "0.5kl: ",
    ):
        assert words in printed
    key, table = tables()[0]
    assert key == record["key"] and table.measured and not (TableStore({}).path.parent / key / "kl").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--formats", "int4-g64-gptq"), "not a plain format"),
        (("--formats", "int4-g64,banana"), "banana"),
        (("--formats", ","), "No format was given"),
        (("--method", "kmeans"), "kmeans cannot choose formats"),
        (("--tokens", 3), "tokens is 3"),
        (("--measure", 10**6), "measure_tokens is 1000000"),
        (("--budget", "12mb"), "such as 4.25bpw"),
        (("--budget", "0bpw"), "above 0"),
        (("--text", "/nowhere.txt"), "nowhere.txt"),
        (("--json", "/nowhere/out.json"), "no folder"),
    ],
)
def test_bad_input_is_one_sentence(said, model, options, message):
    status, printed, error = said(model, *options)
    assert status == 2 and not printed and message in error and len(error.strip().splitlines()) == 1


def test_a_budget_below_the_smallest_format_is_refused(said, model, text):
    status, _, error = said(model, "--formats", FORMATS, "--text", text, "--tokens", 256, "--budget", "3bpw")
    assert status == 2 and "Request 3.59" in error


def test_what_was_computed_is_found_again_by_recipes_and_measurements(model, text):
    seen = []

    def note(done, total, words):
        seen.append(words)

    key, table = compute(Request(model=model, text=text), note)
    assert any("rounding" in words for words in seen) and not table.measured
    seen.clear()
    loaded = library.load(library.resolve(model))
    calibration = load_calibration(text, loaded.tokenizer)
    ledger = quantize(
        loaded.model,
        parse("auto-4.8bpw"),
        calibration=calibration,
        identity=loaded.checkpoint.digest,
        stamp=loaded.checkpoint.stamp,
        progress=note,
    )
    assert ledger.allocation["sensitivities"] == key and not any("rounding" in words for words in seen)
    seen.clear()
    again, measured = compute(Request(model=model, text=text, measure_tokens=256), note)
    assert again == key and measured.measured and not any("rounding" in words for words in seen)
    assert [layer.loss for layer in measured.layers] == [layer.loss for layer in table.layers]


def test_a_stopped_measurement_is_taken_up(model, text):
    def stop(done, total, words):
        if words.startswith("block 2 of 2: q_proj"):
            raise KeyboardInterrupt

    request = Request(model=model, formats=FORMATS.split(","), text=text, tokens=512, measure_tokens=256)
    with pytest.raises(KeyboardInterrupt):
        compute(request, stop)
    seen = []
    _, table = compute(request, lambda done, total, words: seen.append(words))
    assert table.measured and not any(words.startswith("block 1 of 2: q_proj") for words in seen)


def test_a_process_of_its_own_computes_and_can_be_cancelled(model, text, ended):
    request = SensitivityRequest(model=model, formats=tuple(FORMATS.split(",")), text=text, tokens=256)
    run_id = jobs.submit(request)
    done = ended(run_id)
    assert done.state == "done" and done.request["model"] == model
    assert jobs.outcome(run_id) == {"key": tables()[0][0]}
    again = jobs.submit(SensitivityRequest(model=model, text=text, tokens=1024, measure_tokens=4096))
    assert jobs.cancel(again).state == "cancelled"
    assert jobs.cancel(again).state == "cancelled"  # nothing is under way: nothing happens


def test_a_failure_is_told(text, ended):
    failed = ended(jobs.submit(SensitivityRequest(model="/nowhere/at/all", text=text)))
    assert failed.state == "failed" and "nowhere" in failed.error and failed.error_kind == "InputError"
