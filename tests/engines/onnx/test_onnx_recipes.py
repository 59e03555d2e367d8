"""The recipes onnx-fp32, onnx-int8 and onnx-int4: real sessions, the same evaluation, and every byte from the
file."""

import pytest
import torch
from onnx_models import made

from qcore import recipes
from qcore.base.errors import InputError, UnavailableError
from qcore.evaluation.divergence import Divergence
from qcore.evaluation.perplexity import evaluate
from qcore.evaluation.reference import Reference
from qcore.measurement.traffic import bytes_a_token
from qcore.planning import probe
from qcore.quantization import convert

IDS = torch.randint(0, 256, (80,), generator=torch.Generator().manual_seed(2))


@pytest.fixture(scope="module")
def reference(tmp_path_factory):
    path = tmp_path_factory.mktemp("reference") / "reference.safetensors"
    evaluate(made("qwen"), IDS, window=40, record=path)
    return path


def applied(name: str, reference, **modules) -> tuple[torch.nn.Module, object, Divergence]:
    model = made("qwen")
    ledger = convert.quantize(model, recipes.parse(name).with_modules(**modules))
    return model, ledger, evaluate(model, IDS, window=40, reference=Reference.open(reference)).divergence


@pytest.mark.slow
def test_int4_has_the_codes_and_the_loss_of_our_own(reference):
    model, ledger, divergence = applied("onnx-int4", reference)
    own = made("qwen")
    own_ledger = convert.quantize(own, recipes.parse("int4-g64-a32"))
    wanted = evaluate(own, IDS, window=40, reference=Reference.open(reference)).divergence
    assert divergence.kl_mean == pytest.approx(wanted.kl_mean, rel=1e-3)
    assert {row.name for row in ledger.quantized} == {row.name for row in own_ledger.quantized}
    for row in ledger.quantized:
        rows, columns = row.shape
        groups = -(-columns // 64)
        assert row.bytes_after >= rows * groups * (
            32 + 4
        )  # 64 codes of 4 bits and a float32 scale per group; zero points where needed
    # The tied embedding is read whole as the output head; norms, biases and codes once.
    assert bytes_a_token(model, ledger.rows) == ledger.stored_bytes


@pytest.mark.slow
def test_fp32_loses_nothing(reference):
    _, ledger, divergence = applied("onnx-fp32", reference)
    assert divergence.kl_mean < 1e-6 and divergence.top1_agreement == 1.0
    assert ledger.bits_per_weight == pytest.approx(32, abs=0.1) and ledger.coverage == 1.0


@pytest.mark.slow
def test_int8_is_onnx_runtimes_own_and_skips_what_it_is_told_to(reference):
    _, ledger, divergence = applied("onnx-int8", reference, skip=("down_proj",))
    rows = {row.name: row for row in ledger.rows}
    assert divergence.kl_mean > 1e-6
    assert rows["model.layers.0.mlp.up_proj.weight"].format == "onnx-int8"
    assert rows["model.layers.0.mlp.down_proj.weight"].format is None
    assert rows["model.layers.0.mlp.up_proj.weight"].bytes_after == 64 * 96 + 4 + 1


def test_what_the_recipes_cannot_do_is_said():
    with pytest.raises(InputError, match="Leave both at keep"):
        convert.quantize(made("qwen"), recipes.parse("onnx-int8").with_modules(head="int8"))
    with pytest.raises(InputError, match="mixture of experts"):
        import tiny

        convert.quantize(tiny.model("moe"), recipes.parse("onnx-fp32"))
    with pytest.raises(UnavailableError, match="Runs measure it"):
        probe._time(made("qwen"), recipes.parse("onnx-fp32"), 1e9)
