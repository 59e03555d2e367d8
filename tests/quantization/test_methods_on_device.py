"""Every method on a simulated accelerator (`tests/accelerator.py`): the codes of the CPU, from tensors that
never leave the device."""

from copy import deepcopy

import pytest
import torch
from transformers import AutoModelForCausalLM, GPT2Config, LlamaConfig, MixtralConfig

from qcore import recipes
from qcore.formats.k_quants import KQuant
from qcore.kernels import choosing, dispatch, gpu, rounding
from qcore.quantization import convert
from qcore.quantization.calibration import Calibration
from qcore.quantization.methods import awq, gptq, joint, rtn, signround
from tests.accelerator import simulated

SIZES = dict(vocab_size=96, bos_token_id=0, eos_token_id=1, pad_token_id=None)
LLAMA = LlamaConfig(
    hidden_size=16,
    intermediate_size=24,
    num_hidden_layers=1,
    num_attention_heads=2,
    num_key_value_heads=1,
    tie_word_embeddings=False,
    **SIZES,
)
MIXTRAL = MixtralConfig(
    hidden_size=16,
    intermediate_size=16,
    num_hidden_layers=1,
    num_attention_heads=2,
    num_key_value_heads=1,
    num_local_experts=2,
    num_experts_per_tok=1,
    **SIZES,
)
GPT2 = GPT2Config(n_embd=16, n_layer=1, n_head=2, n_positions=64, **SIZES)
IDS = torch.randint(2, 96, (2, 16), generator=torch.Generator().manual_seed(0))
TEXT = Calibration("text", "0", IDS)


def model(config):
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(deepcopy(config), dtype=torch.float32).eval()


def parts(quantized) -> dict[str, torch.Tensor]:
    """The stored parts of all quantized weights, and the parameters."""
    return {name: tensor.cpu() for name, tensor in quantized.state_dict().items()}


@pytest.fixture
def in_torch(monkeypatch):
    """Choose, round and multiply in plain torch on both."""
    monkeypatch.setattr(choosing, "available", lambda levels: False)
    monkeypatch.setattr(rounding, "reason_against", lambda weight, format: "in torch")
    monkeypatch.setattr(dispatch, "reason_for_reference", lambda weight: "in torch")
    monkeypatch.setattr(gpu, "kernel_of", lambda weight, activations: gpu.Kernel(None, "in torch"))
    monkeypatch.setattr(signround, "STEPS", 2)
    monkeypatch.setattr(joint, "STEPS", 2)
    monkeypatch.setattr(awq, "STEPS", 4)


@pytest.mark.parametrize(
    ("config", "name"),
    [
        (LLAMA, "int8"),
        (LLAMA, "nf4-g8-hqq"),
        (LLAMA, "kmeans4"),
        (LLAMA, "kmeans4-g8-hessian"),
        pytest.param(LLAMA, "int4-g8-awq", marks=pytest.mark.slow),
        pytest.param(LLAMA, "rot-gguf-q4_0-imatrix", marks=pytest.mark.slow),
        pytest.param(GPT2, "nf4-g8-awq", marks=pytest.mark.slow),
        pytest.param(MIXTRAL, "int4-g8-imatrix", marks=pytest.mark.slow),
        (MIXTRAL, "int4-g8"),
        (LLAMA, "bf16"),
        pytest.param(LLAMA, "int4-g8-gptq", marks=pytest.mark.slow),
        pytest.param(LLAMA, "kmeans4-gptq", marks=pytest.mark.slow),
        pytest.param(MIXTRAL, "int4-g8-gptq", marks=pytest.mark.slow),
        pytest.param(LLAMA, "int4-g8-signround", marks=pytest.mark.slow),
        pytest.param(LLAMA, "nf4-g8-dq-distilled", marks=pytest.mark.slow),
        pytest.param(LLAMA, "auto-4.75bpw", marks=pytest.mark.slow),
    ],
    ids=lambda value: value if isinstance(value, str) else value.model_type,
)
def test_codes_are_those_of_the_cpu(config, name, in_torch):
    recipe = recipes.parse(name)
    wanted = model(config)
    convert.quantize(wanted, recipe, calibration=TEXT if recipe.calibrated else None)
    with simulated() as traffic:
        there = model(config).to("cuda")
        moved = traffic.to_device
        convert.quantize(there, recipe, calibration=TEXT if recipe.calibrated else None)
        tensors = [*there.parameters(), *there.buffers()]
        assert {tensor.device.type for tensor in tensors} == {"cuda"}
        # single values and the steps of a block, no matrix
        allowed = {"aten._local_scalar_dense.default", "tolist"} | ({"cpu"} if "auto" in name else set())
        assert set(traffic.to_host) <= allowed
        assert traffic.to_device - moved <= 50  # windows of tokens, tables, random vectors
        logits = there(IDS.to("cuda")).logits.cpu()
        found = parts(there)
    assert {key for key in found if not torch.equal(found[key], wanted.state_dict()[key])} == set()
    assert torch.equal(logits, wanted(IDS).logits)


@pytest.mark.slow
def test_k_quants_are_those_of_the_cpu(in_torch):
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(4, 256, generator=generator)
    inputs = torch.randn(64, 256, generator=generator)
    hessian, format = inputs.T @ inputs, KQuant(4)
    wanted = gptq.quantize([weight], format, hessian, rounds=0)[0]
    refined = gptq.descent.refit(hessian @ wanted.goal, wanted.codes, [wanted.grid], hessian)[1][0]
    with simulated() as traffic:
        weight, hessian = weight.to("cuda"), hessian.to("cuda")
        found = gptq.quantize([weight], format, hessian, rounds=0)[0]
        better = gptq.descent.refit(hessian @ found.goal, found.codes, [found.grid], hessian)[1][0]
        assert "cpu" not in traffic.to_host
        assert torch.equal(found.codes.cpu(), wanted.codes)
        assert torch.equal(better.scale.cpu(), refined.scale)
        assert torch.equal(better.minimum.cpu(), refined.minimum)


def test_the_simulation_refuses_what_a_gpu_refuses():
    with simulated():
        there, here = torch.ones(2, 2, device="cuda"), torch.ones(2, 2)
        with pytest.raises(RuntimeError, match="same device"):
            there @ here
        with pytest.raises(RuntimeError, match="same device"):
            torch.zeros(2, 2).add_(there)
        with pytest.raises(TypeError, match="numpy"):
            there.numpy()
        assert (there * 2).device.type == "cuda"
        assert rtn.quantize(there, recipes.parse("int8").weights).codes.device.type == "cuda"
