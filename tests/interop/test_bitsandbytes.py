"""bitsandbytes' layout, against the library itself."""

import json

import numpy as np
import pytest
import torch
from bitsandbytes import functional
from interop.weights import drawn, same

from qcore.base.errors import InputError
from qcore.formats.codebook import Codebook
from qcore.formats.uniform import Uniform
from qcore.interop import bitsandbytes as bnb_file

SHAPE = (24, 128)


@pytest.mark.parametrize("kind", ["nf4", "fp4"])
@pytest.mark.parametrize("double_quant", [False, True], ids=["", "dq"])
def test_four_bit_weights_equal_what_bitsandbytes_dequantizes(kind: str, double_quant: bool):
    weight = drawn(Codebook(kind, 64, double_quant), SHAPE)
    parts = bnb_file.encode(weight, torch.float32)
    state = functional.QuantState.from_dict(
        {name.removeprefix("weight."): part for name, part in parts.items() if name != "weight"},
        torch.device("cpu"),
    )
    theirs = functional.dequantize_4bit(parts["weight"], state)
    torch.testing.assert_close(theirs, weight.dequantize(), rtol=1e-6, atol=0)
    back = bnb_file.decode(parts)
    assert torch.equal(back.dequantize(), weight.dequantize())
    assert torch.equal(back.codes, weight.codes)
    assert double_quant or same(back, weight)


@pytest.mark.parametrize("kind", ["nf4", "fp4"])
@pytest.mark.parametrize("nested", [False, True], ids=["", "nested"])
def test_what_bitsandbytes_wrote_is_read(kind: str, nested: bool):
    original = torch.randn(SHAPE, generator=torch.Generator().manual_seed(0))
    packed, state = functional.quantize_4bit(
        original, blocksize=64, quant_type=kind, compress_statistics=nested
    )
    parts = {"weight": packed} | {f"weight.{name}": part for name, part in state.as_dict(packed=True).items()}
    theirs = functional.dequantize_4bit(packed, state)
    torch.testing.assert_close(bnb_file.dequantize(parts), theirs, rtol=1e-5, atol=1e-6)
    ours = bnb_file.decode(parts)
    torch.testing.assert_close(ours.dequantize(), theirs, rtol=2**-10, atol=1e-6)  # float16 scales
    again = bnb_file.encode(ours)
    assert torch.equal(again["weight"], packed)  # no code changed


def test_int8_rows_are_exact_by_the_definition_of_llm_int8():
    weight = drawn(Uniform(8, None, True), SHAPE)
    parts = bnb_file.encode(weight)
    by_definition = parts["weight"].numpy().astype(np.float64) * parts["SCB"].numpy()[:, None] / 127
    np.testing.assert_allclose(by_definition, weight.dequantize().numpy(), rtol=1e-6)
    assert same(bnb_file.decode(parts), weight)


def test_int8_codes_of_minus_128_are_kept():
    weight = drawn(Uniform(8, None, True), SHAPE)
    parts = bnb_file.encode(weight)
    parts["weight"][0, 0] = -128
    back = bnb_file.decode(parts)
    assert not back.format.symmetric and int(back.unpacked_codes()[0, 0]) == 0
    torch.testing.assert_close(back.dequantize(), bnb_file.dequantize(parts))


def test_blocks_that_run_across_rows_are_dequantized_only():
    """Against the original, because bitsandbytes 0.50 on a CPU takes such blocks for blocks of a row."""
    original = torch.randn(24, 96, generator=torch.Generator().manual_seed(0))
    packed, state = functional.quantize_4bit(original, blocksize=64, quant_type="nf4")
    parts = {"weight": packed} | {f"weight.{name}": part for name, part in state.as_dict(packed=True).items()}
    with pytest.raises(InputError, match="across rows"):
        bnb_file.decode(parts)
    widest = 0.5 * (1 - 0.6961928) * original.view(-1, 64).abs().amax(1)  # half of nf4's widest step
    assert ((bnb_file.dequantize(parts) - original).abs().view(-1, 64) <= widest.unsqueeze(1) * 1.001).all()


def test_a_refusal_names_the_property_and_what_fits():
    assert "nf4-g64" in bnb_file.reason_against(Uniform(4, 64, False), SHAPE)
    assert "int8" in bnb_file.reason_against(Uniform(8, 64, True), SHAPE)
    assert "nf4-g32" in bnb_file.reason_against(Codebook("nf4", 64), (24, 96))
    assert bnb_file.reason_against(Codebook("fp4", 64), SHAPE) is None


@pytest.mark.parametrize(
    "state",
    [
        b"[]",
        b"{",
        json.dumps({"blocksize": 63, "shape": [24, 128]}).encode(),
        b'{"blocksize": 64, "shape": [24]}',
    ],
)
def test_an_untrusted_state_is_checked(state: bytes):
    parts = bnb_file.encode(drawn(Codebook("nf4", 64), SHAPE))
    parts["weight.quant_state.bitsandbytes__nf4"] = torch.tensor(list(state), dtype=torch.uint8)
    with pytest.raises(InputError, match="quant_state"):
        bnb_file.decode(parts)


@pytest.mark.parametrize("part", ["weight", "weight.absmax"])
def test_a_misshapen_part_is_an_error(part: str):
    parts = bnb_file.encode(drawn(Codebook("nf4", 64), SHAPE))
    with pytest.raises(InputError, match="damaged"):
        bnb_file.decode(parts | {part: parts[part][:-1]})
