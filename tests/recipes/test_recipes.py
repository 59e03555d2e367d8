import json
import subprocess
import sys
import time

import pytest

from qcore.base.errors import InputError
from qcore.formats.codebook import Codebook
from qcore.formats.uniform import Uniform
from qcore.jobs.kind_probe import ProbeRequest
from qcore.recipes import Recipe, describe, names, parse, parse_row
from qcore.recipes.spec import RunSpec
from qcore.verbs.sensitivity import Request


@pytest.mark.parametrize("name", names())
def test_every_offered_recipe_parses_describes_itself_and_survives_json(name):
    recipe = parse(name)
    assert recipe.name == name
    assert len(describe(recipe)) > 20
    assert Recipe.from_dict(json.loads(json.dumps(recipe.to_dict()))) == recipe
    chosen = recipe.with_modules(skip=("layers.0",), head="int8")
    assert Recipe.from_dict(json.loads(json.dumps(chosen.to_dict()))) == chosen


BOUNDS = [
    (lambda: parse("int8").with_modules(skip=("x",) * 200_000), "200,000 patterns of modules to skip"),
    (lambda: parse("int8").with_modules(skip=("layers.0", "x*" * 200_000)), "has 400,000 characters"),
    (lambda: parse("int8").with_modules(skip="layers.0"), "must be a list of patterns"),
    (lambda: Recipe.from_dict(with_skip(["x"] * 301)), "301 patterns of modules to skip"),
    (lambda: Recipe.from_dict(with_skip(["x" * 301])), "has 301 characters"),
    (lambda: Recipe.from_dict(with_skip([1])), "must be a list of patterns"),
    (lambda: parse("int4" + "-dq" * 100_000), "has 300,004 characters"),
    (lambda: parse_row("int4" + "-dq" * 1000), "has 3,004 characters"),
    (lambda: parse_row("saved:" + "x" * 100_000), "has 100,006 characters"),
    (lambda: RunSpec("m", ["int8"] * 200_000), "200,000 recipes were given"),
    (lambda: ProbeRequest(model="m", recipes=("int8",) * 201), "201 recipes were given"),
    (lambda: Request(model="m", formats=tuple(f"int4-g{8 * i}" for i in range(1, 40))), "39 formats"),
]


def with_skip(patterns):
    record = parse("int8").to_dict()
    return record | {"modules": record["modules"] | {"skip": patterns}}


@pytest.mark.row("45")
@pytest.mark.parametrize(("make", "words"), BOUNDS)
def test_lists_and_names_of_any_length_are_refused_at_once(make, words):
    """Before, each pattern was compared with each module, for hours."""
    began = time.process_time()
    with pytest.raises(InputError, match=words) as error:
        make()
    assert time.process_time() - began < 0.5 and len(str(error.value)) < 300


def test_as_many_patterns_as_a_model_has_layers_are_allowed():
    names = tuple(f"model.layers.{i}.mlp.experts.{k}.down_proj" for i in range(30) for k in range(10))
    assert parse("int8").with_modules(skip=names).modules.skip == names


def test_names_mean_what_the_field_means_by_them():
    assert parse("int8").weights == Uniform(8, None, symmetric=True)
    assert parse("int4").weights == parse("int4-g64").weights == Uniform(4, 64, symmetric=False)
    assert parse("int4-g32-sym-dq").weights == Uniform(4, 32, symmetric=True, double_quant=True)
    assert parse("NF4-g128").weights == Codebook("nf4", 128)
    assert parse("int8-dynamic").activations == "int8"
    assert [parse(f"int4-g32{option}").activations for option in ("", "-a16", "-a8", "-a32")] == [
        "int16",
        "int16",
        "int8-block",
        "fp32",
    ]
    assert parse("int4-g32-head8").modules.head == parse("int4-g32-head8").modules.embeddings == "int8"
    assert parse("kmeans4").method == "kmeans" and parse("nf4-g64").method == "rtn"


@pytest.mark.row("21")
@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("int4-g46x", "Did you mean int4-g64"),
        ("bnb-nf", "Did you mean bnb-nf4"),
        ("banana", "Known: fp32"),
        ("int4-g7", "multiple of 8"),
        ("int4-g64-g32", "same option twice"),
        ("int4-sym-asym", "same option twice"),
        ("nf4-sym", "do not apply"),
        ("int8-dq", "needs a group_size"),
        ("fp32-g64", "takes no options"),
        ("int4-a8-dynamic", "exclude each other"),
        ("", "Unknown recipe"),
    ],
)
def test_a_wrong_name_gets_one_helpful_sentence(name, message):
    with pytest.raises(InputError, match=message):
        parse(name)


@pytest.mark.parametrize(
    "damage",
    [
        {"weights": {"type": "uniform", "bits": 99}},
        {"weights": {"type": "pickle"}},
        {"activations": "int3"},
        {"modules": {"head": "x"}},
        {"x": 1},
    ],
    ids=str,
)
def test_a_damaged_record_is_refused(damage):
    with pytest.raises(InputError, match="cannot be read"):
        Recipe.from_dict(parse("int4-g64").to_dict() | damage)


def test_a_record_with_the_earlier_name_of_an_engines_backend_is_read():
    record = parse("bnb-nf4").to_dict()
    record["weights"]["library"] = record["weights"].pop("backend")
    assert Recipe.from_dict(record) == parse("bnb-nf4")


def test_recipes_are_read_without_torch():
    """A mistyped name on the command line is reported at once, without importing torch."""
    code = """
import sys
from qcore import recipes
from qcore.base.errors import InputError
assert recipes.parse("nf4-g64").weights.kind == "nf4"
try:
    recipes.parse("int5-banana")
except InputError as error:
    print(error)
print("torch" in sys.modules)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    sentence, heavy = done.stdout.splitlines()
    assert "int5-banana" in sentence and heavy == "False"


@pytest.mark.row("49")
@pytest.mark.parametrize("name", ["saved:~", "saved:.", "saved:~root", "saved:~nobody-here", "file:~/x"])
def test_a_public_server_looks_no_folder_up_to_name_a_recipe(name, monkeypatch):
    monkeypatch.setenv("QCORE_PUBLIC", "1")
    kind, _, folder = name.partition(":")
    assert parse_row(name).name == f"{kind}:{folder.rpartition('/')[2]}"
