"""A method, a format and an engine from outside the package, one file each, in everything that takes a
recipe.

The toys are copied out of the repository and loaded in the three ways that there are: `qcore.register`,
QCORE_EXTENSIONS, and an entry point of an installed package. Everything runs in processes of its own, so that
no other test meets them.
"""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import tiny

ROOT = Path(__file__).parent.parent.parent
TOYS = Path(__file__).parent / "toys"
RECIPES = ("fp32", "int4-g64-sigma4", "int4-g64-weighted", "pow4-g32", "toy-int8")


@pytest.fixture
def outside(tmp_path) -> Path:
    """The folder with the toys: the method to be registered by its path, the format as a module on the path,
    the engine with the metadata of an installed package."""
    shutil.copytree(TOYS, tmp_path / "outside", ignore=shutil.ignore_patterns("__pycache__"))
    info = tmp_path / "outside" / "toy_engine-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: toy-engine\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[qcore.extensions]\ntoy = toy_engine\n")
    return tmp_path / "outside"


def run(code: str, outside: Path, *arguments: object, **variables: str) -> dict:
    """What `code` prints last, as JSON; it runs in a process of its own that can see the toys."""
    path = os.pathsep.join((str(outside), str(ROOT), str(ROOT / "tests")))
    environment = os.environ | {"PYTHONPATH": path, "QCORE_EXTENSIONS": "toy_format"} | variables
    command = [sys.executable, "-c", code, *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=outside, env=environment)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])


COMPARE = """
import json, sys
import qcore
from qcore.base import quiet
quiet.silence()
qcore.register(sys.argv[2])
conditions = dict(tokens=200, window=64, prompt_tokens=8, new_tokens=4, repeats=1, calibration_tokens=256)
print(json.dumps(qcore.compare(sys.argv[1], sys.argv[3].split(","), **conditions, generate=False)))
"""


@pytest.mark.slow
@pytest.mark.usefixtures("own_home")
def test_compare_runs_each_in_processes_of_its_own(tmp_path, outside):
    model = tiny.checkpoint("llama", tmp_path / "llama")
    rows = run(COMPARE, outside, model, outside / "toy_method.py", ",".join(RECIPES))
    assert [(row["recipe"], row["status"], row["error"]) for row in rows] == [
        (name, "ok", None) for name in RECIPES
    ]
    baseline, *others = rows
    formats = {"int4-g64-sigma4": "int4-g64", "int4-g64-weighted": "int4-g64"}
    bits = {"int4-g64-sigma4": 4.3125, "int4-g64-weighted": 4.3125, "pow4-g32": 4.25}
    for row in others:
        name, ledger = row["recipe"], row["record"]["ledger"]
        changed = [each for each in ledger["rows"] if each["format"]]
        assert len(changed) == 14 and {each["format"] for each in changed} == {formats.get(name, name)}
        assert row["stored_bytes"] == sum(each["bytes_after"] for each in ledger["rows"])
        assert row["bits_per_weight"] == pytest.approx(bits.get(name, 8.0), abs=0.01)
        assert row["coverage"] == others[0]["coverage"] > 0.5
        assert row["perplexity"] == pytest.approx(baseline["perplexity"], rel=0.02) and row["kl_mean"] > 0
    weighted = rows[RECIPES.index("int4-g64-weighted")]["record"]["ledger"]
    assert weighted["calibration"]["tokens"] >= 256
    assert all(row["record"]["environment"]["extensions"] for row in rows), "a record says what it took"


ALL_ELSE = """
import json, sys
from dataclasses import dataclass
from pathlib import Path
import torch, tiny
import qcore
from qcore import engines, recipes
from qcore.base import quiet
from qcore.library import resolve, safetensors
from qcore.layers.select import select
from qcore.formats.kinds import Table, register
from qcore.kernels import dispatch, library
from qcore.planning import fit
from qcore.quantization import calibration, convert
from qcore.quantization.methods import rtn
from qcore.quantization.sensitivity.choosing import find_or_predict
from qcore.streaming import quantizing
quiet.silence()
qcore.register(Path(sys.argv[1]))
folder, said = Path(sys.argv[2]), {}
ids = torch.arange(40, 72)[None]
said["names"] = recipes.names()
names = ("int4-g64-sigma4", "pow4-g64-sigma4", "toy-int8")
said["words"] = [recipes.describe(recipes.parse(name)) for name in names]
said["engine"] = engines.available("toy")
said["refused"] = []
for name in ("kmeans4-sigma4", "pow4-sym", "pow4-dq", "pow4-g12", "pow5"):
    try:
        recipes.parse(name)
    except qcore.QcoreError as error:
        said["refused"].append(str(error))

said["logits"], said["bytes"] = {}, {}
for kind in ("llama", "gpt2", "moe"):
    for name in ("pow4-g32", "pow4-g32-sigma4"):
        model, recipe = tiny.model(kind), recipes.parse(name)
        ledger = convert.quantize(model, recipe)
        safetensors.save(model, tiny.tokenizer(), recipe, ledger, folder / kind / name)
        again, same, loaded = safetensors.load(folder / kind / name)
        with torch.no_grad():
            equal = torch.equal(model(ids).logits, again(ids).logits)
        said["logits"][f"{kind} {name}"] = bool(equal) and same == ledger and loaded == recipe
    checkpoint = resolve(str(tiny.checkpoint(kind, folder / kind / "original")))
    quantizing.quantize(checkpoint, recipes.parse("pow4-g32"), folder / kind / "streamed")
    streamed = safetensors.load(folder / kind / "streamed")
    whole = safetensors.load(folder / kind / "pow4-g32")
    parts = [dict(each[0].named_buffers()) for each in (streamed, whole)]
    said["bytes"][kind] = {
        "streamed": streamed[1].stored_bytes,
        "planned": fit.estimate(checkpoint, recipes.parse("pow4-g32")).stored_bytes,
        "whole": whole[1].stored_bytes,
    }
    said["logits"][f"{kind} streamed"] = all(torch.equal(parts[0][name], parts[1][name]) for name in parts[1])



@register("thirds")
@dataclass(frozen=True)
class Thirds(Table):  # native kernels read tables of 16 with float16 scales
    group_size: int | None
    bits = 4
    native = True
    label = property(lambda self: f"thirds-g{self.group_size}")
    fixed = property(lambda self: torch.linspace(-1, 1, 16) ** 3)


weight, x = torch.randn(48, 160), torch.randn(3, 160)
for size in (32, 64, None):
    layer = convert.methods.quantize(weight, Thirds(size), "rtn")
    plain = rtn.reference(weight, Thirds(size))
    said["logits"][f"native table {size}"] = all(
        torch.equal(layer.parts()[name], part) for name, part in plain.parts().items()
    )
    packed = dispatch.packed(layer)
    near = torch.allclose(dispatch.linear(x, packed), dispatch.linear(x, layer), rtol=1e-4, atol=1e-4)
    said["logits"][f"native product {size}"] = near
    said["native"] = type(packed).__name__ == "PackedWeight" or library.reason_missing()
layer = convert.methods.quantize(torch.randn(16, 64), recipes.parse("pow4-g32").weights, "rtn")
said["kernel"] = dispatch.explain(layer)
text = calibration.Calibration("bytes", "0" * 64, torch.randint(0, 256, (3, 48)))
model = tiny.model("llama")
said["gptq"] = convert.quantize(model, recipes.parse("pow4-g32-gptq"), calibration=text).coverage
model, formats = tiny.model("llama"), (recipes.parse("pow4-g32").weights, recipes.parse("int8").weights)
targets = list(select(model, recipes.parse("int8")).targets)
table, _ = find_or_predict(model, targets, formats, "clipped-rows", text, lambda *step: None, identity=None)
said["sensitivity"] = [len(table.layers), min(layer.loss[0] / layer.loss[1] for layer in table.layers)]
said["record"] = type(table).from_dict(json.loads(json.dumps(table.to_dict()))) == table
print(json.dumps(said))
"""


@pytest.mark.slow
@pytest.mark.usefixtures("own_home")
def test_files_plans_streaming_and_sensitivities_take_them(tmp_path, outside):
    said = run(ALL_ELSE, outside, outside / "toy_method.py", tmp_path / "made")
    assert {"int4-g64-sigma4", "pow4-g32", "toy-int8"} <= set(said["names"])
    assert "clipped to four standard deviations" in said["words"][0]
    assert said["words"][1].startswith("a sign and a power of two") and "toy library" in said["words"][2]
    assert said["engine"] is None
    for sentence, words in zip(
        said["refused"], ("-sigma4", "-sym", "-dq", "multiple of 8", "Unknown recipe"), strict=True
    ):
        assert words in sentence
    assert said["logits"] and all(said["logits"].values()), said["logits"]
    assert all(len(set(sizes.values())) == 1 for sizes in said["bytes"].values()), said["bytes"]
    assert said["kernel"] == "plain torch: no native kernel reads the format pow4-g32"
    assert said["native"]
    assert said["gptq"] > 0.5 and said["record"]
    assert said["sensitivity"][0] == 14 and said["sensitivity"][1] > 10


@pytest.mark.slow
@pytest.mark.parametrize("toy", ["toy_method.py", "toy_format.py", "toy_engine.py"])
def test_an_extension_is_one_file_and_registered_once(toy, outside):
    code = (
        "import json, sys, qcore\n"
        "module = qcore.register(sys.argv[1])\n"
        "assert qcore.register(sys.argv[1]) is module\n"
        "import os\n"
        "print(json.dumps(os.environ['QCORE_EXTENSIONS'].split(os.pathsep)))"
    )
    assert run(code, outside, outside / toy, QCORE_EXTENSIONS="") == [str(outside / toy)]


@pytest.mark.parametrize(
    ("text", "words"), [(None, "No such file"), ("import no_such_library", "no_such_library")]
)
def test_an_extension_that_cannot_be_imported_is_one_sentence(text, words, outside):
    if text is not None:
        (outside / "broken.py").write_text(text)
    code = (
        "import json\n"
        "from qcore.base.errors import InputError\n"
        "from qcore.recipes import parse\n"
        "try:\n"
        "    parse('int4-g64')\n"
        "except InputError as error:\n"
        "    print(json.dumps(str(error)))"
    )
    said = run(code, outside, QCORE_EXTENSIONS=str(outside / "broken.py"))
    assert "broken.py cannot be imported" in said and words in said


def test_a_model_in_an_unknown_format_says_what_is_missing():
    from qcore.base.errors import InputError
    from qcore.formats import kinds

    with pytest.raises(InputError, match="'powers' is unknown.*QCORE_EXTENSIONS"):
        kinds.from_dict({"type": "powers", "group_size": 32})


def test_what_files_declare_is_what_they_register():
    from qcore import engines, recipes
    from qcore.quantization import methods

    assert {name: each.info for name, each in methods.METHODS.items()} == dict(recipes.METHODS.items())
    assert {name: each.info for name, each in engines.ENGINES.items()} == dict(recipes.ENGINES.items())
    modules = {Path(sys.modules[each.choose.__module__].__file__) for each in methods.METHODS.values()}
    assert len(modules) == len(recipes.METHODS.values()) - 1, "one file each; distilled begins with gptq's"
