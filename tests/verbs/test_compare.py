"""One recipe of a comparison, from loading to its row, in this process, on tiny models."""

import json
import math
from dataclasses import replace

import pytest
import tiny
import torch

from qcore import library, recipes
from qcore.base.errors import InputError, RunError, TooLargeError, UnavailableError
from qcore.evaluation import evaluate
from qcore.evaluation.choices import ask, summary
from qcore.evaluation.questions import load_questions
from qcore.kernels.precision import computes_fast
from qcore.planning import cache as planned_cache
from qcore.quantization import convert
from qcore.recipes.spec import RunSpec
from qcore.results.report import table
from qcore.results.rows import FIGURE, ROW_KEYS, RunRecord
from qcore.results.verdicts import with_verdicts
from qcore.verbs import checks, compare, record

SMALL = dict(tokens=120, window=32, prompt_tokens=8, new_tokens=3, repeats=2, generate_tokens=3)
LAYERS = planned_cache.layout(tiny.model("llama"))


@pytest.fixture
def text(tmp_path):
    path = tmp_path / "text.txt"
    path.write_text("It was the best of tokens, it was the worst of tokens. " * 9, encoding="utf-8")
    return path


@pytest.fixture
def prompts(tmp_path):
    path = tmp_path / "prompts.txt"
    path.write_text("Once upon a time\nTwo and two make\n")
    return path


@pytest.fixture
def spec(tmp_path, text, prompts):
    """Call it with a kind of model and recipes."""

    def make(kind="llama", names="fp32,int8", **more):
        folder = tmp_path / kind
        if not folder.exists():
            tiny.checkpoint(kind, folder)
        return RunSpec(str(folder), names, text=str(text), prompts=str(prompts), **{**SMALL, **more})

    return make


def run(spec, folder, events=None):
    """The rows of all recipes of `spec`, in its order, one after another."""
    return [
        compare.run_recipe(spec, recipe, folder, (events if events is not None else []).append)
        for recipe in spec.recipes
    ]


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["llama", "llama-tied", "gpt2", "moe"])
def test_every_figure_of_every_architecture(spec, tmp_path, kind):
    wanted = spec(kind, "fp32,int8,int4-g32")
    fp32, int8, int4 = rows = run(wanted, tmp_path)
    for row in rows:
        assert tuple(row) == ROW_KEYS and row["status"] == "ok" and row["error"] is None
        assert all(isinstance(row[key], (int, float)) and math.isfinite(row[key]) for key in FIGURE), row
        assert set(row["record"]) <= set(RunRecord.__annotations__)
    assert (fp32["kl_mean"], fp32["top1_agreement"]) == (0.0, 1.0)
    assert 0 < int8["kl_mean"] < int4["kl_mean"] < 0.1
    assert fp32["stored_bytes"] > int8["stored_bytes"] > int4["stored_bytes"]
    assert 8 < int8["bits_per_weight"] < 9 and 4 < int4["bits_per_weight"] < 5
    assert fp32["bits_per_weight"] == 32 and int8["coverage"] == int4["coverage"] > 0.2
    json.dumps(rows, allow_nan=False)


@pytest.mark.slow
def test_figures_agree_with_the_parts_they_come_from(spec, tmp_path):
    wanted = spec()
    fp32, int8 = run(wanted, tmp_path)
    loaded = library.load(wanted.model)
    ids = loaded.tokenizer((tmp_path / "text.txt").read_text(), return_tensors="pt")["input_ids"][0][:120]
    assert fp32["perplexity"] == evaluate(loaded.model, ids, window=32).perplexity
    ledger = convert.quantize(loaded.model, recipes.parse("int8"))
    assert int8["perplexity"] == evaluate(loaded.model, ids, window=32).perplexity
    assert fp32["record"]["execution"] == [] and len(int8["record"]["execution"]) == 2
    assert int8["record"]["execution"] == record.execution(loaded.model)
    assert (int8["stored_bytes"], int8["coverage"]) == (ledger.stored_bytes, ledger.coverage)


@pytest.mark.slow
def test_a_recipe_that_changes_no_value_diverges_nowhere(spec, tmp_path):
    """Weights that 16 bits represent exactly: KL is exactly 0, agreement exactly 1, and every answer equals
    the baseline's."""
    wanted = spec(names="fp32,bf16")
    model = tiny.model("llama")
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(parameter.bfloat16())
    model.save_pretrained(wanted.model)
    fp32, bf16 = run(wanted, tmp_path)
    assert bf16["stored_bytes"] < 0.51 * fp32["stored_bytes"]
    if computes_fast(torch.bfloat16, torch.device("cpu")):  # then the model computes in 16 bits, which rounds
        assert 0 <= bf16["kl_mean"] < 0.01
        return
    assert (bf16["kl_mean"], bf16["top1_agreement"], bf16["perplexity"]) == (0.0, 1.0, fp32["perplexity"])
    assert [answer["first_divergence"] for answer in bf16["record"]["generations"]] == [None, None]


@pytest.mark.slow
def test_a_baseline_without_a_row_gives_the_same_divergence(spec, tmp_path):
    with_row, alone = tmp_path / "a", tmp_path / "b"
    with_row.mkdir(), alone.mkdir()
    wanted = spec()
    _, expected = run(wanted, with_row)
    compare.record_reference(wanted, alone, lambda event: None)
    found = compare.run_recipe(wanted, wanted.recipes[1], alone, lambda event: None)
    assert (found["kl_mean"], found["perplexity"]) == (expected["kl_mean"], expected["perplexity"])


def test_without_a_baseline_there_is_no_divergence_and_the_row_says_why(spec, tmp_path):
    wanted = spec(names="int8")
    (row,) = run(wanted, tmp_path)
    assert (
        row["status"] == "ok"
        and row["kl_mean"] is None
        and row["top1_agreement"] is None
        and row["perplexity"] > 0
    )
    assert row["record"]["notes"] == ["There is no KL and no top-1 agreement, because the baseline failed."]


@pytest.mark.slow
def test_the_record_has_all_conditions_and_repeats_the_run(spec, tmp_path):
    wanted = spec(seed=3, threads=1)
    events = []
    threads = torch.get_num_threads()
    try:
        row = run(wanted, tmp_path, events)[1]
    finally:
        torch.set_num_threads(threads)
    record = row["record"]
    assert RunSpec.from_dict(record["spec"]) == wanted and record["command"] == wanted.command
    for key in (
        "model",
        "revision",
        "digest",
        "parameters",
        "recipe",
        "window",
        "stride",
        "seed",
        "compute_dtype",
        "environment",
        "ledger",
        "execution",
    ):
        assert key in record
    assert (record["seed"], record["threads"], record["stride"], record["tokens_scored"]) == (3, 1, 32, 119)
    assert record["text"]["name"] == "text.txt" and len(record["text"]["sha256"]) == 64
    assert (
        len(record["throughput"]["samples"]) == 2
        and record["throughput"]["p99_ms"] >= record["throughput"]["p50_ms"] > 0
    )
    assert record["evaluation"]["divergence"]["kl_mean"] == row["kl_mean"]
    assert list(record["phase_seconds"]) == ["start", "load", "quantize", "speed", "quality", "prompts"]
    assert record["started_at"] <= record["finished_at"]
    phases = [event["phase"] for event in events if event["done"] == 0 and event["total"] == 0]
    assert list(dict.fromkeys(phases)) == ["load", "quantize", "speed", "quality", "prompts"]


@pytest.mark.slow
def test_skipped_modules_are_kept_and_said_so(spec, tmp_path):
    skipping = recipes.parse("int8").with_modules(skip=("layers.0",))
    row = run(spec(names=(recipes.parse("fp32"), skipping)), tmp_path)[1]
    kept = {
        entry["name"] for entry in row["record"]["ledger"]["rows"] if "pattern" in (entry["reason"] or "")
    }
    assert kept and all(name.startswith("model.layers.0.") for name in kept)
    assert "--skip layers.0" in row["record"]["command"]


@pytest.mark.slow
def test_no_prompts_when_not_asked(spec, tmp_path):
    assert run(spec(generate=False), tmp_path)[1]["record"]["generations"] == []


QUESTIONS = [
    {"question": "It was the best of", "choices": ["tokens", "times", "wines"], "answer": "tokens"},
    {"question": "It was the worst of", "choices": ["tokens", "times"], "answer": "times"},
    {"question": "The opposite of hot is", "choices": ["cold", "warm"], "answer": 0},
]


@pytest.mark.slow
def test_files_of_other_systems_and_dialogues_are_on_record(spec, tmp_path):
    (tmp_path / "text.txt").write_bytes(b"It was the best of tokens.\r\n" * 20)
    (tmp_path / "talk.jsonl").write_bytes(
        b'{"messages": [{"role": "user", "content": "Hi"}], "id": "q7"}\r\n{"prompt": "What?"}\r\n'
    )
    wanted = replace(spec(names="fp32"), prompts=str(tmp_path / "talk.jsonl"))
    template = tmp_path / "llama" / "chat_template.jinja"
    template.write_text("{% for message in messages %}<{{ message.content }}>{% endfor %}")
    checks.check(wanted)
    (row,) = run(wanted, tmp_path)
    about = row["record"]
    assert about["text"]["line_ends_read_as_line_feeds"] == {"CR LF": 20}
    assert about["prompts"]["line_ends_read_as_line_feeds"] == {"CR LF": 2}
    assert about["notes"][:2] == [
        "Line ends of text.txt were read as line feeds (20 CR LF).",
        "Line ends of talk.jsonl were read as line feeds (2 CR LF).",
    ]
    assert [(answer["id"], answer["prompt"]) for answer in about["generations"]] == [
        ("q7", "Hi"),
        ("2", "What?"),
    ]
    template.write_text("{{ broken")
    with pytest.raises(InputError, match="chat template of this model .'default'. cannot be used"):
        checks.check(wanted)
    (tmp_path / "plain.txt").write_text("What?")
    checks.check(replace(wanted, prompts=str(tmp_path / "plain.txt"), chat=False))
    template.unlink()
    with pytest.raises(InputError, match="no chat template"):
        checks.check(wanted)


@pytest.mark.slow
@pytest.mark.parametrize("row_of_its_own", [True, False], ids=["fp32 in the run", "a baseline without a row"])
def test_questions_are_asked_of_each_recipe_and_compared_with_the_baseline(spec, tmp_path, row_of_its_own):
    file = tmp_path / "questions.json"
    file.write_text(json.dumps(QUESTIONS))
    wanted = spec(names="fp32,int2" if row_of_its_own else "int2", choices=str(file))
    if row_of_its_own:
        base, row = run(wanted, tmp_path)
        assert "lost_and_gained" not in base["choices"] and "--choices" in row["record"]["command"]
    else:
        compare.record_reference(wanted, tmp_path, lambda event: None)
        (row,) = run(wanted, tmp_path)
    loaded = library.load(wanted.model)
    before = ask(loaded.model, loaded.tokenizer, load_questions(file).questions)
    convert.quantize(loaded.model, recipes.parse("int2"))
    after = ask(loaded.model, loaded.tokenizer, load_questions(file).questions)
    assert row["choices"] == summary(
        load_questions(file), after, {"plain": before.right, "by_length": before.right_by_length}
    )
    assert row["record"]["choices"] == after.to_dict() and row["choices"]["questions"] == 3
    if row_of_its_own:
        assert base["record"]["choices"] == before.to_dict()
    json.dumps(row, allow_nan=False)


def test_a_model_that_changed_since_the_baseline_is_refused(spec, tmp_path):
    wanted = spec()
    compare.run_recipe(wanted, wanted.recipes[0], tmp_path, lambda event: None)
    tiny.model("llama", seed=1).save_pretrained(wanted.model)
    with pytest.raises(InputError, match="has changed since the baseline"):
        compare.run_recipe(wanted, wanted.recipes[1], tmp_path, lambda event: None)


@pytest.mark.row("40")
def test_a_model_whose_logits_are_nan_has_failed(spec, tmp_path):
    """Finite weights whose activations overflow: an error, never a number."""
    wanted = spec()
    model = tiny.model("llama")
    with torch.no_grad():
        for layer in model.model.layers:
            layer.mlp.up_proj.weight.fill_(1e30)
            layer.mlp.gate_proj.weight.fill_(1e30)
    model.save_pretrained(wanted.model)
    with pytest.raises(RunError):
        compare.run_recipe(wanted, wanted.recipes[0], tmp_path, lambda event: None)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"text": "missing.txt"}, "missing.txt"),
        ({"text": "blank.txt"}, "empty"),
        ({"prompts": "missing.txt"}, "missing.txt"),
        ({"choices": "missing.json"}, "missing.json"),
        ({"device": "abacus"}, "Unknown device"),
        ({"model": "no/such/model/at/all"}, "no/such/model/at/all"),
        (
            {"recipes": (recipes.parse("int8").with_modules(skip=("layers.7",)),)},
            "'layers.7' matches no module",
        ),
    ],
    ids=["text", "blank", "prompts", "choices", "device", "model", "skip"],
)
def test_check_finds_bad_input_before_anything_starts(spec, tmp_path, monkeypatch, change, sentence):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "blank.txt").write_text("  \n")
    good = spec()
    assert checks.check(good).folder == tmp_path / "llama"
    with pytest.raises(InputError) as error:
        checks.check(replace(good, **change))
    assert sentence in str(error.value) and "\n" not in str(error.value)


@pytest.mark.row("39")
def test_check_refuses_a_device_that_is_not_here(spec):
    if torch.accelerator.is_available():
        checks.check(spec(device=torch.accelerator.current_accelerator().type))
    else:
        with pytest.raises(UnavailableError, match="not available on this machine"):
            checks.check(spec(device="cuda"))


def test_check_refuses_a_model_of_which_no_recipe_fits(spec, monkeypatch):
    monkeypatch.setenv("QCORE_MEMORY_LIMIT", "1000000")
    with pytest.raises(TooLargeError, match="does not fit into memory"):
        checks.check(spec())


@pytest.mark.slow
def test_a_quantized_cache_is_measured_against_a_baseline_that_keeps_its_own(spec, tmp_path):
    """The fp32 row shows the cost of the cache alone; its bytes equal the plan's; text and prompts really
    pass through the cache."""
    wanted = spec("llama", "fp32,int4-g32", kv="int4", window=120, prompt_tokens=100)
    (tmp_path / "run").mkdir()
    compare.record_reference(wanted, tmp_path / "run", [].append)
    fp32, int4 = run(wanted, tmp_path / "run")
    (tmp_path / "plain").mkdir()
    _, exact = run(spec("llama", "fp32,int4-g32", window=120, prompt_tokens=100), tmp_path / "plain")
    assert 0 < fp32["kl_mean"] < int4["kl_mean"] and int4["kl_mean"] != exact["kl_mean"]
    kept, plain = int4["record"]["kv"], exact["record"]["kv"]
    assert (kept["name"], kept["bits"], kept["group"], kept["recent"], kept["tokens"]) == (
        "int4",
        4,
        32,
        32,
        102,
    )
    assert kept["bytes"] == planned_cache.kv_bytes(LAYERS, 102, 1, planned_cache.FORMATS["int4"])
    assert (
        kept["bytes_a_token"] == kept["bytes"] / 102
        and plain["name"] == "none"
        and plain["bytes_a_token"] > kept["bytes_a_token"]
    )
    assert (
        int4["record"]["execution"][0].startswith("module by module")
        and compare.THROUGH_THE_CACHE in int4["record"]["notes"]
    )
    assert int4["record"]["predicted"]["decode_is"] == "no probe with a quantized cache"
    judged = with_verdicts([fp32, int4])
    assert all(row["verdict"] for row in judged) and "KV cache in int4" in table(judged)


def test_an_architecture_without_plain_keys_and_values_is_refused_before_anything_starts(spec, tmp_path):
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        hidden_size=48, intermediate_size=64, num_hidden_layers=1, num_attention_heads=4, vocab_size=258
    )
    LlamaForCausalLM(config).save_pretrained(tmp_path / "odd")
    tiny.tokenizer().save_pretrained(tmp_path / "odd")
    with pytest.raises(InputError, match="heads of 12 numbers"):
        checks.check(spec("odd", "int8", kv="int8"))
    checks.check(spec("odd", "int8"))
