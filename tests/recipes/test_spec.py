import json
import shlex

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qcore import recipes
from qcore.base.errors import InputError
from qcore.models.names import classify
from qcore.recipes.spec import RunSpec, absolute_model, absolute_path

SPECS = [
    RunSpec("smollm2-135m", "fp32,int8"),
    RunSpec(
        "a/b",
        ["int4-g64"],
        revision="main",
        text="t.txt",
        tokens=10,
        window=8,
        stride=4,
        generate=False,
        threads=2,
        seed=7,
    ),
    RunSpec(
        "m",
        (recipes.parse("fp32"), recipes.parse("int8").with_modules(skip=("layers.0", "*.down_proj"))),
        margin=0.05,
        choices="default",
    ),
    RunSpec("m", "fp32,int8", kv="int4"),
    RunSpec("m", "fp32,int8", prompts="own.jsonl", chat=False),
]


@pytest.mark.parametrize("spec", SPECS, ids=["plain", "all", "skip", "kv", "no chat"])
def test_json_both_ways(spec):
    assert RunSpec.from_dict(json.loads(json.dumps(spec.to_dict()))) == spec


@pytest.mark.parametrize("spec", SPECS, ids=["plain", "all", "skip", "kv", "no chat"])
def test_the_command_repeats_the_spec(spec, monkeypatch):
    """The command line, parsed again, gives the same spec."""
    from qcore.cli import main
    from qcore.jobs import jobs
    from qcore.verbs import checks

    asked = []
    monkeypatch.setattr(checks, "check_run", lambda spec: (spec, None))
    monkeypatch.setattr(jobs, "submit", lambda spec, engine: asked.append(spec))
    monkeypatch.setattr("qcore.cli.compare._follow_all", lambda run_ids, json: 0)
    assert main.main(shlex.split(spec.command)[3:]) == 0
    assert asked == [spec]


def test_recipes_with_choices_that_have_no_option_have_no_command():
    assert RunSpec("m", (recipes.parse("int8").with_modules(head="int8"),)).command is None
    assert (
        RunSpec("m", (recipes.parse("int8"), recipes.parse("int4").with_modules(skip=("a",)))).command is None
    )


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("tokens", 1),
        ("tokens", -5),
        ("tokens", 2.5),
        ("tokens", True),
        ("tokens", 10**9),
        ("tokens", None),
        ("tokens", float("nan")),
        ("window", 1),
        ("stride", 0),
        ("stride", 513),
        ("prompt_tokens", 0),
        ("new_tokens", 1),
        ("new_tokens", 10**9),
        ("repeats", 0),
        ("generate_tokens", -1),
        ("threads", 0),
        ("seed", -1),
        ("model", ""),
        ("model", "  "),
        ("recipes", []),
        ("recipes", "int9"),
        ("recipes", "int8,int8"),
        ("kv", "int9"),
        ("kv", 8),
        ("margin", 0),
        ("margin", -0.1),
        ("margin", 1.5),
        ("margin", True),
        ("margin", "1"),
        ("margin", float("nan")),
    ],
)
def test_what_cannot_be_run_is_one_sentence(field, value):
    with pytest.raises(InputError) as error:
        RunSpec(**{"model": "m", "recipes": "int8", field: value})
    message = str(error.value)
    assert "\n" not in message and len(message) < 250
    if field not in ("recipes", "model", "kv"):
        assert field in message


@pytest.mark.parametrize(
    "record",
    [{}, {"model": "m"}, {"model": "m", "recipes": [{"name": "x"}]}, {**SPECS[0].to_dict(), "colour": 1}],
)
def test_a_damaged_record_is_one_sentence(record):
    with pytest.raises(InputError):
        RunSpec.from_dict(record)


def test_paths_become_absolute_and_names_stay(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "text.txt").write_text("x")
    (tmp_path / "models").mkdir()
    (tmp_path / "smollm2-135m").mkdir()  # a folder of that name must not hide the default model
    spec = RunSpec("./models", "int8", text="text.txt", prompts="missing.txt").absolute()
    assert (spec.model, spec.text, spec.prompts) == (
        str(tmp_path / "models"),
        str(tmp_path / "text.txt"),
        "missing.txt",
    )
    assert RunSpec("smollm2-135m", "int8", text="wikitext-2").absolute() == RunSpec(
        "smollm2-135m", "int8", text="wikitext-2"
    )


def test_a_bare_folder_means_the_same_from_anywhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mymodel").mkdir()
    (tmp_path / "default").write_text("x")  # a file of that name must not hide the packaged text
    spec = RunSpec("mymodel", "int8", text="default", choices="default").absolute()
    assert (spec.model, spec.text, spec.choices) == (str(tmp_path / "mymodel"), "default", "default")
    assert spec.command.split()[4] == str(tmp_path / "mymodel")


@given(st.text())
def test_any_text_is_a_path_or_not_without_harm(text):
    assert isinstance(absolute_path(text), str) and isinstance(absolute_model(text), str)


def test_a_public_server_never_takes_a_name_for_a_folder(tmp_path, monkeypatch):
    (tmp_path / "owner" / "name").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    local = RunSpec("owner/name", "fp32").absolute().model
    assert local == str(tmp_path / "owner" / "name") and classify(local).kind == "folder"
    monkeypatch.setenv("QCORE_PUBLIC", "1")
    assert RunSpec("owner/name", "fp32").absolute().model == "owner/name"
    assert classify("owner/name").kind == "hub"
    with pytest.raises(InputError, match="is not accepted here"):
        classify(local)


def test_a_blank_at_the_end_of_a_path_is_kept(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "model ").mkdir()
    (tmp_path / "plain").mkdir()
    assert absolute_model("model ") == str(tmp_path / "model ")
    assert absolute_model(" plain ") == str(tmp_path / "plain")


def test_recipes_without_commas():
    with pytest.raises(InputError, match="Separate recipes by commas: int8,int4"):
        RunSpec("m", "int8 int4")
