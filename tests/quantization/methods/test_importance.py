"""`-imatrix`: the importance of the inputs, from text or from a file of llama.cpp."""

import pytest
import tiny
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from qcore.base.errors import InputError
from qcore.layers.select import select
from qcore.models import imatrix
from qcore.models.imatrix import ImportanceMatrix
from qcore.quantization import methods
from qcore.quantization.calibration import Calibration
from qcore.quantization.calibration.importance import compute, named
from qcore.quantization.convert import quantize
from qcore.quantization.methods.imatrix import quantize as weighted
from qcore.recipes import parse

FORMATS = ("gguf-q4_0", "gguf-q4_1", "gguf-iq4_nl", "gguf-q4_k", "gguf-q6_k", "int4-g64", "nf4-g64")


def quiet(done, total, words):
    pass


def text(rows: int = 4, columns: int = 40) -> Calibration:
    ids = torch.randint(0, 256, (rows, columns), generator=torch.Generator().manual_seed(0))
    return Calibration("random bytes", "0" * 64, ids)


def skewed(columns: int = 256) -> torch.Tensor:
    """The importance of inputs of which a few are much larger than the others, as in language models."""
    return torch.exp(2 * torch.randn(columns, generator=torch.Generator().manual_seed(1)))


@pytest.mark.parametrize("name", FORMATS)
def test_the_weighted_error_is_below_that_of_rounding(name):
    torch.manual_seed(0)
    weight, importance, format = torch.randn(32, 256), skewed(), parse(name).weights

    def error(quantized) -> float:
        return float(((quantized.dequantize() - weight).square() * importance).sum())

    assert error(weighted(weight, format, importance)) < 0.95 * error(
        methods.quantize(weight, format, format.method)
    )


@pytest.mark.parametrize("kind", tiny.CONFIGS)
def test_the_importance_is_the_mean_square_of_what_each_layer_is_given(kind):
    model, ids = tiny.sharp(kind), text().ids
    found, counts = compute(model, text(), quiet)
    seen: dict[str, torch.Tensor] = {}

    def note(name: str):
        def hook(module, arguments):
            seen[name] = arguments[0].detach().double().square().flatten(0, 1).mean(0).float()

        return hook

    targets = select(model, parse("int4-g64")).targets
    for target in targets:
        if not target.fused:
            model.get_submodule(target.module).register_forward_pre_hook(note(target.name))
    with torch.no_grad():
        model(ids)
    assert found.keys() == {target.name for target in targets}
    for name, expected in seen.items():
        torch.testing.assert_close(found[name][0], expected, rtol=1e-4, atol=0)
        assert counts[name] == [ids.numel()]
    for target in targets:
        if target.fused:
            assert sum(counts[target.name]) == 2 * ids.numel(), "each token is read by two experts"


def written(folder, model):
    values, counts = named(model, *compute(model, text(), quiet))
    imatrix.write(folder / "imatrix.gguf", ImportanceMatrix(values, 160, ("random bytes",)), counts, 40)
    return imatrix.read(folder / "imatrix.gguf")


@pytest.mark.parametrize("kind", tiny.CONFIGS)
def test_a_file_gives_the_codes_of_its_importance_without_any_text(kind, tmp_path):
    model, recipe = tiny.model(kind), parse("gguf-q4_0-imatrix")
    values, _ = compute(model, text(), quiet)
    originals = dict(model.named_parameters())
    given = Calibration(
        "imatrix.gguf", "0" * 64, torch.empty(0, 0, dtype=torch.long), importance=written(tmp_path, model)
    )
    ledger = quantize(model, recipe, calibration=given)
    assert ledger.calibration["imatrix"]["datasets"] == ["random bytes"]
    assert not [row for row in ledger.quantized if row.reason]
    row = next(row for row in ledger.quantized if kind != "moe" or "q_proj" in row.name)
    original = originals[row.name].detach()
    expected = weighted(original.T if kind == "gpt2" else original, recipe.weights, values[row.name][0])
    module = model.get_submodule(row.name.rpartition(".")[0])
    assert torch.equal(module.quantized.codes, expected.codes)


def test_text_serves_without_a_file():
    ledger = quantize(tiny.model("llama"), parse("gguf-q4_0-imatrix"), calibration=text())
    assert all(row.format == "gguf-q4_0" for row in ledger.quantized)


def test_weights_that_the_file_lacks_are_rounded_and_named(tmp_path):
    model = tiny.model("llama")
    matrix = written(tmp_path, model)
    some = {name: value for name, value in matrix.values.items() if "ffn_down" not in name}
    given = Calibration("a", "0" * 64, torch.empty(0, 0, dtype=torch.long), importance=ImportanceMatrix(some))
    ledger = quantize(model, parse("gguf-q4_0-imatrix"), calibration=given)
    noted = {row.name.split(".")[-2] for row in ledger.quantized if row.reason}
    assert noted == {"down_proj"}
    assert "lacks it" in next(row.reason for row in ledger.quantized if row.reason)


def test_a_file_of_another_model_is_refused(tmp_path):
    other = LlamaForCausalLM(
        LlamaConfig(
            hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2, vocab_size=258
        )
    )
    matrix = written(tmp_path, other)
    empty = torch.empty(0, 0, dtype=torch.long)
    with pytest.raises(InputError, match="of another model"):
        quantize(
            tiny.model("llama"),
            parse("gguf-q4_0-imatrix"),
            calibration=Calibration("a", "0" * 64, empty, importance=matrix),
        )
    foreign = ImportanceMatrix({"blk.0.ssm_in.weight": torch.ones(1, 64)}, name="foreign.gguf")
    with pytest.raises(InputError, match="foreign.gguf is of another model"):
        quantize(
            tiny.model("llama"),
            parse("gguf-q4_0-imatrix"),
            calibration=Calibration("a", "0" * 64, empty, importance=foreign),
        )


def test_a_rotated_model_has_other_inputs(tmp_path):
    model = tiny.model("llama")
    given = Calibration(
        "a", "0" * 64, torch.empty(0, 0, dtype=torch.long), importance=written(tmp_path, model)
    )
    with pytest.raises(InputError, match="rotates the model"):
        quantize(model, parse("rot-gguf-q4_0-imatrix"), calibration=given)
