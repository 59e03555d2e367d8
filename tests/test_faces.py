"""Three faces, one behaviour: the same request through the Python API, the command line and the page Quantize
starts the same run, or is refused in the same sentence."""

import copy
import json

import pytest
import streamlit
import tiny
from answered import here
from streamlit.testing.v1 import AppTest
from transformers import LlamaForCausalLM

import qcore
from qcore import recipes
from qcore.base.errors import QcoreError, RunError
from qcore.cli import main
from qcore.jobs import jobs
from ui import engine
from ui.forms import recipes as recipe_form

PATIENCE = 90  # seconds; shared machines are slow
STOPPED = "The test starts no run."
# A case is a model, recipes, and what differs from the usual conditions.
CASES = {
    "two recipes": ("llama", "fp32,int8", {}),
    "a calibrated recipe": ("llama", "fp32,int4-g32-gptq", {}),
    "a group size that is in no list": ("llama", "int4-g16-sym", {}),
    "a skip pattern": ("llama", "fp32,int8", {"skip": "layers.0"}),
    "a text of one's own": ("llama", "int8", {"text": "text.txt", "tokens": 64, "window": 32}),
    "a quantized cache": ("llama", "int8", {"kv": "int8"}),
    "questions and no prompts": ("gpt2", "int8", {"choices": "default", "generate": False}),
    "a saved model as a row": ("llama", "fp32,saved:small", {}),
    "a quantized model beside its original": ("small", "fp32,int8", {}),
    "no folder": ("nowhere/at/all/here", "int8", {}),
    "no model in the folder": ("empty", "int8", {}),
    "an unknown recipe": ("llama", "int4-g46x", {}),
    "options that exclude each other": ("llama", "int4-hqq-gptq", {}),
    "a budget is missing": ("llama", "auto-gptq", {}),
    "the same recipe twice": ("llama", "int8,int8", {}),
    "a pattern that matches nothing": ("llama", "int8", {"skip": "layers.7"}),
    "no text": ("llama", "int8", {"text": "nowhere.txt"}),
    "no saved model": ("llama", "fp32,saved:nowhere", {}),
    "a saved model of another vocabulary": ("llama", "fp32,saved:other", {}),
    "heads that no quantized cache holds": ("odd", "int8", {"kv": "int8"}),
    "a quantized model of unknown origin": ("orphan", "fp32", {}),
    "an original that has changed": ("stale", "fp32", {}),
    "no room": ("llama", "fp32,int8", {"memory": "1000000"}),
    "calibrated on the text that is scored": ("llama", "int8-gptq", {"text": "docstrings.txt"}),
}


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with models: plain ones, quantized ones, and ones that cannot be used."""
    from qcore.quantization.calibration.text import docstrings

    place = tmp_path_factory.mktemp("faces")
    for kind in ("llama", "gpt2"):
        tiny.checkpoint(kind, place / kind)
    (place / "empty").mkdir()
    (place / "text.txt").write_text("It was the best of tokens, it was the worst of tokens. " * 9)
    (place / "docstrings.txt").write_text(docstrings())
    for name, changes in (("other", {"vocab_size": 260}), ("odd", {"hidden_size": 48})):
        config = copy.deepcopy(tiny.CONFIGS["llama"])
        for key, value in changes.items():
            setattr(config, key, value)
        config.head_dim = config.hidden_size // config.num_attention_heads
        LlamaForCausalLM(config).save_pretrained(place / name)
        tiny.tokenizer().save_pretrained(place / name)
    qcore.save(qcore.quantize(str(place / "llama"), "int4-g32"), place / "small")
    qcore.save(qcore.quantize(str(place / "llama"), "int8"), place / "orphan")
    manifest = json.loads((place / "orphan" / "qcore.json").read_text())
    (place / "orphan" / "qcore.json").write_text(json.dumps(manifest | {"from": None}))
    tiny.checkpoint("llama", place / "moving")
    qcore.save(qcore.quantize(str(place / "moving"), "int8"), place / "stale")
    tiny.model("llama", seed=1).save_pretrained(place / "moving")
    return place


@pytest.fixture
def started(place, tmp_path, monkeypatch):
    """The requests that were submitted; none of them starts a run."""
    monkeypatch.setenv("QCORE_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("QCORE_PUBLIC", "0")
    monkeypatch.chdir(place)
    monkeypatch.setattr(engine, "ask", here)
    streamlit.cache_resource.clear()
    submitted = []

    def submit(spec, *engine, **_):
        submitted.append(spec.absolute().to_dict())
        raise RunError(STOPPED)

    monkeypatch.setattr(jobs, "submit", submit)
    return submitted


def by_api(model: str, names: str, conditions: dict) -> str:
    """The sentence of the error."""
    conditions = dict(conditions)
    chosen = names.split(",")
    if skip := conditions.pop("skip", None):
        parsed = [recipes.parse_row(name) for name in chosen]
        chosen = [each.with_modules(skip=(skip,)) if each.quantizes else each for each in parsed]
    with pytest.raises(QcoreError) as error:
        qcore.compare(model, chosen, **conditions)
    return str(error.value)


def by_command(model: str, names: str, conditions: dict, capsys) -> str:
    words = ["compare", model, "--recipes", names]
    for name, value in conditions.items():
        words += ["--no-generate"] if name == "generate" else [f"--{name}", str(value)]
    capsys.readouterr()
    assert main.main(words) in (1, 2)
    return capsys.readouterr().err.strip().splitlines()[-1]


def by_page(model: str, names: str, conditions: dict) -> str:
    """Every sentence on the page, after a click on Start if that is possible."""
    at = AppTest.from_file("../app.py", default_timeout=PATIENCE)
    at.switch_page("pages/quantize.py")
    values = {"source": "Folder or file", "path": model, "more": names, "skip": conditions.get("skip", "")}
    values |= {f"recipes.{title}": [] for title in recipe_form.groups()[0]}
    values |= {"ask": "choices" in conditions, "generate": conditions.get("generate", True)}
    values |= {name: conditions[name] for name in ("tokens", "window", "kv") if name in conditions}
    if "text" in conditions:
        values |= {"text": "File", "file": conditions["text"]}
    for name, value in values.items():
        at.session_state[f"quantize.{name}"] = value
    at.run()
    assert not at.exception, at.exception[0].stack_trace
    if not at.button(key="quantize.start").disabled:
        at.button(key="quantize.start").click().run()
        assert not at.exception, at.exception[0].stack_trace
    return "\n".join(each.value for kind in (at.error, at.info, at.warning) for each in kind).replace(
        "\\", ""
    )


@pytest.mark.parametrize("case", CASES)
def test_the_same_request_has_the_same_outcome(case, started, capsys, monkeypatch):
    model, names, conditions = CASES[case]
    conditions = dict(conditions)
    if memory := conditions.pop("memory", None):
        monkeypatch.setenv("QCORE_MEMORY_LIMIT", memory)
    sentence = by_api(model, names, conditions)
    assert by_command(model, names, conditions, capsys) == sentence
    assert sentence in by_page(model, names, conditions)
    if sentence == STOPPED:
        assert len(started) == 3 and started[0] == started[1] == started[2]
    else:
        assert not started and "--" not in sentence and "python -m" not in sentence


def test_a_quantized_model_stands_beside_its_original_in_all_faces(started, place, capsys):
    by_api("small", "fp32,int8", {})
    (spec,) = started
    assert spec["model"] == str(place / "llama")
    assert [each["name"] for each in spec["recipes"]] == ["fp32", "int8", "saved:small"]
