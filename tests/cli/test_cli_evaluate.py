"""The commands eval, bench and generate."""

import json
import shlex
import sys
from pathlib import Path

import pytest

from qcore import library, recipes
from qcore.base.other_work import OtherWork
from qcore.evaluation import evaluate
from qcore.quantization import convert

ROOT = Path(__file__).resolve().parents[2]


pytestmark = pytest.mark.usefixtures("own_home")


def test_line_ends_of_other_systems_give_the_same_figures_and_are_reported(said, model, tmp_path):
    (tmp_path / "unix.txt").write_bytes(b"It was the best of tokens.\n" * 9)
    (tmp_path / "windows.txt").write_bytes(b"It was the best of tokens.\r\n" * 9)
    results = []
    for name in ("unix", "windows"):
        path = tmp_path / f"{name}.txt"
        status, printed, _ = said("eval", model, "--text", path, "--window", 64, "--json", tmp_path / name)
        assert status == 0
        assert ("Line ends of windows.txt were read as line feeds (9 CR LF)." in printed) == (
            name == "windows"
        )
        results.append(json.loads((tmp_path / name).read_text()))
    unix, windows = results
    assert unix["perplexity"] == windows["perplexity"] and unix["bits_per_byte"] == windows["bits_per_byte"]
    texts = [result["record"]["text"] for result in results]
    assert texts[0]["sha256"] == texts[1]["sha256"]
    assert "line_ends_read_as_line_feeds" not in texts[0]
    assert texts[1]["line_ends_read_as_line_feeds"] == {"CR LF": 9}


def test_a_quantized_folder_is_a_model_for_eval_and_bench(said, model, text, tmp_path, monkeypatch):
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

    monkeypatch.setattr(OtherWork, "share", lambda self: 0.5)
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
    assert "measured beside other work: other processes took 50.0 % of the processor" in printed
    assert result["others_share"] == 0.5 and result["disturbed"] is True


def test_eval_of_some_tokens_to_standard_output(said, model, text):
    status, printed, err = said("eval", model, "--text", text, "--tokens", 50, "--window", 32, "--json", "-")
    result = json.loads(printed)
    assert status == 0 and result["tokens_scored"] == 49 and "perplexity" in err


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
