"""An exported folder: it runs with ONNX Runtime alone, it is a model for eval and bench, and damage is
noticed."""

import json
import os
import subprocess
import sys

import pytest
import tiny
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from mutations import mutated
from onnx_models import IDS, made

from qcore import engines, library, recipes
from qcore.base.errors import InputError, RunError, UnavailableError
from qcore.cli import main
from qcore.engines.onnx import writing
from qcore.evaluation.generation import generate_text
from qcore.evaluation.perplexity import evaluate
from qcore.library import onnx_folder
from qcore.measurement import throughput
from qcore.verbs import evaluate as evaluate_verb
from qcore.verbs import export

ALONE = """
import sys
class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("torch", "transformers", "qcore", "onnx", "onnxscript", "safetensors"):
            raise ImportError(name + " is not here")
sys.meta_path.insert(0, Refuse())
import runpy
sys.argv = ["run_onnx.py", *sys.argv[1:]]
runpy.run_path("run_onnx.py", run_name="__main__")
"""


def silent(*step):
    pass


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    folder = tmp_path_factory.mktemp("source")
    made("llama-tied").save_pretrained(folder)
    tiny.tokenizer().save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def exported(source, tmp_path_factory):
    """The command line's export of the source in 4 bits."""
    out = tmp_path_factory.mktemp("out") / "model-onnx"
    assert (
        main.main(["export", str(source), "--to", "onnx", "--recipe", "int4-g32-head8", "--out", str(out)])
        == 0
    )
    return out


@pytest.mark.slow
def test_it_runs_in_a_fresh_process_with_onnxruntime_alone(exported, source):
    quantized = library.load(source).model
    from qcore.quantization import convert

    convert.quantize(quantized, recipes.parse("int4-g32-head8-a32"))
    ids = IDS[0].tolist()
    wanted = quantized.generate(
        IDS[:1], max_new_tokens=24, min_new_tokens=24, do_sample=False, eos_token_id=None
    )[0, len(ids) :].tolist()
    command = [
        sys.executable,
        "-I",
        "-c",
        ALONE,
        "--ids",
        ",".join(map(str, ids)),
        "--new-tokens",
        "24",
        "--threads",
        "1",
    ]
    done = subprocess.run(
        command, cwd=exported, capture_output=True, text=True, env={"PATH": os.environ["PATH"]}
    )
    assert done.returncode == 0, done.stderr
    assert [int(token) for token in done.stdout.split(",")] == wanted
    text = tiny.tokenizer().decode(ids)
    if tiny.tokenizer()(text)["input_ids"] == ids:  # bytes that are valid text encode to the same tokens
        done = subprocess.run(
            [*command[:4], text, "--new-tokens", "4"], cwd=exported, capture_output=True, text=True
        )
        assert done.returncode == 0 and done.stdout


@pytest.mark.slow
def test_it_is_a_model_for_eval_and_bench(exported, source):
    loaded = library.load(str(exported))
    assert loaded.recipe.name == "int4-g32-head8" and loaded.checkpoint.source == "onnx"
    record = json.loads((exported / onnx_folder.MANIFEST).read_text())
    assert max(record["agreement"]["prefill"], record["agreement"]["decode"]) < 1e-4
    assert loaded.ledger.coverage > 0.9 and loaded.ledger.stored_bytes == sum(
        row.bytes_after for row in loaded.ledger.rows
    )
    held = sum(path.stat().st_size for path in exported.glob("model.onnx*"))
    assert (
        loaded.ledger.stored_bytes <= held < loaded.ledger.stored_bytes + 60_000
    )  # the rest is the graph itself
    # no path of the machine that made it
    assert b"site-packages" not in (exported / "model.onnx").read_bytes()
    scored = evaluate_verb.run(
        str(exported),
        revision=None,
        text=None,
        tokens=60,
        window=30,
        stride=None,
        device="cpu",
        progress=silent,
    )
    original = library.load(source).model
    from qcore.base import texts
    from qcore.quantization import convert

    convert.quantize(original, recipes.parse("int4-g32-head8-a32"))
    ids = texts.tokenize(texts.load_text(None), tiny.tokenizer(), limit=60)
    assert scored["perplexity"] == pytest.approx(evaluate(original, ids, window=30).perplexity, rel=1e-4)
    assert throughput.measure(loaded.model, 8, 3, repeats=1).decode_tok_s > 0
    written = generate_text(loaded.model, loaded.tokenizer, "hello", 6).tokens
    assert written == generate_text(original, tiny.tokenizer(), "hello", 6).tokens


def test_what_an_onnx_model_cannot_do_is_said(exported):
    with pytest.raises(InputError, match="runs on the CPU here"):
        library.load(str(exported), device="cuda")
    with pytest.raises(InputError, match="an ONNX graph already"):
        export.run(str(exported), None, exported.parent / "again", progress=silent)
    model = library.load(str(exported)).model
    with pytest.raises(InputError, match="all positions or of the last ones"):
        model(input_ids=IDS, logits_to_keep=torch.tensor([0]))


@pytest.mark.row("35")
def test_damage_is_noticed(exported, tmp_path):
    import shutil

    copy = shutil.copytree(exported, tmp_path / "copy")
    record = json.loads((copy / onnx_folder.MANIFEST).read_text())
    held = bytearray((copy / "model.onnx.data").read_bytes())
    held[100] ^= 1
    (copy / "model.onnx.data").write_bytes(held)
    with pytest.raises(InputError, match=r"model\.onnx\.data is damaged"):
        library.load(str(copy))
    for text, message in (
        ('{"version": 9}', "version 9"),
        ("{", "does not hold valid JSON"),
        ("{}", "it has no 'version'"),
        (json.dumps(record | {"sha256": {"../model.onnx": "0" * 64}}), "not the name of a weight file"),
        (json.dumps(record | {"sha256": {"model.onnx": "0" * 64}}), "list of files differs"),
        (json.dumps(record | {"recipe": {}}), "recipe record cannot be read"),
        (
            json.dumps(record | {"ledger": record["ledger"] | {"recipe": "int8"}}),
            "its ledger is that of 'int8'",
        ),
    ):
        (copy / onnx_folder.MANIFEST).write_text(text)
        with pytest.raises(InputError, match=message):
            library.resolve(str(copy))


@pytest.mark.slow
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=300)
@given(data=st.data())
def test_a_changed_manifest_is_the_same_model_or_refused(exported, data):
    path = exported / onnx_folder.MANIFEST
    text = path.read_text()
    record = json.loads(text)
    changed = data.draw(mutated(record))
    path.write_text(json.dumps(changed))
    try:
        found = onnx_folder._manifest(exported)
        assert library.resolve(str(exported)).is_quantized
    except InputError as error:
        assert len(str(error).splitlines()) == 1
        return
    finally:
        path.write_text(text)
    files = {file.name for file in exported.glob("model.onnx*")}
    assert set(found.sha256) == files and found.recipe.name == found.ledger.recipe
    json.dumps(found.ledger.to_dict(), allow_nan=False)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--recipe", "nf4-g64"], "a table of values"),
        (["--recipe", "bf16"], "16-bit form"),
        (["--recipe", "bnb-nf4"], "another library's format"),
        (["--recipe", "int8,fp32"], "one recipe"),
        (["--to", "gguf2"], "Unknown export format 'gguf2'"),
    ],
    ids=lambda value: value if isinstance(value, str) else " ".join(value),
)
def test_bad_input_is_refused_before_anything_is_loaded(words, message, source, tmp_path, capsys):
    assert main.main(["export", str(source), "--out", str(tmp_path / "out"), *words]) == 2
    assert message in capsys.readouterr().err and not (tmp_path / "out").exists()


def test_folders_are_not_overwritten_by_a_slip(source, exported, tmp_path):
    (tmp_path / "mine").write_text("precious")
    for folder, overwrite, message in (
        (tmp_path, False, "not empty"),
        (tmp_path, True, "not written by qcore"),
        (exported, False, "not empty"),
    ):
        with pytest.raises(InputError, match=message):
            export.run(str(source), None, folder, overwrite=overwrite, progress=silent)


def test_without_the_packages_there_is_one_sentence(source, tmp_path, monkeypatch):
    monkeypatch.setattr(engines, "find_spec", lambda name: None)
    with pytest.raises(UnavailableError, match="pip install onnxruntime onnx onnxscript"):
        export.run(str(source), None, tmp_path / "out", progress=silent)


def test_a_graph_that_computes_something_else_is_not_saved(source, exported, tmp_path, monkeypatch):
    """The graph in 4 bits replaces the one in float32."""

    def swapped(model, recipe, folder, progress, quantize, rows=None):
        for file in exported.glob("model.onnx*"):
            (folder / file.name).write_bytes(file.read_bytes())
        held = library.load(str(exported)).ledger.rows
        return writing.Written(folder / "model.onnx", held, None)

    monkeypatch.setattr(writing, "write", swapped)
    with pytest.raises(RunError, match="graph differs from the model"):
        export.run(str(source), None, tmp_path / "out", progress=silent)
    assert not list(tmp_path.iterdir())
