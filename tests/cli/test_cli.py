"""The command line: exit statuses, one plain sentence for bad input, JSON as promised."""

import json
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import tiny
import torch
from safetensors.torch import load_file

import qcore
from qcore import recipes
from qcore.jobs import jobs
from qcore.results.rows import FIGURE, ROW_KEYS

ROOT = Path(__file__).resolve().parents[2]


pytestmark = pytest.mark.usefixtures("own_home")


def python(*arguments, **options):
    return subprocess.run(
        [sys.executable, "-m", "qcore", *arguments], cwd=ROOT, capture_output=True, text=True, **options
    )


# -- the whole way, with real processes ----------------------------------------------------------------------


@pytest.mark.slow
def test_compare_from_the_command_line_to_json(model, text, tmp_path):
    out = tmp_path / "out.json"
    options = (
        "--recipes fp32,int8 --tokens 100 --window 32 --prompt-tokens 8 --new-tokens 3 --repeats 1 "
        "--generate-tokens 2 --margin 0.2"
    )
    done = python("compare", model, *options.split(), "--text", text, "--json", str(out))
    assert done.returncode == 0, done.stderr
    rows = json.loads(out.read_text())
    assert [row["recipe"] for row in rows] == ["fp32", "int8"]
    for row in rows:
        assert tuple(row) == (*ROW_KEYS[:-1], "verdict", "record") and row["status"] == "ok"
        assert all(isinstance(row[key], (int, float)) for key in FIGURE)
        assert row["record"]["environment"]["libraries"]["torch"]
    assert rows[0]["kl_mean"] == 0 < rows[1]["kl_mean"]
    assert rows[0]["verdict"] is None and rows[1]["verdict"]["margin"] == 0.2
    assert f"int8: {rows[1]['verdict']['sentence']} KL " in done.stdout
    assert rows[1]["verdict"]["ratio"]["estimate"] == pytest.approx(
        rows[1]["perplexity"] / rows[0]["perplexity"]
    )
    assert "int8" in done.stdout and "perplexity" in done.stdout and "Traceback" not in done.stderr
    assert shlex.split(rows[0]["record"]["command"])[:5] == ["python", "-m", "qcore", "compare", model]
    assert not list((tmp_path / "home" / "runs").rglob("reference*")), "megabytes that nobody needs any more"


@pytest.mark.row("14")
@pytest.mark.slow
def test_too_little_text_ends_the_run_with_one_sentence(model, tmp_path):
    """Only the tokenizer can tell, so the baseline's process finds out; status 2 all the same."""
    (tmp_path / "one.txt").write_text("a")
    done = python("compare", model, "--recipes", "int8", "--text", str(tmp_path / "one.txt"), "--no-generate")
    assert done.returncode == 2 and done.stderr.strip().splitlines()[-1].startswith(
        "one.txt has 1 token, but at least 2 are needed"
    )
    assert "Traceback" not in done.stderr


def test_help_is_there_at_once_and_loads_nothing_heavy():
    code = (
        "import sys; from qcore.cli.main import main; main(['--help']); "
        "print([m for m in ('torch', 'transformers') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.stdout.strip().endswith("[]")
    for command in ("compare", "quantize", "eval", "bench", "generate", "models", "recipes", "runs"):
        assert f"\n  {command} " in done.stdout


def test_the_version_is_that_of_the_package(said):
    assert said("--version") == (0, f"qcore {qcore.__version__}\n", "")


# -- one model, in this process ------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_streamed_model_is_the_one_quantized_in_memory(said, model, tmp_path):
    folders = tmp_path / "whole", tmp_path / "streamed"
    for folder, more in zip(folders, ((), ("--stream",)), strict=True):
        status, out, _ = said("quantize", model, "--recipe", "int4-g32", "--out", folder, *more)
        assert status == 0 and f"Saved in {folder}" in out
    whole, streamed = (load_file(folder / "model.safetensors") for folder in folders)
    assert whole.keys() == streamed.keys() and all(torch.equal(whole[name], streamed[name]) for name in whole)
    status, _, err = said(
        "quantize", model, "--recipe", "int4-g64-gptq", "--out", tmp_path / "no", "--stream"
    )
    assert status == 2 and "reads calibration text" in err


@pytest.mark.slow
def test_runs_show_judges_within_another_margin(said, model, text, tmp_path):
    out = tmp_path / "out.json"
    options = (
        "--recipes fp32,int2 --tokens 100 --window 16 --prompt-tokens 8 --new-tokens 2 --repeats 1 "
        "--no-generate"
    )
    assert said("compare", model, *options.split(), "--text", text, "--json", out)[0] == 0
    (run,) = jobs.list_runs()
    assert json.loads(out.read_text())[1]["verdict"]["margin"] == 0.01
    assert said("runs", "show", run.run_id, "--margin", 1, "--json", out)[0] == 0
    verdict = json.loads(out.read_text())[1]["verdict"]
    assert (verdict["margin"], verdict["outcome"]) == (1.0, "equivalent")
    assert "margin is -1.0" in said("runs", "show", run.run_id, "--margin", -1)[2]


def test_quantize_never_replaces_a_folder_unasked(said, model, tmp_path):
    folder = tmp_path / "mine"
    folder.mkdir()
    (folder / "letter.txt").write_text("dear")
    status, out, err = said("quantize", model, "--recipe", "int8", "--out", folder)
    assert (
        (status, out) == (2, "") and "allow it to be overwritten" in err and (folder / "letter.txt").exists()
    )
    status, _, err = said("quantize", model, "--recipe", "int8", "--out", folder, "--overwrite")
    assert status == 2 and "was not written by qcore" in err and (folder / "letter.txt").exists()
    (folder / "letter.txt").unlink()
    assert said("quantize", model, "--recipe", "int8", "--out", folder)[0] == 0
    assert said("quantize", model, "--recipe", "int8", "--out", folder, "--overwrite")[0] == 0
    assert (folder / "model.safetensors").exists() and not (folder / "letter.txt").exists()
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".mine")]


def test_quantize_never_replaces_the_model_itself(said, model):
    status, _, err = said("quantize", model, "--recipe", "int8", "--out", model, "--overwrite")
    assert status == 2 and "was not written by qcore" in err and (Path(model) / "model.safetensors").exists()
    (Path(model).parent / "qcore.json").write_text("{}")
    status, _, err = said("quantize", model, "--recipe", "int8", "--out", Path(model).parent, "--overwrite")
    assert status == 2 and "holds the model itself" in err and (Path(model) / "model.safetensors").exists()


def test_quantize_without_a_folder_names_one(said, model, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert said("quantize", model, "--recipe", "int8")[0] == 0
    assert (tmp_path / "llama-int8" / "model.safetensors").exists()


@pytest.mark.row("12")
def test_a_quantized_model_is_not_quantized_again(said, model, tmp_path):
    said("quantize", model, "--recipe", "int8", "--out", tmp_path / "small")
    status, out, err = said("quantize", tmp_path / "small", "--recipe", "int4")
    assert (status, out) == (2, "") and "quantized already" in err


# -- bad input -----------------------------------------------------------------------------------------------


@pytest.mark.row("21")
@pytest.mark.parametrize(
    ("line", "sentence"),
    [
        ("comapre MODEL", "Did you mean 'compare'?"),
        ("compare MODEL --recipe int8", "Did you mean --recipes"),
        ("compare MODEL --recipes fp32,int5", "Unknown recipe 'int5'. Did you mean int8 or"),
        ("compare MODEL --recipes fp32,,int8,int8", "given twice"),
        ("compare MODEL --recipes ,", "No recipe was given"),
        ("compare", "Missing argument 'MODEL'"),
        ("plan -model/x --recipes int8", "If that is a name, put -- before it, after all options: "),
        ("plan -x", "There is no option -x. See "),
        ("eval MODEL --text", "Option '--text' requires an argument"),
        ("eval MODEL --text wikitext2", "Did you mean wikitext-2?"),
        ("compare MODEL --recipes 4bit", "Did you mean int4?"),
        ("compare MODEL --recipes awq", "Did you mean int4-g128-awq"),
        ("-model", "There is no option -model. If that is a name, put --"),
        ("compare MODEL --prompts TMP/null.jsonl", "Line 1 of null.jsonl has id = None"),
        ("compare MODEL --prompts TMP/talk.jsonl", "This model has no chat template"),
        ("compare MODEL --tokens many", "--tokens"),
        ("compare MODEL --tokens 1", "tokens is 1, but it must be a whole number from 2"),
        ("compare MODEL --new-tokens 1000000000", "new_tokens is 1000000000"),
        ("compare MODEL --stride 100 --window 50", "stride is 100"),
        ("compare MODEL --text TMP/missing.txt", "missing.txt"),
        ("compare MODEL --text TMP", "TMP"),
        ("compare MODEL --text MODEL/model.safetensors", "model.safetensors"),
        ("compare MODEL --prompts TMP/missing.txt", "missing.txt"),
        ("compare MODEL --skip layers.17", "'layers.17' matches no module"),
        pytest.param(
            "compare MODEL --recipes int8" + " --skip x" * 301,
            "301 patterns of modules to skip were given, but at most 300",
            marks=pytest.mark.row("45"),
        ),
        pytest.param(
            "quantize MODEL --recipe int8 --out TMP/x --skip " + "x" * 301,
            "has 301 characters, but at most 300",
            marks=pytest.mark.row("45"),
        ),
        ("compare MODEL --json TMP/no/folder/out.json", "there is no folder"),
        ("compare MODEL --json TMP", "is a folder"),
        ("compare MODEL --device abacus", "Unknown device 'abacus'"),
        ("compare TMP/missing", "is neither a folder or file here nor a hub id"),
        ("compare TMP/empty", "no"),
        ("compare ../../etc", "etc"),
        ("quantize MODEL", "Missing option '--recipe'"),
        ("quantize MODEL --recipe bnb-nf4 --out TMP/x", "another library's format"),
        ("quantize MODEL --recipe int8,int4 --out TMP/x", "takes one recipe"),
        ("quantize MODEL --recipe int8 --out TMP/x --skip nothing", "'nothing' matches no module"),
        ("eval MODEL --window 1", "window is 1"),
        ("eval MODEL --text TMP/one.txt", "at least 2 are needed"),
        ("eval MODEL --window 4096 --tokens 2000", "window of 4096"),
        ("eval MODEL --choices TMP/missing.json", "missing.json"),
        ("eval MODEL --choices default --tokens 50", "replace the text"),
        ("eval MODEL --choices default --lm-eval piqa", "Give one of them"),
        ("eval MODEL --lm-eval piqa --lm-eval-limit 0", "lm-eval-limit is 0"),
        ("eval MODEL --lm-eval piqa --lm-eval-folder TMP/missing", "There is no folder"),
        ("eval MODEL --lm-eval ,", "No lm-eval task was given"),
        ("compare MODEL --choices TMP/missing.json", "missing.json"),
        ("compare MODEL --margin 2", "margin is 2.0"),
        ("eval TMP/missing", "is neither a folder or file here nor a hub id"),
        ("bench MODEL --prompt-tokens 0", "prompt_tokens is 0"),
        ("bench MODEL --prompt-tokens 600", "positions of this model"),
        ("models --prepare smollm", "Did you mean smollm2-135m"),
        ("runs show nothing", "no run 'nothing'"),
        ("runs repeat ../../etc", "no run"),
        ("runs sohw", "Did you mean 'show'?"),
    ],
)
def test_bad_input_is_one_plain_sentence_and_status_2(said, model, tmp_path, line, sentence):
    (tmp_path / "empty").mkdir()
    (tmp_path / "one.txt").write_text("a")
    (tmp_path / "null.jsonl").write_text('{"text": "a", "id": null}')
    (tmp_path / "talk.jsonl").write_text('{"messages": [{"role": "user", "content": "Hi"}]}')
    line = line.replace("MODEL", model) if "'MODEL'" not in line else line
    status, out, err = said(*line.replace("TMP", str(tmp_path)).split())
    assert status == 2 and out == ""
    assert sentence.replace("TMP", str(tmp_path)) in err and len(err.strip().splitlines()) == 1, err
    assert not (tmp_path / "home" / "runs").exists() or not list((tmp_path / "home" / "runs").iterdir())


def test_names_that_look_like_options(said, model, text, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path(model).rename(tmp_path / "-model")
    words = ["eval", "--text", text, "--window", 64, "--json", "out.json", "--"]
    assert said(*words, "-model")[0] == 0
    command = shlex.split(json.loads(Path("out.json").read_text())["record"]["command"])
    assert command[-2:] == ["--", "-model"]
    assert said(*command[3:])[0] == 0


def test_a_chat_template_that_is_broken_is_found_before_the_run(said, model, text):
    (Path(model) / "chat_template.jinja").write_text("{{ messages")
    words = ["compare", model, "--recipes", "fp32", "--text", text]
    status, _, err = said(*words)
    assert status == 2 and "chat template of this model ('default') cannot be used: line 1" in err


@pytest.mark.row("11")
def test_a_model_larger_than_memory_is_refused_from_its_headers(said, model, monkeypatch):
    monkeypatch.setenv("QCORE_MEMORY_LIMIT", "1000000")
    for command in (
        ("compare", model),
        ("eval", model),
        ("bench", model),
        ("quantize", model, "--recipe", "int8", "--out", model + "-x"),
    ):
        status, _, err = said(*command)
        assert status == 2 and "does not fit into memory" in err and "libraries" in err


def test_recipes_lists_every_recipe_and_models_the_defaults(said):
    status, printed, _ = said("recipes")
    assert status == 0 and all(
        any(line.startswith(name) for line in printed.splitlines()) for name in recipes.names()
    )
    status, printed, _ = said("models")
    assert status == 0 and "smollm2-135m-dithered" in printed and "fetched when first used" in printed


def test_audit_reports_what_is_broken(said, tmp_path):
    folder = tiny.checkpoint("llama", tmp_path / "llama")
    status, out, _ = said("audit", folder, "--json", tmp_path / "out.json")
    assert status == 0 and "Sound: no check found anything wrong." in out and "F32" in out
    assert json.loads((tmp_path / "out.json").read_text())["findings"] == []
    (folder / "model.safetensors").write_bytes((folder / "model.safetensors").read_bytes()[:-9])
    status, out, _ = said("audit", folder, "--headers", "--ledger")
    assert status == 1 and "BROKEN  A weight file is shorter" in out and "To do: " in out
    assert "model.layers.1.mlp.up_proj.weight" in out and "128 x 64" in out
    assert said("audit", tmp_path / "nothing")[0] == 2
