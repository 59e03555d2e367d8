"""A saved quantized model as a row of a comparison: saved:FOLDER."""

import copy
import json

import pytest
import tiny
from transformers import LlamaForCausalLM

from qcore import library, recipes
from qcore.base.errors import InputError
from qcore.cli import main
from qcore.library import plain, safetensors
from qcore.library.saving import made_from
from qcore.quantization import convert
from qcore.recipes.spec import RunSpec
from qcore.results.rows import ROW_KEYS
from qcore.verbs import checks, compare

SMALL = dict(tokens=120, window=32, prompt_tokens=8, new_tokens=3, repeats=1, generate=False)


@pytest.fixture
def original(tmp_path):
    tiny.checkpoint("llama", tmp_path / "original")
    (tmp_path / "text.txt").write_text("It was the best of tokens, it was the worst of tokens. " * 9)
    return tmp_path / "original"


@pytest.fixture
def spec(original, tmp_path):
    return lambda names: RunSpec(str(original), names, text=str(tmp_path / "text.txt"), **SMALL)


def quantized(original, folder, name="int4-g32"):
    loaded, recipe = library.load(original), recipes.parse(name)
    ledger = convert.quantize(loaded.model, recipe)
    return safetensors.save(loaded.model, loaded.tokenizer, recipe, ledger, folder)


def run(spec, folder):
    checks.check(spec)
    return [compare.run_recipe(spec, recipe, folder, lambda event: None) for recipe in spec.recipes]


@pytest.mark.slow
def test_a_saved_model_has_the_figures_of_its_recipe(original, spec, tmp_path):
    quantized(original, tmp_path / "mine")
    _, made, saved = run(spec(f"fp32,int4-g32,saved:{tmp_path / 'mine'}"), tmp_path)
    same = (
        "stored_bytes",
        "bits_per_weight",
        "coverage",
        "perplexity",
        "kl_mean",
        "top1_agreement",
        "status",
    )
    assert {key: saved[key] for key in same} == {key: made[key] for key in same}
    assert tuple(saved) == ROW_KEYS and saved["recipe"] == "saved:mine" and saved["quantize_s"] is None
    record = saved["record"]
    assert record["ledger"]["recipe"] == "int4-g32" and record["notes"] == ["Saved as int4-g32."]
    assert record["recipe"]["weights"] == {"type": "saved", "folder": str(tmp_path / "mine")}
    assert record["predicted"]["stored_bytes"] == pytest.approx(saved["stored_bytes"], rel=0.01)
    assert (
        record["predicted"]["decode_tok_s"] is None
        and "quantized already" in record["predicted"]["decode_is"]
    )


@pytest.mark.slow
def test_a_model_that_was_made_but_not_quantized(original, spec, tmp_path):
    loaded = library.load(original)
    next(loaded.model.parameters()).data.mul_(0.5)
    about = {"kind": "prune", "from": {"model": "original"}, "method": "wanda", "share": 0.5}
    plain.save(loaded.model, loaded.tokenizer, about, tmp_path / "pruned")
    base, saved = run(spec(f"fp32,saved:{tmp_path / 'pruned'}"), tmp_path)
    assert saved["kl_mean"] > 0 and saved["coverage"] == 0 and saved["bits_per_weight"] == 32
    assert saved["stored_bytes"] == base["stored_bytes"]
    assert saved["record"]["notes"] == ["Made from original by pruning: wanda, 50 %."]


def test_a_model_is_not_judged_by_the_text_it_was_made_with(original, spec, tmp_path):
    from qcore.base import texts

    text = texts.load_text(str(tmp_path / "text.txt"))
    loaded = library.load(original)
    about = {
        "kind": "distill",
        "calibration": {"text": {"name": text.name, "sha256": text.sha256}, "fingerprint": []},
    }
    plain.save(loaded.model, loaded.tokenizer, about, tmp_path / "student")
    with pytest.raises(InputError, match="calibrat"):
        run(spec(f"fp32,saved:{tmp_path / 'student'}"), tmp_path)


def test_only_what_was_made_from_a_model_stands_beside_it(spec, tmp_path):
    config = copy.deepcopy(tiny.CONFIGS["llama"])
    config.vocab_size += 2
    LlamaForCausalLM(config).save_pretrained(tmp_path / "other")
    tiny.tokenizer().save_pretrained(tmp_path / "other")
    with pytest.raises(InputError, match="vocabulary of 260 tokens .* models made from the model"):
        checks.check(spec(f"fp32,saved:{tmp_path / 'other'}"))


def test_what_cannot_be_read_is_one_sentence(spec, tmp_path):
    with pytest.raises(InputError):
        checks.check(spec(f"fp32,saved:{tmp_path / 'nowhere'}"))
    with pytest.raises(InputError, match="does not name a folder"):
        spec("fp32,saved:")
    (tmp_path / "a" / "same").mkdir(parents=True)
    with pytest.raises(InputError, match="Rename one"):
        spec(f"fp32,saved:{tmp_path / 'a' / 'same'},saved:{tmp_path / 'same'}")


def test_a_quantized_model_says_how_it_is_compared(original, tmp_path):
    quantized(original, tmp_path / "mine")
    with pytest.raises(InputError, match="quantized already. Start from the original model"):
        checks.check(RunSpec(str(tmp_path / "mine"), "fp32"))


def test_a_quantized_model_is_compared_with_what_it_was_made_from(original, tmp_path):
    from qcore import api

    small = api.save(api.quantize(str(original), "int4-g32"), tmp_path / "small")
    spec = RunSpec(str(small), "fp32,int8", tokens=64)
    found = checks.beside_original(spec)
    assert (found.model, [recipe.name for recipe in found.recipes]) == (
        str(original),
        ["fp32", "int8", "saved:small"],
    )
    assert (found.tokens, found.recipes[-1].weights.folder) == (64, str(small))
    assert checks.beside_original(found) == found
    named = RunSpec(str(small), f"fp32,saved:{small}")  # its own row may be named
    assert [recipe.name for recipe in checks.beside_original(named).recipes] == ["fp32", "saved:small"]
    with pytest.raises(InputError, match=f"Start from the original model, {original}"):
        checks.check(spec)


@pytest.mark.slow
def test_every_way_to_make_a_quantized_model_says_what_it_was_made_from(original, tmp_path):
    from qcore import api
    from qcore.verbs import quantize

    words = tmp_path / "words.txt"
    words.write_text("Tokens of a text that is long enough to be learned from, and a little longer. " * 60)
    silent = dict(progress=lambda *step: None)
    quantize.run(str(original), recipes.parse("int8"), tmp_path / "streamed", stream=True, **silent)
    quantize.run(str(original), recipes.parse("int8"), tmp_path / "at-once", **silent)
    api.qat(
        str(original),
        "int4-g32",
        tmp_path / "trained",
        text=str(words),
        tokens=256,
        window=32,
        schedule={"steps": 1},
    )
    api.prune(
        str(original), "2:4", 0.5, tmp_path / "sparse", recipe="int8", calibration=str(words), tokens=256
    )
    api.prune(str(original), "magnitude", 0.5, tmp_path / "zeros")
    for name in ("streamed", "at-once", "trained", "sparse", "zeros"):
        assert made_from(tmp_path / name) == library.resolve(str(original)).origin, name


def test_what_a_model_was_made_from_may_have_changed(original, tmp_path):
    from qcore import api

    small = api.save(api.quantize(str(original), "int8"), tmp_path / "small")
    other = library.load(original)
    next(other.model.parameters()).data.mul_(0.5)
    other.model.save_pretrained(original)
    with pytest.raises(InputError, match="holds other weights now"):
        checks.beside_original(RunSpec(str(small), "fp32"))


@pytest.mark.parametrize("origin", [None, [], "original", {"model": "original"}, {"model": 1, "digest": 2}])
def test_records_that_do_not_say_what_it_was_made_from(original, tmp_path, origin):
    folder = quantized(original, tmp_path / "mine")
    manifest = json.loads((folder / "qcore.json").read_text())
    (folder / "qcore.json").write_text(json.dumps(manifest | {"from": origin}))
    spec = RunSpec(str(folder), "fp32")
    assert made_from(folder) is None and checks.beside_original(spec) == spec


def test_other_commands_take_no_saved_model_for_a_recipe():
    with pytest.raises(InputError, match="Unknown recipe"):
        recipes.parse("saved:folder")


def test_the_spec_survives_json_paths_and_its_command(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    spec = RunSpec("smollm2-135m", "fp32,saved:made/student").absolute()
    assert [recipe.name for recipe in spec.recipes] == ["fp32", "saved:student"]
    assert RunSpec.from_dict(spec.to_dict()) == spec
    assert f"--recipes fp32,saved:{tmp_path}/made/student" in spec.command


@pytest.mark.slow
def test_from_the_command_line(original, tmp_path, monkeypatch):
    monkeypatch.setenv("QCORE_HOME", str(tmp_path / "home"))
    monkeypatch.chdir(quantized(original, tmp_path / "mine").parent)
    words = (
        "--tokens 100 --window 32 --prompt-tokens 8 --new-tokens 3 --repeats 1 --no-generate "
        "--text text.txt --json out.json"
    )
    assert main.main(["compare", str(original), "--recipes", "fp32,saved:mine", *words.split()]) == 0
    _, saved = json.loads((tmp_path / "out.json").read_text())
    assert saved["recipe"] == "saved:mine" and saved["kl_mean"] > 0 and saved["decode_tok_s"] > 0
    assert f"saved:{tmp_path / 'mine'}" in saved["record"]["command"]
    assert main.main(["quantize", str(original), "--recipe", "int8", "--out", "small"]) == 0
    assert main.main(["compare", "small", "--recipes", "fp32", *words.split()]) == 0
    base, saved = json.loads((tmp_path / "out.json").read_text())
    assert (base["recipe"], saved["recipe"]) == ("fp32", "saved:small") and saved["kl_mean"] > 0
    assert f"compare {original} " in saved["record"]["command"]
