"""AWQ's layout against ten lines of numpy."""

import numpy as np
import pytest
import torch
from interop.weights import drawn, same

from qcore.base.errors import InputError
from qcore.formats.signed import Signed
from qcore.formats.uniform import Uniform
from qcore.interop import awq

SHAPE = (40, 128)


def unpacked_by_definition(parts) -> np.ndarray:
    """AutoAWQ's definition of "gemm": w[k, n] = scales[g, n] · (q[k, n] − z[g, n]); nibble i of a word is its
    output (0 2 4 6 1 3 5 7)[i]."""

    def codes(words):
        made = np.empty((words.shape[0], words.shape[1], 8), dtype=np.int64)
        for nibble, output in enumerate((0, 2, 4, 6, 1, 3, 5, 7)):
            made[:, :, output] = (words.view(np.uint32) >> np.uint32(4 * nibble)) & 15
        return made.reshape(words.shape[0], -1)

    q, z, s = codes(parts["qweight"].numpy()), codes(parts["qzeros"].numpy()), parts["scales"].numpy()
    group = q.shape[0] // z.shape[0]
    return ((q - z.repeat(group, 0)) * s.astype(np.float64).repeat(group, 0)).T


@pytest.mark.parametrize("size", [32, 64, None], ids=str)
@pytest.mark.parametrize("symmetric", [True, False], ids=["symmetric", "asymmetric"])
def test_every_weight_survives_both_ways_and_equals_the_definition(size, symmetric):
    check(Uniform(4, size, symmetric))


def test_signed_scales_are_kept():
    check(Signed(4))


def check(format):
    weight = drawn(format, SHAPE)
    parts = awq.encode(weight)
    assert same(awq.decode(parts, awq.config(format)), weight)
    np.testing.assert_allclose(unpacked_by_definition(parts), weight.dequantize().numpy(), rtol=1e-6)
    assert torch.equal(awq.dequantize(parts, awq.config(format)), weight.dequantize())


def test_other_versions_and_widths_are_refused():
    format = Uniform(4, 64, symmetric=False)
    parts = awq.encode(drawn(format, SHAPE))
    with pytest.raises(InputError, match="gemv"):
        awq.decode(parts, awq.config(format) | {"version": "GEMV"})
    with pytest.raises(InputError, match="3 bits"):
        awq.decode(parts, awq.config(format) | {"bits": 3})
    assert "int4-g64" in awq.reason_against(Uniform(3, 64, False), SHAPE)
    assert "44" in awq.reason_against(Uniform(4, 64, False), (44, 128))


@pytest.mark.parametrize("part", ["qweight", "scales", "qzeros"])
def test_a_misshapen_part_is_an_error(part: str):
    format = Uniform(4, 64, symmetric=False)
    parts = awq.encode(drawn(format, SHAPE))
    with pytest.raises(InputError, match="damaged"):
        awq.decode(parts | {part: parts[part][:, :-1]}, awq.config(format))
