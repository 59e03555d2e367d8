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
from qcore import library, recipes
from qcore.evaluation import evaluate
from qcore.jobs import jobs
from qcore.quantization import convert
from qcore.results.rows import FIGURE, ROW_KEYS

ROOT = Path(__file__).resolve().parents[2]


pytestmark = pytest.mark.usefixtures("own_home")


@pytest.fixture
def model(tmp_path):
    return str(tiny.checkpoint("llama", tmp_path / "llama"))


@pytest.fixture
def text(tmp_path):
    path = tmp_path / "text.txt"
    path.write_text("It was the best of tokens, it was the worst of tokens. " * 5)
    return str(path)


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


def test_a_quantized_folder_is_a_model_for_eval_and_bench(said, model, text, tmp_path):
    folder, out = tmp_path / "small", tmp_path / "out.json"
    status, printed, _ = said(
        "quantize", model, "--recipe", "int4-g32", "--out", folder, "--skip", "layers.0"
    )
    assert status == 0 and "int4-g32" in printed and str(folder) in printed

    status, printed, _ = said("eval", folder, "--text", text, "--window", 32, "--stride", 16, "--json", out)
    result = json.loads(out.read_text())
    loaded = library.load(model)
    ids = loaded.tokenizer(Path(text).read_text(), return_tensors="pt")["input_ids"][0]
    ledger = convert.quantize(loaded.model, recipes.parse("int4-g32").with_modules(skip=("layers.0",)))
    assert (
        status == 0 and result["perplexity"] == evaluate(loaded.model, ids, window=32, stride=16).perplexity
    )
    assert (result["window"], result["stride"], result["tokens_scored"]) == (32, 16, len(ids) - 1)
    assert result["stored_bytes"] == ledger.stored_bytes and result["bits_per_byte"] > 0
    assert result["record"]["recipe"]["name"] == "int4-g32" and len(result["record"]["text"]["sha256"]) == 64

    status, printed, _ = said(
        "bench", folder, "--prompt-tokens", 8, "--new-tokens", 4, "--repeats", 2, "--json", out
    )
    result = json.loads(out.read_text())
    assert status == 0 and "decode" in printed
    for key in (
        "prefill_tok_s",
        "decode_tok_s",
        "ttft_s",
        "p50_ms",
        "p90_ms",
        "p99_ms",
        "peak_load_bytes",
        "peak_run_bytes",
        "stored_bytes",
    ):
        assert result[key] > 0
    assert (result["prompt_tokens"], result["new_tokens"]) == (8, 4) and len(result["record"]["samples"]) == 2
    read, bandwidth = result["record"]["bytes_a_token"], result["record"]["environment"]["read_bandwidth"]
    assert (
        0 < read <= result["stored_bytes"]
        and result["bandwidth_share"] == result["decode_tok_s"] * read / bandwidth
    )
    assert "% of the" in printed and "that this machine reads" in printed


def test_eval_of_some_tokens_to_standard_output(said, model, text):
    status, printed, err = said("eval", model, "--text", text, "--tokens", 50, "--window", 32, "--json", "-")
    result = json.loads(printed)
    assert status == 0 and result["tokens_scored"] == 49 and "perplexity" in err


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


def test_eval_asks_questions(said, model, tmp_path):
    file, out, folder = tmp_path / "q.csv", tmp_path / "out.json", tmp_path / "small"
    file.write_text("question,A,B,answer\nThe opposite of hot is,warm,cold,B\nTwo and two make,four,five,A\n")
    assert said("quantize", model, "--recipe", "int8", "--out", folder)[0] == 0
    for each in (model, folder):
        status, printed, _ = said("eval", each, "--choices", file, "--json", out)
        result = json.loads(out.read_text())
        assert (
            status == 0
            and f"{result['accuracy']['right']} of 2 questions right" in printed
            and "guessing 50 %" in printed
        )
        assert (result["questions"], result["chance"], len(result["record"]["choices"]["scores"])) == (
            2,
            0.5,
            2,
        )
        assert shlex.split(result["record"]["command"])[3:] == ["eval", str(each), "--choices", str(file)]
    assert result["record"]["recipe"]["name"] == "int8"


def test_eval_without_lm_eval_says_how_to_install_it(said, model, monkeypatch):
    monkeypatch.setitem(sys.modules, "lm_eval", None)
    monkeypatch.setitem(sys.modules, "lm_eval.tasks", None)
    status, out, err = said("eval", model, "--lm-eval", "hellaswag")
    assert (
        status == 2
        and out == ""
        and err.strip().endswith("Install it with: python -m pip install lm_eval==0.4.13")
    )


def test_eval_prints_what_lm_eval_found(said, model, monkeypatch, tmp_path):
    from qcore.evaluation import harness

    metrics = {
        "acc,none": {"value": 0.5, "stderr": 0.125},
        "word_perplexity,none": {"value": 12.3456, "stderr": None},
    }
    monkeypatch.setattr(harness, "check_tasks", lambda tasks, folder: None)
    monkeypatch.setattr(
        harness,
        "run_tasks",
        lambda *arguments, **options: {
            "lm_eval": "1",
            "limit": 4,
            "tasks": {"t": {"documents": 4, "metrics": metrics}},
        },
    )
    status, printed, _ = said(
        "eval", model, "--lm-eval", "t", "--lm-eval-limit", 4, "--json", tmp_path / "out.json"
    )
    assert status == 0 and printed.splitlines() == [
        "t  acc,none  0.5000 ± 0.125",
        "t  word_perplexity,none  12.35",
    ]
    result = json.loads((tmp_path / "out.json").read_text())
    assert result["tasks"]["t"]["metrics"] == metrics and "--lm-eval-limit 4" in result["record"]["command"]


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


@pytest.mark.slow
def test_a_streamed_evaluation_scores_all_recipes_in_one_pass(said, model, text, tmp_path):
    options = ("--text", text, "--tokens", 100, "--window", 32)
    status, printed, _ = said(
        "eval", model, "--stream", "--recipes", "int4-g32,int8", *options, "--json", tmp_path / "out.json"
    )
    rows = json.loads((tmp_path / "out.json").read_text())["rows"]
    assert (
        status == 0
        and [row["recipe"] for row in rows] == ["fp32", "int4-g32", "int8"]
        and "int8: perplexity" in printed
    )
    assert said("eval", model, *options, "--json", tmp_path / "whole.json")[0] == 0
    whole = json.loads((tmp_path / "whole.json").read_text())
    assert (
        rows[0]["perplexity"] == pytest.approx(whole["perplexity"], rel=1e-5)
        and rows[1]["divergence"]["kl_mean"] > 0
    )
    for wrong, message in (
        (("--recipes", "int8"), "works only with --stream"),
        (("--stream", "--choices", "default"), "only a text can be scored"),
        (("--stream", "--recipes", "int4-g64-gptq"), "reads calibration text"),
    ):
        status, _, err = said("eval", model, *wrong, *options)
        assert status == 2 and message in err


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


def test_a_quantized_model_is_not_quantized_again(said, model, tmp_path):
    said("quantize", model, "--recipe", "int8", "--out", tmp_path / "small")
    status, out, err = said("quantize", tmp_path / "small", "--recipe", "int4")
    assert (status, out) == (2, "") and "quantized already" in err


# -- bad input -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("line", "sentence"),
    [
        ("comapre MODEL", "Did you mean 'compare'?"),
        ("compare MODEL --recipe int8", "Did you mean --recipes"),
        ("compare MODEL --recipes fp32,int5", "Unknown recipe 'int5'. Did you mean int8 or"),
        ("compare MODEL --recipes fp32,,int8,int8", "given twice"),
        ("compare MODEL --recipes ,", "No recipe was given"),
        ("compare", "Missing argument 'MODEL'"),
        ("compare MODEL --tokens many", "--tokens"),
        ("compare MODEL --tokens 1", "tokens is 1, but it must be a whole number from 2"),
        ("compare MODEL --new-tokens 1000000000", "new_tokens is 1000000000"),
        ("compare MODEL --stride 100 --window 50", "stride is 100"),
        ("compare MODEL --text TMP/missing.txt", "missing.txt"),
        ("compare MODEL --text TMP", "TMP"),
        ("compare MODEL --text MODEL/model.safetensors", "model.safetensors"),
        ("compare MODEL --prompts TMP/missing.txt", "missing.txt"),
        ("compare MODEL --skip layers.17", "'layers.17' matches no module"),
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
    line = line.replace("MODEL", model) if "'MODEL'" not in line else line
    status, out, err = said(*line.replace("TMP", str(tmp_path)).split())
    assert status == 2 and out == ""
    assert sentence.replace("TMP", str(tmp_path)) in err and len(err.strip().splitlines()) == 1, err
    assert not (tmp_path / "home" / "runs").exists() or not list((tmp_path / "home" / "runs").iterdir())


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


def test_a_quantized_cache_for_eval_bench_and_generate(said, model, text, tmp_path):
    out = tmp_path / "out.json"
    status, printed, _ = said("eval", model, "--text", text, "--window", 128, "--kv", "int4", "--json", out)
    kept = json.loads(out.read_text())
    assert status == 0 and "KV cache in int4" in printed and kept["record"]["kv"]["name"] == "int4"
    assert said("eval", model, "--text", text, "--window", 128, "--json", out)[0] == 0
    assert kept["perplexity"] != json.loads(out.read_text())["perplexity"]
    status, printed, _ = said(
        "bench",
        model,
        "--prompt-tokens",
        80,
        "--new-tokens",
        3,
        "--repeats",
        1,
        "--kv",
        "int8",
        "--json",
        out,
    )
    found = json.loads(out.read_text())["record"]
    assert status == 0 and "KV cache in int8: " in printed and "module by module" in printed
    assert (
        found["kv"]["tokens"] == 82
        and found["kv"]["bytes"] < 4 * 2 * 64 * 82
        and "--kv int8" in found["command"]
    )
    status, printed, _ = said(
        "generate", model, "--prompt", "Hello there", "--new-tokens", 5, "--kv", "int8", "--json", out
    )
    found = json.loads(out.read_text())
    assert (
        status == 0
        and found["text"].strip() in printed
        and len(found["tokens"]) <= 5
        and found["record"]["kv"]["name"] == "int8"
    )
    assert shlex.split(found["record"]["command"])[3:] == [
        "generate",
        model,
        "--prompt",
        "Hello there",
        "--new-tokens",
        "5",
        "--kv",
        "int8",
    ]


@pytest.mark.parametrize(
    "command", [["eval"], ["bench"], ["generate", "--prompt", "x"], ["compare"]], ids=lambda words: words[0]
)
def test_an_unknown_form_of_the_cache_is_one_sentence(said, model, command):
    status, out, err = said(command[0], model, *command[1:], "--kv", "int9")
    assert (status, out) == (2, "") and "Unknown KV cache format 'int9'" in err and err.count("\n") == 1


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--new-tokens", "0"], "number of new tokens is 0"),
        (["--temperature", "-1"], "temperature"),
        (["--chat"], "no chat template"),
        (["--threads", "0"], "threads is 0"),
    ],
    ids=lambda value: str(value)[:20],
)
def test_what_generate_cannot_do_is_one_sentence(said, model, options, words):
    status, out, err = said("generate", model, "--prompt", "x", *options)
    assert (status, out) == (2, "") and words in err and "Traceback" not in err


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
