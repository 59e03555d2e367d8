"""The layout of compressed-tensors against ten lines of numpy, and the rules that select a module."""

import numpy as np
import pytest
import torch
from interop.weights import drawn, same

from qcore.base.errors import InputError
from qcore.formats.codebook import Codebook
from qcore.formats.signed import Signed
from qcore.formats.uniform import Uniform
from qcore.interop import compressed_tensors as ct

SHAPE = (40, 192)
FORMATS = [
    Uniform(bits, size, symmetric)
    for bits in (2, 3, 4, 8)
    for size in (32, None)
    for symmetric in (True, False)
] + [Signed(4)]


def unpacked_by_definition(parts, bits: int) -> np.ndarray:
    """w[n, k] = scale[n, g] · (q[n, k] − z[n, g]), both stored with 2^(bits−1) added, code i in the bits
    i·bits … of its row, from the lowest; zero points run down the rows."""

    def codes(words, count):
        stream = (words.view(np.uint32)[:, :, None] >> np.arange(32, dtype=np.uint32)) & 1
        code = stream.reshape(words.shape[0], -1)[:, : count * bits].reshape(words.shape[0], count, bits)
        return (code << np.arange(bits, dtype=np.uint32)).sum(2).astype(np.int64) - (1 << (bits - 1))

    rows, columns = parts["weight_shape"].tolist()
    q = codes(parts["weight_packed"].numpy(), columns)
    s = parts["weight_scale"].numpy().astype(np.float64).repeat(columns // parts["weight_scale"].shape[1], 1)
    z = parts.get("weight_zero_point")
    z = (
        0
        if z is None
        else codes(z.numpy().T.copy(), rows).T.repeat(columns // parts["weight_scale"].shape[1], 1)
    )
    return (q - z) * s


def scheme(format: Uniform) -> dict:
    return ct.config({"layer": format})["config_groups"]["group_0"]


@pytest.mark.parametrize("format", FORMATS, ids=lambda format: format.label)
def test_every_weight_survives_both_ways_and_equals_the_definition(format: Uniform):
    weight = drawn(format, SHAPE)
    parts = ct.encode(weight)
    assert same(ct.decode(parts, scheme(format)), weight)
    by_definition = unpacked_by_definition(parts, format.bits)
    np.testing.assert_allclose(by_definition, weight.dequantize().numpy(), rtol=1e-6)
    assert torch.equal(ct.dequantize(parts, scheme(format)), weight.dequantize())


@pytest.mark.parametrize("symmetric", [True, False], ids=["symmetric", "asymmetric"])
def test_int_quantized_weights_are_read(symmetric: bool):
    weight = drawn(Uniform(8, None, symmetric), SHAPE)
    signed = (weight.unpacked_codes().to(torch.int16) - 128).to(torch.int8)
    parts = {"weight": signed, "weight_scale": weight.scale}
    if not symmetric:
        parts["weight_zero_point"] = (weight.zero_points() - 128).to(torch.int8)
    assert same(ct.decode(parts, scheme(weight.format)), weight)


def test_bfloat16_scales_are_kept_exactly():
    format = Uniform(4, 32, symmetric=True)
    parts = ct.encode(drawn(format, SHAPE))
    parts["weight_scale"] = parts["weight_scale"].to(torch.bfloat16)
    assert torch.equal(ct.decode(parts, scheme(format)).scales(), parts["weight_scale"].float())


def test_a_scale_beyond_float16_is_an_error():
    format = Uniform(4, 32, symmetric=True)
    parts = ct.encode(drawn(format, SHAPE))
    parts["weight_scale"] = parts["weight_scale"].float()
    parts["weight_scale"][0, 0] = 1e6
    with pytest.raises(InputError, match="1e\\+06"):
        ct.decode(parts, scheme(format))
    parts["weight_scale"][0, 0] = torch.nan
    with pytest.raises(InputError, match="not finite"):
        ct.decode(parts, scheme(format))


def test_a_pattern_is_a_name_a_class_or_an_expression_and_no_substring():
    """vllm#48508: ignored layers are quantized because a pattern is read as a substring."""
    config = ct.config(
        {"model.layers.0.mlp.up_proj": Uniform(4, 64, False)}, kept=("re:.*down_proj", "lm_head", "layers.0")
    )
    assert ct.scheme(config, "model.layers.0.mlp.up_proj") is config["config_groups"]["group_0"]
    assert ct.scheme(config, "model.layers.0.mlp.down_proj") is None
    assert ct.scheme(config, "lm_head") is None
    assert ct.scheme(config, "model.layers.0.self_attn.q_proj") is not None  # "layers.0" is no whole name
    assert ct.scheme(config, "model.embed_tokens", "Embedding") is None
    with pytest.raises(InputError, match="not a valid regular expression"):
        ct.scheme(config | {"ignore": ["re:("]}, "lm_head")


@pytest.mark.parametrize("place", ["ignore", "targets"])
def test_an_expression_that_never_ends_in_python_does_not_hold_up_loading(place):
    config = ct.config({"model.layers.0.mlp.up_proj": Uniform(4, 64, False)})
    slow = r"re:(\w+\.?)+$"  # exponential in the letters before the hyphen
    if place == "ignore":
        config["ignore"] = [slow]
    else:
        config["config_groups"]["group_0"]["targets"] = [slow]
    found = ct.scheme(config, "model.layers.0.mlp.up_proj_" + "a" * 60 + "-")
    assert (found is None) == (place == "targets")


def test_several_formats_name_their_modules():
    formats = {"a.q": Uniform(4, 64, False), "a.k": Uniform(8, None, True), "b.q": Uniform(4, 64, False)}
    config = ct.config(formats)
    for module, format in formats.items():
        found = ct.scheme(config, module)
        assert (found["weights"]["num_bits"], found["weights"]["group_size"]) == (
            format.bits,
            format.group_size,
        )
    assert ct.scheme(config, "c.q") is None


def test_a_refusal_names_the_property_and_what_fits():
    assert "int4-g64" in ct.reason_against(Codebook("nf4", 64), SHAPE)
    assert "int4-g64" in ct.reason_against(Uniform(4, 128, False), SHAPE)
    assert ct.reason_against(Uniform(4, 64, False), SHAPE) is None


@pytest.mark.parametrize("part", ["weight_packed", "weight_scale", "weight_zero_point", "weight_shape"])
def test_a_misshapen_part_is_an_error(part: str):
    format = Uniform(4, 64, symmetric=False)
    parts = ct.encode(drawn(format, SHAPE))
    short = parts[part][:-1] if part == "weight_shape" else parts[part][:, :-1]
    with pytest.raises(InputError):
        ct.decode(parts | {part: short}, scheme(format))
