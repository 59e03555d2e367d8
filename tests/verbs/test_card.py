"""The card of folders that qcore writes: the hub's metadata, measured figures only, a command that works."""

import os
import shlex
import shutil
from dataclasses import replace
from pathlib import Path

import click
import pytest
import samples
import tiny
import typer
from huggingface_hub import ModelCard

import qcore
from qcore import library
from qcore.base.errors import InputError
from qcore.cli.main import app
from qcore.jobs import jobs
from qcore.recipes import parse
from qcore.results.store import Store
from qcore.training.attach import TrainableSet
from qcore.training.distill import Distill
from qcore.training.loop import Schedule
from qcore.training.qat import Qat
from qcore.verbs import card, quantize
from qcore.verbs.command_words import words_of

CARD = "---\nlicense: cc-by-4.0\nlanguage: de\ntags: [theirs]\n---\n\n# Base\n\nText of the base.\n"
pytestmark = pytest.mark.usefixtures("own_home")


def unseen(done, total, text=""):
    pass


@pytest.fixture
def original(tmp_path):
    folder = tiny.checkpoint("llama", tmp_path / "original")
    (folder / "README.md").write_text(CARD)
    (folder / "LICENSE").write_text("The licence.")
    return folder


def made(original, folder, recipe="int4-g32", skip=()):
    chosen = parse(recipe).with_modules(skip=skip)
    return quantize.run(str(original), chosen, folder, progress=unseen)


def command(folder):
    text = (folder / "README.md").read_text()
    return shlex.split(text.partition("## Make it again")[2].split("```")[1].removeprefix("bash"))


def parsed(words):
    """Parse a command line as `qcore` does, without running it."""
    group = typer.main.get_command(app)
    name, *rest = words[1:]
    return group.commands[name].make_context(name, rest, parent=click.Context(group)).params


def test_a_quantized_folder_has_the_base_licence_and_no_figures(original, tmp_path):
    result = made(original, tmp_path / "small", skip=("layers.0",))
    found = ModelCard((tmp_path / "small" / "README.md").read_text())
    assert found.data.license == "cc-by-4.0" and found.data.language == "de" and result["notes"] == []
    assert found.data.library_name == "qcore" and found.data.base_model is None, "a local base has no id"
    assert set(found.data.tags) == {"qcore", "int4-g32", "quantized"} and found.data.eval_results is None
    assert card.NOT_MEASURED in found.text and "perplexity" not in found.text
    size = (tmp_path / "small" / "model.safetensors").stat().st_size
    assert f"({size:,} bytes)" in found.text and "`layers.0`" in found.text
    assert str(tmp_path) not in found.text, "a card is published: it must not name this machine's folders"
    assert (tmp_path / "small" / "LICENSE").read_text() == "The licence."


def test_without_a_card_the_licence_is_other_and_a_note_says_so(original, tmp_path, said):
    (original / "README.md").unlink()
    status, out, _ = said("quantize", original, "--recipe", "int8", "--out", tmp_path / "small")
    found = ModelCard((tmp_path / "small" / "README.md").read_text())
    assert status == 0 and found.data.license == "other" and "names no licence" in out
    assert "not known here" in found.text


@pytest.mark.parametrize(
    "model, base", [("smollm2-135m", "HuggingFaceTB/SmolLM2-135M-Instruct"), ("some/model", "some/model")]
)
def test_the_base_on_the_hub_is_named(model, base, original, tmp_path):
    made(original, tmp_path / "small")
    checkpoint = replace(library.resolve(original), name=model, source="hub", revision="0123abc")
    card.write(tmp_path / "small", checkpoint, ["quantize"])
    found = ModelCard((tmp_path / "small" / "README.md").read_text())
    assert found.data.base_model == base and found.data.base_model_relation == "quantized"
    assert f"`{base}` at `0123abc`" in found.text


def test_the_licence_of_the_packaged_model_is_known(original, tmp_path):
    """Its converted folder has no card, so cards of models made from it had the licence "other"."""
    made(original, tmp_path / "small")
    (original / "README.md").unlink()
    checkpoint = replace(library.resolve(original), name="smollm2-135m", source="default")
    assert card.write(tmp_path / "small", checkpoint, ["quantize"]) == ()
    assert ModelCard((tmp_path / "small" / "README.md").read_text()).data.license == "apache-2.0"


@pytest.mark.slow
def test_the_command_makes_the_same_folder_again(original, tmp_path, monkeypatch, said):
    made(original, tmp_path / "small", "int4-g32-gptq", skip=("layers.0", "mlp.up_proj"))
    words = command(tmp_path / "small")
    assert words[0] == "qcore" and "--skip" in words
    monkeypatch.chdir(tmp_path)
    (tmp_path / "small").rename(tmp_path / "first")
    assert said(*words[1:])[0] == 0
    same = [
        (folder / "model.safetensors").read_bytes() for folder in (tmp_path / "first", tmp_path / "small")
    ]
    assert same[0] == same[1]


def test_the_commands_of_all_verbs_are_understood():
    out = Path("/some/where/small")
    schedule = Schedule(minutes=2.0, batch=3)
    qat = Qat(form=TrainableSet("full", True), text="/data/a text.txt", tokens=4096, schedule=schedule)
    found = parsed(["qcore", *words_of("qat", "some/model", out, qat, recipe=parse("int4-g64"))])
    assert (found["form"], found["learn_scales"], found["text"]) == ("full", True, "a text.txt")
    assert (found["minutes"], found["batch"], found["out"]) == (2.0, 3, Path("small"))
    found = parsed(["qcore", *words_of("distill", "some/model", out, Distill(layers=2, keep="influence"))])
    assert (found["layers"], found["keep"], found["batch"]) == (2, "influence", 2)
    found = parsed(
        ["qcore", *words_of("prune", "some/model", out, method="wanda", amount=0.25, sparse=True, text=None)]
    )
    assert (found["method"], found["amount"], found["sparse"], found["text"]) == ("wanda", 0.25, True, None)
    words = words_of("export", "m", out, to="onnx", recipe=parse("int4-g64"), calibration_tokens=None)
    assert parsed(["qcore", *words])["recipe"] == "int4-g64"


SMALL = dict(tokens=120, window=32, prompt_tokens=8, new_tokens=3, repeats=1, generate=False)


@pytest.mark.slow
def test_figures_come_from_a_run(original, tmp_path, said):
    """A comparison measures the recipe. Cards of folders with this recipe, and of no other, show it."""
    text = tmp_path / "text.txt"
    text.write_text("It was the best of tokens, it was the worst of tokens. " * 9)
    made(original, tmp_path / "earlier")
    rows = jobs.compare(str(original), ["fp32", "int4-g32"], text=str(text), **SMALL)
    made(original, tmp_path / "after")
    made(original, tmp_path / "other", "int4-g64")
    found = ModelCard((tmp_path / "after" / "README.md").read_text())
    values = {each.metric_type: each.metric_value for each in found.data.eval_results}
    assert values == {"perplexity": rows[1]["perplexity"], "kl_divergence": rows[1]["kl_mean"]}
    scored = rows[1]["record"]["tokens_scored"]
    assert rows[1]["verdict"]["claim"] in found.text and f"{scored} tokens of text.txt" in found.text
    assert rows[1]["record"]["run_id"] in found.text and card.NOT_MEASURED not in found.text
    assert card.NOT_MEASURED in (tmp_path / "other" / "README.md").read_text()
    status, out, _ = said("card", tmp_path / "earlier", "--run", rows[1]["record"]["run_id"])
    quality = [ModelCard((tmp_path / name / "README.md").read_text()).text for name in ("earlier", "after")]
    assert status == 0 and quality[0].replace("earlier", "after") == quality[1]
    status, _, err = said("card", tmp_path / "other")
    assert status == 2 and "no figures" in err


@pytest.mark.row("44")
def test_figures_are_those_of_the_same_commit(original, tmp_path):
    """A model of somebody else may have the same digest. Before, its figures got into this card."""
    made(original, tmp_path / "small")
    digest, recipe = library.resolve(original).digest, parse("int4-g32").to_dict()
    record = {"digest": digest, "revision": "another commit", "recipe": recipe, "ledger": None}
    row = samples.row("int4-g32", model="evil/copy")
    row["record"] |= record
    samples.write_run(Path(os.environ["QCORE_HOME"]), [row], model="evil/copy")
    Store().rebuild()
    with pytest.raises(InputError, match="no figures"):
        card.from_run(tmp_path / "small")
    row["record"]["revision"] = None
    samples.write_run(Path(os.environ["QCORE_HOME"]), [row], model="evil/copy")
    Store().rebuild()
    assert card.from_run(tmp_path / "small").perplexity == row["perplexity"]


def test_names_are_text_not_markup(original, tmp_path):
    odd = tmp_path / "a`b|c<script>"
    shutil.copytree(original, odd)
    made(odd, tmp_path / "small")
    text = (tmp_path / "small" / "README.md").read_text()
    assert "`a'b\\|c<script>`" in text, "shown as code"
    assert text.count("```") == 4


def test_a_card_of_somebody_else_is_left_alone(original, tmp_path):
    made(original, tmp_path / "small")
    (tmp_path / "small" / "README.md").write_text(CARD)
    figures = card.Measured("text", 9, 3, 2.0, 1.9, 0.1)
    with pytest.raises(InputError, match="was not written by qcore"):
        card.measure(tmp_path / "small", figures)
    with pytest.raises(InputError, match="was not written by qcore"):
        card.from_run(original)


def test_the_interface_writes_the_same_card(original, tmp_path):
    made(original, tmp_path / "by-verb" / "small")
    qcore.save(qcore.quantize(str(original), "int4-g32"), tmp_path / "by-api" / "small")
    texts = [(tmp_path / name / "small" / "README.md").read_text() for name in ("by-verb", "by-api")]
    assert texts[0] == texts[1]
