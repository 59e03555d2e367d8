"""GPTQ's layout against ten lines of numpy, in both of its conventions for zero points."""

import numpy as np
import pytest
import torch
from interop.weights import drawn, same

from qcore.base.errors import InputError
from qcore.formats.codebook import Codebook
from qcore.formats.signed import Signed
from qcore.formats.uniform import Uniform
from qcore.interop import gptq

SHAPE = (64, 128)
FORMATS = [
    Uniform(bits, size, symmetric)
    for bits in (2, 3, 4, 8)
    for size in (32, None)
    for symmetric in (True, False)
] + [Signed(4)]


def unpacked_by_definition(parts, bits: int, stored_minus: int) -> np.ndarray:
    """AutoGPTQ's definition: w[k, n] = scales[g, n] · (q[k, n] − (z[g, n] + `stored_minus`)), code i of a
    column in the bits i·b … of its words, lowest first."""

    def codes(words):  # int32 (W, n): each column is a stream of bits
        words = words.view(np.uint32)
        bit = (words[:, None, :] >> np.arange(32, dtype=np.uint32)[None, :, None]) & 1
        stream = bit.reshape(-1, bits, words.shape[1])
        return (stream << np.arange(bits, dtype=np.uint32)[None, :, None]).sum(axis=1).astype(np.int64)

    q, z = codes(parts["qweight"].numpy()), codes(parts["qzeros"].numpy().T.copy()).T + stored_minus
    g = parts["g_idx"].numpy()
    return ((q - z[g]) * parts["scales"].numpy().astype(np.float64)[g]).T


@pytest.mark.parametrize("format", FORMATS, ids=lambda format: format.label)
def test_every_weight_survives_both_ways_and_equals_the_definition(format: Uniform):
    weight = drawn(format, SHAPE)
    parts = gptq.encode(weight)
    assert same(gptq.decode(parts, gptq.config(format)), weight)
    by_definition = unpacked_by_definition(parts, format.bits, 0)
    np.testing.assert_allclose(by_definition, weight.dequantize().numpy(), rtol=1e-6)
    assert torch.equal(gptq.dequantize(parts, gptq.config(format)), weight.dequantize())


def test_exactly_one_convention_matches_and_the_config_names_it():
    """vllm#38966, #26343: zero points of one convention under the other's name, every weight off by one
    scale."""
    format = Uniform(4, 64, symmetric=False)
    weight = drawn(format, SHAPE, lowest_zero=1)
    wanted = weight.dequantize().numpy()
    for version, minus in ((gptq.V1, 1), (gptq.V2, 0)):
        parts = gptq.encode(weight, version)
        assert gptq.config(format, version=version)["checkpoint_format"] == version
        np.testing.assert_allclose(unpacked_by_definition(parts, 4, minus), wanted, rtol=1e-6)
        off = np.abs(unpacked_by_definition(parts, 4, 1 - minus) - wanted)
        np.testing.assert_allclose(off, np.repeat(weight.scales().numpy(), 64, axis=1), rtol=1e-5)
        assert same(gptq.decode(parts, gptq.config(format, version=version)), weight)


def test_a_zero_point_of_0_is_refused_in_version_1_and_held_by_version_2():
    """GPTQModel#2350: 0 − 1 wraps to 15, and the perplexity is NaN."""
    format = Uniform(4, 64, symmetric=False)
    weight = drawn(format, SHAPE)  # its first zero point is 0, that of a group without negative weights
    with pytest.raises(InputError, match="version 1 cannot store.*version 2"):
        gptq.encode(weight, gptq.V1)
    assert same(gptq.decode(gptq.encode(weight), gptq.config(format)), weight)


def test_a_wrapped_zero_point_is_named():
    format = Uniform(4, 64, symmetric=False)
    parts = gptq.encode(drawn(format, SHAPE, lowest_zero=1), gptq.V1)
    parts["qzeros"] = torch.full_like(parts["qzeros"], -1)  # fifteens
    with pytest.raises(InputError, match="zero point 16.*another convention"):
        gptq.decode(parts, gptq.config(format, version=gptq.V1))


def test_activation_order_is_dequantized_only():
    format = Uniform(4, 32, symmetric=False)
    weight = drawn(format, SHAPE)
    parts = gptq.encode(weight)
    order = torch.randperm(SHAPE[1], generator=torch.Generator().manual_seed(1))
    parts["g_idx"] = parts["g_idx"][order]
    with pytest.raises(InputError, match="out of order"):
        gptq.decode(parts, gptq.config(format))
    by_definition = unpacked_by_definition(parts, 4, 0)
    dequantized = gptq.dequantize(parts, gptq.config(format)).numpy()
    np.testing.assert_allclose(by_definition, dequantized, rtol=1e-6)


@pytest.mark.parametrize(
    ("format", "shape", "words"),
    [
        (Codebook("nf4", 64), SHAPE, "nf4-g64 is not such a format.*int4-g64"),
        (Uniform(4, 40, False), (64, 160), "groups of .*not 40.*int4-g32"),
        (Uniform(6, 64, False), SHAPE, "not 6.*int8-g64"),
        (Uniform(4, 64, False), (60, 128), "60 outputs"),
        (Uniform(4, 64, False), (64, 96), "no multiple of 64.*int4-g32"),
    ],
)
def test_a_refusal_names_the_property_and_what_fits(format, shape, words):
    reason = gptq.reason_against(format, shape)
    assert reason is not None
    pytest.raises(InputError, _raise, reason).match(words)


def _raise(reason: str):
    raise InputError(reason)


@pytest.mark.parametrize("part", ["qweight", "qzeros", "scales"])
def test_a_part_that_is_missing_or_misshapen_is_an_error(part: str):
    format = Uniform(4, 64, symmetric=False)
    parts = gptq.encode(drawn(format, SHAPE))
    whole = parts.pop(part)
    with pytest.raises(InputError, match=part):
        gptq.decode(parts, gptq.config(format))
    with pytest.raises(InputError):
        gptq.decode(parts | {part: whole[:, :-1]}, gptq.config(format))
