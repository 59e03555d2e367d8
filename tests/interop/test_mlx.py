"""MLX's layout against its definition, and against MLX itself where it is installed."""

import subprocess

import numpy as np
import pytest
import runtimes
import torch
from interop.weights import drawn, same

from qcore.base.errors import InputError
from qcore.formats.affine import Affine
from qcore.formats.codebook import Codebook
from qcore.formats.signed import Signed
from qcore.formats.uniform import Uniform
from qcore.interop import mlx

SHAPE = (24, 256)


def settings(format, columns=SHAPE[1]) -> dict:
    return mlx.config({"layer": (format.bits, mlx.group_size(format, columns))})


def unpacked_by_definition(parts, bits: int) -> np.ndarray:
    """w = scale · code + bias, code i in the bits i·bits … of its row, from the lowest."""
    words = parts["weight"].view(torch.int32).numpy().view(np.uint32)
    stream = ((words[:, :, None] >> np.arange(32, dtype=np.uint32)) & 1).reshape(words.shape[0], -1, bits)
    codes = (stream << np.arange(bits, dtype=np.uint32)).sum(2).astype(np.float64)
    group = codes.shape[1] // parts["scales"].shape[1]
    scales, biases = (parts[name].double().numpy().repeat(group, 1) for name in ("scales", "biases"))
    return codes * scales + biases


@pytest.mark.parametrize("bits", [2, 3, 4, 5, 6, 8])
@pytest.mark.parametrize("kind", ["symmetric", "asymmetric", "per channel", "affine"])
def test_every_weight_survives_both_ways_and_equals_the_definition(bits: int, kind: str):
    size = None if kind == "per channel" else 64
    format = Affine(bits, 64) if kind == "affine" else Uniform(bits, size, kind == "symmetric")
    weight = drawn(format, SHAPE)
    parts = mlx.encode(weight)
    np.testing.assert_allclose(
        unpacked_by_definition(parts, bits), weight.dequantize().numpy(), rtol=1e-6, atol=1e-7
    )
    back = mlx.decode(parts, settings(format))
    assert torch.equal(back.codes, weight.codes)
    assert torch.equal(back.dequantize(), weight.dequantize())
    assert kind == "per channel" or same(back, weight)
    blank = {name: part.dtype for name, part in mlx.encode(on_meta(weight)).items()}
    assert blank == {name: part.dtype for name, part in parts.items()}  # known before any work


def on_meta(weight):
    """The same weight without data."""
    from dataclasses import replace

    return replace(weight, **{name: part.to("meta") for name, part in weight.parts().items()})


def test_float16_holds_a_bias_only_if_the_zero_point_is_a_power_of_two():
    assert mlx.encode(drawn(Uniform(4, 64, True), SHAPE))["biases"].dtype == torch.float16
    assert mlx.encode(drawn(Signed(4), SHAPE))["biases"].dtype == torch.float16
    assert mlx.encode(drawn(Affine(4, 64), SHAPE))["biases"].dtype == torch.float16
    weight = drawn(Uniform(4, 64, False), SHAPE)
    bias = -weight.scales() * weight.zero_points()
    assert not torch.equal(bias.half().float(), bias)
    assert torch.equal(mlx.encode(weight)["biases"], bias)


DEQUANTIZE = """
import sys
import mlx.core as core
import numpy as np
parts = {name: core.array(part) for name, part in np.load("parts.npz").items()}
words, scales, biases = (parts[name] for name in ("words", "scales", "biases"))
weight = core.dequantize(words, scales, biases, group_size=64, bits=int(sys.argv[1]))
np.save("weight.npy", np.array(weight))
"""


@pytest.mark.interop
@pytest.mark.parametrize("bits", [2, 3, 4, 5, 6, 8])
def test_mlx_dequantizes_the_same_numbers(bits: int, tmp_path):
    python = runtimes.interpreter("mlx-lm")
    weight = drawn(Uniform(bits, 64, False), SHAPE)
    parts = mlx.encode(weight)
    words, scales, biases = (parts[name] for name in mlx.SUFFIXES)
    words = words.view(torch.int32).numpy().view(np.uint32)
    np.savez(tmp_path / "parts.npz", words=words, scales=scales, biases=biases)
    subprocess.run([python, "-c", DEQUANTIZE, str(bits)], cwd=tmp_path, check=True)
    theirs = np.load(tmp_path / "weight.npy")
    np.testing.assert_allclose(theirs, weight.dequantize().numpy(), rtol=1e-6, atol=1e-7)


def test_a_refusal_names_the_property_and_what_fits():
    assert "affine4-g64" in mlx.reason_against(Codebook("nf4", 64), SHAPE)
    assert "int4-g128" in mlx.reason_against(Uniform(4, 256, False), SHAPE)
    assert "no multiple" in mlx.reason_against(Uniform(4, 64, False), (24, 96))
    assert mlx.reason_against(Uniform(8, None, True), (24, 96)) is None  # its scale is repeated for each 32


def test_other_modes_and_widths_are_refused():
    format = Uniform(4, 64, False)
    parts = mlx.encode(drawn(format, SHAPE))
    for wrong in ({"mode": "mxfp4"}, {"bits": 7}, {"group_size": 0}, {"bits": 8}):
        with pytest.raises(InputError):
            mlx.decode(parts, settings(format) | wrong)
    with pytest.raises(InputError, match="biases"):
        mlx.decode({"weight": parts["weight"], "scales": parts["scales"]}, settings(format))
