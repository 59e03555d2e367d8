"""nf4 and fp4 choose the same codes as bitsandbytes, ties and zeros included."""

import bitsandbytes.functional as functional
import pytest
import torch

from qcore.formats.codebook import FP4, NF4, Codebook
from qcore.quantization import methods

BLOCK = 64
THEIRS = {"nf4": NF4, "fp4": FP4}


def their_codes(weight: torch.Tensor, kind: str) -> torch.Tensor:
    """Return bitsandbytes' codes, unpacked: the first of two codes is in the high half of a byte."""
    packed, _ = functional.quantize_4bit(weight, blocksize=BLOCK, quant_type=kind)
    packed = packed.flatten()
    return torch.stack((packed >> 4, packed & 15), dim=1).flatten().view(weight.shape)


def our_codes(weight: torch.Tensor, kind: str) -> torch.Tensor:
    return methods.quantize(weight, Codebook(kind, BLOCK), "rtn").unpacked_codes()


@pytest.mark.parametrize("kind", THEIRS)
def test_the_tables_are_the_same(kind):
    assert torch.equal(torch.tensor(THEIRS[kind]), functional.get_4bit_type(kind, device="cpu"))


@pytest.mark.parametrize("kind", THEIRS)
@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("shape", [(1, 64), (7, 128), (96, 576), (256, 1024)], ids=str)
def test_codes_of_random_matrices(kind, seed, shape):
    generator = torch.Generator().manual_seed(seed)
    weight = 10 ** (seed - 3.0) * torch.randn(shape, generator=generator)
    assert torch.equal(our_codes(weight, kind), their_codes(weight, kind))


@pytest.mark.parametrize("kind", THEIRS)
@pytest.mark.parametrize("distribution", ["uniform", "heavy tails", "few values", "bfloat16"])
def test_codes_of_other_distributions(kind, distribution):
    generator = torch.Generator().manual_seed(7)
    weight = {
        "uniform": torch.rand(128, 256, generator=generator) - 0.5,
        "heavy tails": torch.randn(128, 256, generator=generator) ** 5,
        "few values": torch.randint(-4, 5, (128, 256), generator=generator) / 4,
        "bfloat16": torch.randn(128, 256, generator=generator).bfloat16(),
    }[distribution]
    assert torch.equal(our_codes(weight, kind), their_codes(weight, kind))


@pytest.mark.parametrize("kind", THEIRS)
def test_ties(kind):
    """Weights exactly halfway between two table values, and one float to either side, under many block
    maxima."""
    table = torch.tensor(THEIRS[kind]).sort().values
    middle = (table[1:] + table[:-1]) / 2
    maximum = 10 ** torch.empty(2000, 1).uniform_(-6, 4, generator=torch.Generator().manual_seed(3))
    weight = torch.zeros(2000, BLOCK)
    weight[:, :1] = maximum
    for i, values in enumerate(
        (middle, middle.nextafter(torch.tensor(2.0)), middle.nextafter(torch.tensor(-2.0)))
    ):
        weight[:, 1 + 15 * i : 16 + 15 * i] = values * maximum
    assert torch.equal(our_codes(weight, kind), their_codes(weight, kind))


@pytest.mark.parametrize("kind", THEIRS)
def test_zeros_and_vanishing_values(kind):
    weight = torch.zeros(5, BLOCK)
    weight[1, 3] = -0.0
    weight[2, :4] = torch.tensor([1.0, 1e-30, -1e-30, -0.0])
    weight[3], weight[4] = 1e-30, -1e-30
    assert torch.equal(our_codes(weight, kind), their_codes(weight, kind))


@pytest.mark.parametrize("kind", THEIRS)
def test_dequantized_weights_differ_only_by_the_rounding_of_the_scales(kind):
    """bitsandbytes stores the block maxima in float32, qcore in float16: they differ by at most 2^-11,
    relative."""
    weight = torch.randn(64, 256, generator=torch.Generator().manual_seed(11))
    packed, state = functional.quantize_4bit(weight, blocksize=BLOCK, quant_type=kind)
    theirs = functional.dequantize_4bit(packed, state)
    ours = methods.quantize(weight, Codebook(kind, BLOCK), "rtn").dequantize()
    assert ((ours - theirs).abs() <= theirs.abs() * 2**-11 + 1e-7).all()
