"""What other projects quantized as rows of a comparison: file:NAME, and `files`."""

from copy import deepcopy

import gguf
import gguf_models
import pytest
import torch
from transformers import AutoModelForCausalLM

from qcore import recipes
from qcore.base.errors import InputError
from qcore.models import gguf_file
from qcore.recipes.files import file_rows
from qcore.recipes.spec import RunSpec, beside
from qcore.results.rows import ROW_KEYS
from qcore.verbs import checks, compare

TYPE = gguf.GGMLQuantizationType
SMALL = dict(tokens=120, window=32, prompt_tokens=8, new_tokens=3, repeats=2, generate=False)
pytestmark = pytest.mark.usefixtures("own_home")


@pytest.fixture
def files(tmp_path):
    """A folder with an original in fp32 and two quantized files of it."""
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(deepcopy(gguf_models.CONFIG), dtype=torch.float32)
    for name, kind in (("a.Q8_0", TYPE.Q8_0), ("b.Q4_0", TYPE.Q4_0)):
        gguf_models.write(tmp_path / f"{name}.gguf", model, kind)
    model.save_pretrained(tmp_path / "original")
    gguf_file.load_tokenizer(tmp_path / "a.Q8_0.gguf").save_pretrained(tmp_path / "original")
    return tmp_path


@pytest.fixture
def text(tmp_path):
    path = tmp_path / "text.txt"
    path.write_text("ABABCDabcdEFGHabIJKLcd" * 20, encoding="utf-8")
    return str(path)


@pytest.mark.slow
def test_downloads_stand_beside_own_recipes(files, text):
    rows = beside("fp32,int8", str(files / "?.*.gguf"))
    spec, checkpoint = checks.check_run(RunSpec(str(files / "original"), rows, text=text, **SMALL))
    assert [recipe.name for recipe in spec.recipes] == [
        "fp32",
        "int8",
        "file:a.Q8_0.gguf",
        "file:b.Q4_0.gguf",
    ]
    base, int8, eight, four = (
        compare.run_recipe(spec, recipe, files, lambda event: None) for recipe in spec.recipes
    )
    for row in (eight, four):
        assert tuple(row) == ROW_KEYS and row["status"] == "ok" and row["quantize_s"] is None
        assert "with its own codes" in row["record"]["notes"][0]
        assert row["decode_tok_s"] > 0
    assert 0 < eight["kl_mean"] < four["kl_mean"] and int8["kl_mean"] < four["kl_mean"]
    assert (eight["bits_per_weight"], four["bits_per_weight"]) == (8.5, 4.5)
    assert base["stored_bytes"] > eight["stored_bytes"] > four["stored_bytes"]
    assert (
        "--recipes" in four["record"]["command"]
        and f"file:{files / 'b.Q4_0.gguf'}" in four["record"]["command"]
    )
    assert RunSpec.from_dict(spec.to_dict()) == spec


def test_a_file_with_other_tokens_is_refused(files, text, tmp_path, monkeypatch):
    model = AutoModelForCausalLM.from_config(deepcopy(gguf_models.CONFIG), dtype=torch.float32)
    swapped = ["B", "A", *gguf_models.TOKENS[2:]]
    monkeypatch.setattr(gguf_models, "TOKENS", swapped)
    gguf_models.write(tmp_path / "other.gguf", model, TYPE.Q8_0)
    spec = RunSpec(str(files / "original"), beside("fp32", tmp_path / "other.gguf"), text=text, **SMALL)
    with pytest.raises(
        InputError, match="tokenizer of .*other.gguf differs .* token 0 is 'B' there and is 'A' here"
    ):
        checks.check_run(spec)


def test_names_of_files(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "one.gguf").touch()
    found = file_rows("one.gguf,owner/model-GPTQ")
    assert [recipe.name for recipe in found] == ["file:one.gguf", "file:model-GPTQ"]
    assert "quantized by another project" in recipes.describe(found[0])
    absolute = RunSpec("smollm2-135m", found).absolute()
    assert [recipe.weights.folder for recipe in absolute.recipes] == [
        str(tmp_path / "one.gguf"),
        "owner/model-GPTQ",
    ]
    with pytest.raises(InputError, match="No file matches '\\*.bin'"):
        file_rows("*.bin")
    with pytest.raises(InputError, match="does not name a model"):
        recipes.parse_row("file:")
    with pytest.raises(InputError, match="Two rows would both be called"):
        RunSpec("smollm2-135m", file_rows(["one.gguf", "two/one.gguf"]))
