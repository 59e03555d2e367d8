"""Preparing a model: each model of a request is resolved once, and every verb prepares in the same way."""

from pathlib import Path

import pytest
import tiny
import torch

import qcore
from qcore import library, recipes
from qcore.base.errors import InputError, TooLargeError
from qcore.jobs.resident_worker import ModelCache
from qcore.quantization import convert
from qcore.recipes.spec import RunSpec
from qcore.verbs import checks, prepare, prune
from qcore.verbs import evaluate as evaluate_verb

pytestmark = pytest.mark.usefixtures("own_home")


def quiet(*step) -> None:
    pass


@pytest.fixture
def model(tmp_path):
    return str(tiny.checkpoint("llama", tmp_path / "llama"))


@pytest.fixture
def small(model, tmp_path):
    return str(qcore.save(qcore.quantize(model, "int4-g32"), tmp_path / "small"))


@pytest.fixture
def resolved(monkeypatch):
    """The names that were resolved."""
    names, resolve = [], library.resolve
    monkeypatch.setattr(
        library, "resolve", lambda name, *a, **b: names.append(str(name)) or resolve(name, *a, **b)
    )
    return names


def test_each_model_of_a_comparison_is_resolved_once(model, small, resolved):
    spec, checkpoint = checks.check_run(RunSpec(small, "fp32,int8"))
    assert (spec.model, checkpoint.name) == (model, model)
    assert sorted(resolved) == sorted([model, small])


def test_a_model_that_was_found_before_is_not_found_again(model, resolved):
    finder = prepare.Finder()
    finder.know(model, None, checkpoint := library.resolve(model))
    del resolved[:]
    assert checks.check_run(RunSpec(model, "fp32,int8"), finder)[1] is checkpoint and not resolved


def test_prepare_gives_the_model_of_convert(model):
    made = prepare.prepare(library.resolve(model), recipes.parse("int4-g32"))
    alone = library.load(model)
    ledger = convert.quantize(alone.model, recipes.parse("int4-g32"))
    assert made.ledger == ledger == made.loaded.ledger and made.loaded.recipe == made.recipe
    ids = torch.arange(20)[None]
    with torch.no_grad():
        assert torch.equal(made.loaded.model(ids).logits, alone.model(ids).logits)
    assert made.calibration is None and made.quantize_s > 0


def test_a_quantized_model_keeps_its_recipe_and_takes_no_other(small):
    checkpoint = library.resolve(small)
    assert prepare.prepare(checkpoint, None).recipe.name == "int4-g32"
    for refuse in (
        lambda: prepare.prepare(checkpoint, recipes.parse("int8")),
        lambda: prepare.find_original(small),
        lambda: qcore.quantize(small, "int8"),
    ):
        with pytest.raises(InputError, match="quantized already. Start from the original model"):
            refuse()


def test_a_model_that_does_not_fit_is_not_loaded(model, monkeypatch):
    monkeypatch.setenv("QCORE_MEMORY_LIMIT", "1000")
    monkeypatch.setattr(library, "load", lambda *given, **more: pytest.fail("it was loaded"))
    for call in (
        lambda: qcore.load(model),
        lambda: qcore.quantize(model, "int8"),
        lambda: evaluate_verb.run(model, progress=quiet),
    ):
        with pytest.raises(TooLargeError):
            call()


@pytest.mark.parametrize("call", ["convert.quantize", "planning.check_fits"])
def test_nobody_else_prepares(call):
    """Only the checks before a run and the playground's cache test the memory; everything else goes through
    prepare.py."""
    root = Path(qcore.__file__).parent
    allowed = {"verbs/prepare.py", "verbs/checks.py", "jobs/resident_worker.py"}
    found = {
        str(path.relative_to(root))
        for room in ("verbs", "jobs", "cli", "training")
        for path in (root / room).rglob("*.py")
        if f"{call}(" in path.read_text()
    }
    assert found <= allowed and "verbs/prepare.py" in found


# -- the playground ------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_the_playground_never_shows_a_quantized_model_as_another_recipe(model, small):
    cache, base, saved = ModelCache(), library.resolve(model), library.resolve(small)
    with pytest.raises(InputError, match="quantized already"):
        cache.get(saved, recipes.parse("fp32"), quiet)
    own = cache.get(base, recipes.parse_row(f"saved:{small}"), quiet)
    full = cache.get(base, recipes.parse("fp32"), quiet)
    assert own.recipe.name == "int4-g32" and full.recipe.name == "fp32"
    ids = torch.arange(20)[None]
    with torch.no_grad():
        assert torch.equal(own.model(ids).logits, library.load(small).model(ids).logits)
        assert not torch.equal(own.model(ids).logits, full.model(ids).logits)
    assert cache.get(saved, recipes.parse_row(f"saved:{small}"), quiet).recipe.name == "int4-g32"


# -- figures of models that were made ------------------------------------------------------------------------


def test_the_perplexity_of_a_model_that_was_made_is_that_of_eval(model, tmp_path):
    """Every token of the text but the first is scored, whatever the window."""
    (tmp_path / "read.txt").write_text("Tokens of a text that is read for scores, and a little longer. " * 20)
    options = prune.Prune(method="magnitude", calibration=str(tmp_path / "read.txt"), tokens=64)
    result = prune.run(model, options, tmp_path / "out", compare=True, progress=quiet)
    found = result["compared"]
    for name, folder in (("before", model), ("after", str(tmp_path / "out"))):
        scored = evaluate_verb.run(folder, tokens=2048, window=256, progress=quiet)
        assert found[name]["perplexity"] == scored["perplexity"], name
    assert found["before"]["kl_mean"] == 0 < found["after"]["kl_mean"]
    assert (found["tokens"], found["window"]) == (2048, 256)


def test_its_window_is_no_longer_than_the_model_reads(tmp_path):
    from transformers import LlamaForCausalLM

    from qcore.verbs import made

    config = tiny.model("llama").config
    config.max_position_embeddings = 100
    short = LlamaForCausalLM(config).eval()
    short.save_pretrained(tmp_path / "short")
    tiny.tokenizer().save_pretrained(tmp_path / "short")
    checkpoint = library.resolve(tmp_path / "short")
    found = made.compared(True, checkpoint, tmp_path / "short", None, quiet)["compared"]
    assert found["window"] == 100 and found["before"]["perplexity"] == found["after"]["perplexity"]
    assert found["after"]["kl_mean"] == 0


def test_an_evaluation_through_the_api_says_what_its_record_says(model, tmp_path):
    (tmp_path / "text.txt").write_text("It was the best of tokens, it was the worst of tokens. " * 9)
    found = qcore.evaluate(model, tmp_path / "text.txt", tokens=200, window=32)
    scored = evaluate_verb.run(model, text=str(tmp_path / "text.txt"), tokens=200, window=32, progress=quiet)
    assert {name: scored[name] for name in ("perplexity", "bits_per_byte", "bos_policy")} == {
        "perplexity": found.perplexity,
        "bits_per_byte": found.bits_per_byte,
        "bos_policy": "none added",
    }
