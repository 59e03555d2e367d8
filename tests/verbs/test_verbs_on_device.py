"""The verbs on a simulated accelerator (`tests/accelerator.py`), and the refusals where there is none."""

import json
import shutil
from contextlib import nullcontext
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

import qcore
from qcore import library, planning, recipes
from qcore.base.errors import InputError, TooLargeError, UnavailableError
from qcore.cli.main import main
from qcore.jobs import child, kinds
from qcore.measurement.devices import out_of_memory
from qcore.models import imatrix
from qcore.planning import hindsight
from qcore.recipes.spec import RunSpec
from qcore.results.folder import RunFolder
from qcore.verbs import bench, checks, compare, evaluate, generate, prepare, sensitivity
from qcore.verbs import imatrix as imatrix_verb
from qcore.verbs import plan as plan_verb
from qcore.verbs import quantize as quantize_verb
from tests import tiny
from tests.accelerator import FREE, simulated

TEXT = "Tokens of a text that is read for the evaluation of a model. " * 6
OTHER = "Another sentence, which calibrates the weights of layers before they are judged. " * 3


def quiet(*_):
    pass


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return str(tiny.checkpoint("llama", tmp_path_factory.mktemp("device") / "tiny"))


@pytest.fixture
def texts(tmp_path):
    (tmp_path / "text.txt").write_text(TEXT)
    (tmp_path / "other.txt").write_text(OTHER)
    return str(tmp_path / "text.txt"), str(tmp_path / "other.txt")


@pytest.mark.slow
def test_a_comparison_on_the_device(model, texts, tmp_path):
    text, other = texts
    names = ("fp32", "int4-g32-imatrix", "kmeans4")
    spec = RunSpec(
        model=model,
        recipes=tuple(map(recipes.parse, names)),
        text=text,
        calibration=other,
        calibration_tokens=64,
        window=64,
        tokens=192,
        prompt_tokens=8,
        new_tokens=3,
        repeats=1,
        generate=False,
        device="cuda",
    )
    with simulated() as traffic:
        rows = {recipe.name: compare.run_recipe(spec, recipe, tmp_path, quiet) for recipe in spec.recipes}
        assert set(traffic.to_host) <= {"aten._local_scalar_dense.default", "tolist", "cpu", "copy_"}
    here = compare.run_recipe(replace(spec, device="cpu"), recipes.parse("fp32"), tmp_path, quiet)
    assert rows["fp32"]["perplexity"] == pytest.approx(here["perplexity"], rel=1e-6)
    for name in names[1:]:
        assert (
            rows[name]["perplexity"] == pytest.approx(here["perplexity"], rel=0.05)
            and rows[name]["kl_mean"] < 0.05
        )
    said = {name: " ".join(row["record"]["execution"]) for name, row in rows.items()}
    assert "PyTorch's int4 kernel" in said["int4-g32-imatrix"]
    assert "plain torch: no kernel on cuda:0 reads the format kmeans4" in said["kmeans4"]
    assert rows["kmeans4"]["record"]["memory"]["device"] == {"loading": 12345, "running": 12345}
    assert here["record"]["memory"]["device"] == {"loading": None, "running": None}


def test_eval_bench_and_generate_on_the_device(model, texts):
    here = evaluate.run(model, text=texts[0], window=64, tokens=128, progress=quiet)
    prose = generate.run(model, "abc", 4, progress=quiet)
    with simulated():
        there = evaluate.run(model, text=texts[0], window=64, tokens=128, device="cuda", progress=quiet)
        speed = bench.run(model, prompt_tokens=4, new_tokens=3, repeats=1, device="cuda", progress=quiet)
        assert generate.run(model, "abc", 4, device="cuda", progress=quiet)["tokens"] == prose["tokens"]
    assert there["perplexity"] == pytest.approx(here["perplexity"], rel=1e-6)
    assert "--device cuda" in there["record"]["command"] and "--device" not in here["record"]["command"]
    assert speed["device"] == "cuda:0" and speed["record"]["device_memory"]["running"] == 12345


def test_codes_chosen_on_the_device_are_saved_as_those_of_the_cpu(model, texts, tmp_path):
    recipe = recipes.parse("int4-g32-hqq")
    quantize_verb.run(model, recipe, tmp_path / "cpu", progress=quiet)
    with simulated():
        quantize_verb.run(model, recipe, tmp_path / "there", device="cuda", progress=quiet)
    wanted, found = (library.load(str(tmp_path / name)).model.state_dict() for name in ("cpu", "there"))
    assert wanted.keys() == found.keys() and all(torch.equal(wanted[name], found[name]) for name in wanted)
    with pytest.raises(InputError, match="streamed quantization runs on the CPU"):
        quantize_verb.run(model, recipe, tmp_path / "s", device="cuda", stream=True, progress=quiet)


def test_a_plan_for_the_device_counts_its_free_memory(model):
    with simulated():
        found = plan_verb.run(model, ["int8"], device="cuda")
    assert found.memory == FREE + planning.machines.RUNTIME and found.memory_is == "free on cuda"
    assert found.rows[0].run_bytes == found.rows[0].card_bytes and found.rows[0].fits
    with simulated(), pytest.raises(InputError, match="probe times the processor"):
        plan_verb.run(model, ["int8"], device="cuda", probe=True)


def test_speeds_and_errors_of_the_cpu_are_not_those_of_the_device(model, monkeypatch):
    monkeypatch.setattr(
        "qcore.planning.probe.known", lambda *_: pytest.fail("a probe of the processor was read")
    )
    with simulated():
        assert plan_verb.run(model, ["int8"], device="cuda").rows[0].decode_tok_s is None
    row = {"peak_run_bytes": 100, "record": {"predicted": {"peak_run_bytes": 110}, "device": "cpu"}}
    assert hindsight.of_row(row) == {"peak_run_bytes": pytest.approx(0.1)}
    row["record"]["device"] = "cuda"
    assert hindsight.of_row(row) == {}


@pytest.mark.parametrize(
    ("recipe", "free", "words"),
    [
        ("fp32", 300_000, "as fp32: running needs"),
        ("int8", 450_000, "as int8: loading 0.11 million weights needs"),
    ],
)
def test_a_model_that_does_not_fit_on_the_device_is_one_sentence_of_arithmetic(model, recipe, free, words):
    checkpoint = library.resolve(model)
    with pytest.raises(TooLargeError, match=words) as refused:
        planning.check_device_fits(
            checkpoint, recipes.parse(recipe), "cuda", tokens=8, window=8, available=free
        )
    assert "fit into the memory of cuda" in str(refused.value) and "evice cpu" in str(refused.value)
    planning.check_device_fits(
        checkpoint, recipes.parse(recipe), "cuda", tokens=8, window=8, available=5_000_000
    )


def test_importance_and_sensitivities_on_the_device_are_those_of_the_cpu(model, texts, tmp_path, own_home):
    matrices, tables = [], []
    for device in ("cpu", "cuda"):
        path, text = tmp_path / f"{device}.gguf", prepare.CalibrationText(texts[1], 64)
        wanted = sensitivity.Request(
            model=model,
            formats=("int4-g32", "int8"),
            text=texts[1],
            tokens=64,
            measure_tokens=64,
            device=device,
        )
        with simulated() if device == "cuda" else nullcontext():
            imatrix_verb.run(model, path, calibration=text, device=device, progress=quiet)
            matrices.append(imatrix.read(path).values)
            shutil.rmtree(own_home / "sensitivity", ignore_errors=True)
            tables.append(sensitivity.run(wanted, quiet)[1])
    for name, values in matrices[0].items():
        torch.testing.assert_close(torch.as_tensor(matrices[1][name]), torch.as_tensor(values))
    for here, there in zip(*(table.layers for table in tables), strict=True):
        assert there.loss == pytest.approx(here.loss, rel=1e-3) and there.kl == pytest.approx(
            here.kl, rel=1e-3
        )


@pytest.mark.skipif(torch.accelerator.is_available(), reason="this machine has an accelerator")
def test_every_face_refuses_a_device_that_is_not_here(model, tmp_path, capsys):
    sentence = "The device 'cuda' is not available on this machine; use cpu."
    for call in (
        lambda: qcore.load(model, device="cuda"),
        lambda: qcore.quantize(model, "int8", device="cuda"),
        lambda: qcore.plan(model, device="cuda"),
        lambda: checks.check_run(RunSpec(model=model, recipes=(recipes.parse("int8"),), device="cuda")),
    ):
        with pytest.raises(UnavailableError) as refused:
            call()
        assert str(refused.value) == sentence
    out = str(tmp_path / "out")
    for words in (
        ["compare", model, "--recipes", "int8"],
        ["quantize", model, "--recipe", "int8", "--out", out],
        ["eval", model],
        ["bench", model],
        ["generate", model, "--prompt", "a"],
        ["plan", model],
        ["sensitivity", model],
        ["imatrix", model, "--out", str(tmp_path / "imatrix.gguf")],
    ):
        assert main([*words, "--device", "cuda"]) == 2
        assert sentence in capsys.readouterr().err


def test_exhausted_memory_is_named_by_its_place():
    error = torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
    assert out_of_memory(error, " while loading") == (
        "There was not enough memory on the device while loading. Take a smaller model, a smaller window, or "
        "the device cpu."
    )
    assert out_of_memory(MemoryError()).startswith("There was not enough memory. Take")
    assert out_of_memory(RuntimeError("x")) is None


def test_a_child_reports_exhausted_memory_of_the_device_as_its_rows_error(monkeypatch, own_home, tmp_path):
    """The worker then goes on with the next recipe, as after every failed child."""

    def fail(request, context):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")

    spec = RunSpec(model="smollm2-135m", recipes=(recipes.parse("int8"),))
    folder = RunFolder("20261130-000000-abcdef", new=True)
    folder.path.mkdir(parents=True)
    folder.write("spec.json", spec.to_dict())
    kind = kinds.kind_of(spec.to_dict())
    monkeypatch.setattr(
        kinds, "kind_of", lambda record: SimpleNamespace(request=kind.request, resumes=False, run=fail)
    )
    monkeypatch.setattr(child, "lifeline", lambda: None)
    events = tmp_path / "events"
    assert child.main([folder.run_id, "00", str(events)]) == 1
    last = json.loads(events.read_text().splitlines()[-1])
    assert last["event"] == "error" and "not enough memory on the device" in last["message"]
