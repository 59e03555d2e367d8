import subprocess
import sys

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from qcore.formats.codebook import Codebook
from qcore.formats.tensor import spread
from qcore.formats.uniform import Uniform
from qcore.quantization import methods

FORMATS = [
    Uniform(bits, size, symmetric)
    for bits in (2, 3, 4, 5, 8)
    for size in (None, 32, 64)
    for symmetric in (True, False)
] + [Codebook(kind, size) for kind in ("nf4", "fp4") for size in (None, 32, 64)]


@given(
    format=st.sampled_from(FORMATS),
    rows=st.integers(1, 5),
    columns=st.integers(1, 150),
    magnitude=st.floats(1e-3, 1e3),
    seed=st.integers(0, 9999),
)
def test_no_weight_moves_further_than_half_a_step(format, rows, columns, magnitude, seed):
    weight = magnitude * torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed))
    tensor = methods.quantize(weight, format, "rtn")
    scale = spread(tensor.scales(), columns, format.group_size)
    widest_step = 1 if isinstance(format, Uniform) else format.fixed.sort().values.diff().max()
    half_step = widest_step / 2 * scale
    # Rounding the scale to float16 (2^-11 relative) may clip the largest weight by that much of the range;
    # the asymmetric grid is shifted by up to half a step when its zero point is rounded, which clips one end
    # by as much.
    slack = weight.abs().max() * 2**-10 + (0.5 * scale if getattr(format, "symmetric", True) is False else 0)
    assert ((tensor.dequantize() - weight).abs() <= half_step + slack).all()


@pytest.mark.row("9")
@pytest.mark.parametrize("format", FORMATS, ids=lambda format: format.label)
@pytest.mark.parametrize("value", [0.0, 1e-20, 1e-40, 6e-8], ids=str)
def test_vanishing_groups_stay_finite_and_zero_stays_zero(format, value):
    weight = torch.full((2, 64), value)
    weight[1] = 0
    restored = methods.quantize(weight, format, "rtn").dequantize()
    assert restored.isfinite().all() and restored.abs().max() <= 2 * max(value, 6e-8)
    assert (restored[1] == 0).all()


@pytest.mark.parametrize("bits", [2, 3, 4, 8], ids=str)
def test_weights_on_the_grid_are_kept_exactly(bits):
    codes = torch.randint(0, 1 << bits, (6, 64))
    codes[:, 0], codes[:, 1] = 0, (1 << bits) - 1  # every row spans the grid
    zero = (1 << bits) // 2
    weight = (codes - zero) * 0.25
    assert torch.equal(methods.quantize(weight, Uniform(bits, 64, False), "rtn").dequantize(), weight)


def test_a_symmetric_grid_mirrors_its_input():
    weight = torch.randn(4, 64)
    format = Uniform(4, 32, True)
    assert torch.equal(
        methods.quantize(-weight, format, "rtn").dequantize(),
        -methods.quantize(weight, format, "rtn").dequantize(),
    )


def test_half_precision_and_transposed_inputs_give_the_same_codes():
    weight = torch.randn(64, 24).to(torch.bfloat16)
    format = Uniform(4, 32, False)
    expected = methods.quantize(weight.float().T.contiguous(), format, "rtn")
    assert torch.equal(methods.quantize(weight.T, format, "rtn").codes, expected.codes)


MEASURE = """
import torch
from qcore.quantization import methods
from qcore.formats.codebook import Codebook
from qcore.formats.uniform import Uniform
from qcore.measurement.memory import PeakMemory

weight = torch.randn(8192, 4096)
for dtype in (torch.float32, torch.bfloat16):
    weight = weight.to(dtype)
    for format in (
        Uniform(4, 64, False), Uniform(4, 64, False, True), Uniform(8, None, True), Uniform(3, 32, True),
        Codebook("nf4", 64),
    ):
        methods.quantize(weight[:64], format, "rtn")
        with PeakMemory() as memory:
            stored = methods.quantize(weight, format, "rtn")
        print(memory.peak_bytes - memory.start_bytes - stored.nbytes)
"""


@pytest.mark.slow
def test_quantizing_takes_no_memory_but_the_result_and_its_scales():
    """A matrix of 128 MiB, of which the scales in single precision are 2 MiB and a few copies of them are
    made."""
    done = subprocess.run([sys.executable, "-c", MEASURE], capture_output=True, text=True, check=True)
    extra = [int(line) / 2**20 for line in done.stdout.split()]
    assert len(extra) == 10 and max(extra) < 24, extra
