import json
from pathlib import Path

import pytest
import tiny
import torch

import qcore
from qcore.base.errors import InputError
from qcore.library import safetensors
from qcore.models.headers import read_header
from qcore.quantization.convert import quantize
from qcore.recipes import common, parse
from tests.zoo import build
from tests.zoo.shrink import EVEN


def ids() -> torch.Tensor:
    return torch.randint(0, 256, (1, 24), generator=torch.Generator().manual_seed(1))


def saved(kind: str, name: str, folder):
    model, recipe = tiny.model(kind), parse(name)
    ledger = quantize(model, recipe)
    return model, ledger, safetensors.save(model, tiny.tokenizer(), recipe, ledger, folder / "saved")


@pytest.mark.parametrize("kind", tiny.CONFIGS)
@pytest.mark.parametrize("name", common())
@torch.no_grad()
def test_a_saved_model_gives_bit_equal_logits(kind, name, tmp_path):
    model, ledger, folder = saved(kind, name, tmp_path)
    loaded, loaded_ledger, recipe = safetensors.load(folder)
    assert torch.equal(loaded(ids()).logits, model(ids()).logits)
    assert loaded_ledger == ledger and recipe == parse(name)


def test_the_file_holds_what_the_ledger_counts(tmp_path):
    for kind in ("llama-tied", "moe"):
        for name in ("int4-g64", "nf4-g64-dq", "int8-head8"):
            _, ledger, folder = saved(kind, name, tmp_path / kind / name)
            weights = folder / "model.safetensors"
            header = 8 + int.from_bytes(weights.read_bytes()[:8], "little")
            assert weights.stat().st_size - header == ledger.stored_bytes


@torch.no_grad()
def test_skipped_layers_come_back_unquantized(tmp_path):
    model, recipe = tiny.model("llama"), parse("int4-g64").with_modules(skip=("layers.0", "mlp.up_proj"))
    ledger = quantize(model, recipe)
    loaded, _, _ = safetensors.load(
        safetensors.save(model, tiny.tokenizer(), recipe, ledger, tmp_path / "saved")
    )
    assert torch.equal(loaded(ids()).logits, model(ids()).logits)
    assert type(loaded.model.layers[1].mlp.up_proj) is torch.nn.Linear


@pytest.mark.row("35")
def test_one_flipped_bit_is_found(tmp_path):
    _, _, folder = saved("llama", "int4-g64", tmp_path)
    data = bytearray((folder / "model.safetensors").read_bytes())
    data[-100] ^= 1
    (folder / "model.safetensors").write_bytes(data)
    with pytest.raises(InputError, match="is damaged"):
        safetensors.load(folder)


def test_a_folder_in_use_is_not_overwritten_unasked(tmp_path):
    model, ledger, folder = saved("llama", "int8", tmp_path)
    with pytest.raises(InputError, match="not empty"):
        safetensors.save(model, tiny.tokenizer(), parse("int8"), ledger, folder)
    safetensors.save(model, tiny.tokenizer(), parse("int8"), ledger, folder, overwrite=True)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["saved"], "no scratch folder is left"


def test_overwriting_spares_what_qcore_did_not_write(tmp_path):
    (tmp_path / "letters").mkdir()
    (tmp_path / "letters" / "dear.txt").write_text("kept")
    model, recipe = tiny.model("llama"), parse("int8")
    ledger = quantize(model, recipe)
    with pytest.raises(InputError, match="was not written by qcore"):
        safetensors.save(model, None, recipe, ledger, tmp_path / "letters", overwrite=True)
    assert (tmp_path / "letters" / "dear.txt").read_text() == "kept"


def test_another_librarys_format_is_not_saved(tmp_path):
    with pytest.raises(InputError, match="another library"):
        safetensors.save(tiny.model("llama"), None, parse("bnb-nf4"), None, tmp_path / "saved")


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"version": 99}'])
def test_a_manifest_that_cannot_be_used_is_refused(text, tmp_path):
    _, _, folder = saved("llama", "int8", tmp_path)
    (folder / "qcore.json").write_text(text)
    with pytest.raises(InputError, match=r"cannot be read|reads version 1"):
        safetensors.load(folder)


def test_missing_weights_are_named(tmp_path):
    _, _, folder = saved("llama", "int8", tmp_path)
    (folder / "model.safetensors").unlink()
    with pytest.raises(InputError, match="model.safetensors cannot be read"):
        safetensors.load(folder)


def test_other_libraries_are_told_what_it_is(tmp_path):
    _, _, folder = saved("llama", "int8", tmp_path)
    config = json.loads((folder / "config.json").read_text())
    assert config["quantization_config"]["quant_method"] == "qcore" and config["architectures"] == [
        "LlamaForCausalLM"
    ]


@pytest.mark.parametrize("kind", tiny.CONFIGS)
def test_weights_lie_in_the_file_where_they_can_be_used(kind, tmp_path):
    _, _, folder = saved(kind, "int4-g64-dq", tmp_path)
    tensors = read_header(folder / "model.safetensors")
    assert all(tensor.start % 64 == 0 for tensor in tensors.values() if tensor.nbytes % 64 == 0)
    model, _, _ = safetensors.load(folder)
    mapped = {
        line.split()[0] for line in Path("/proc/self/maps").read_text().splitlines() if str(folder) in line
    }
    ranges = [tuple(int(end, 16) for end in line.split("-")) for line in mapped]
    for name, parameter in model.named_parameters():
        inside = any(first <= parameter.data_ptr() < last for first, last in ranges)
        assert inside or parameter.nbytes % 64, f"{name} was copied"


@pytest.mark.parametrize("kind", ["camembert", "apertus"])
@torch.no_grad()
def test_odd_models_come_back(kind, tmp_path):
    """CamemBERT's tied head stands before its embedding: the weight was stored under the head's name, and the
    embedding stayed empty. Apertus has parameters that are one number."""
    loaded = qcore.quantize(str(build(kind, tmp_path / "original")), "int8")
    folder = qcore.save(loaded, tmp_path / "saved")
    again = qcore.load(str(folder)).model
    assert not any(parameter.is_meta for parameter in again.parameters())
    assert torch.equal(again(ids()).logits, loaded.model(ids()).logits)


def test_single_numbers_are_written_for_other_projects(tmp_path):
    """Apertus' activation has parameters without dimensions, which could not be split into rows."""
    original = build("apertus", tmp_path / "original", shape=EVEN)
    qcore.export(str(original), "int4-g32-sym", tmp_path / "exported", to="compressed-tensors")
    stored = read_header(tmp_path / "exported" / "model.safetensors")
    assert any(tensor.shape == () for tensor in stored.values())
