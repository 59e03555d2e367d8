"""The formats of llama.cpp's types, against the gguf package and against counts by hand."""

import gguf
import numpy as np
import pytest
import torch

from qcore import recipes
from qcore.base.errors import InputError
from qcore.formats import kinds
from qcore.formats.affine import Affine
from qcore.formats.codebook import Codebook
from qcore.formats.k_quants import KQuant
from qcore.formats.signed import Signed
from qcore.formats.super_blocks import SUPER_BLOCK
from qcore.formats.tensor import QuantizedTensor, round_minimum, round_scale
from qcore.quantization import methods

TYPES = {
    "gguf-q4_0": gguf.GGMLQuantizationType.Q4_0,
    "gguf-q4_1": gguf.GGMLQuantizationType.Q4_1,
    "gguf-q5_0": gguf.GGMLQuantizationType.Q5_0,
    "gguf-q5_1": gguf.GGMLQuantizationType.Q5_1,
    "gguf-q8_0": gguf.GGMLQuantizationType.Q8_0,
    "gguf-iq4_nl": gguf.GGMLQuantizationType.IQ4_NL,
    "gguf-iq4_xs": gguf.GGMLQuantizationType.IQ4_XS,
    **{f"gguf-q{bits}_k": getattr(gguf.GGMLQuantizationType, f"Q{bits}_K") for bits in (2, 3, 4, 5, 6)},
}
K_QUANTS = [KQuant(bits) for bits in (2, 3, 4, 5, 6)]


def formats():
    return {name: recipes.parse(name).weights for name in TYPES}


@pytest.mark.parametrize("name", TYPES)
def test_a_weight_takes_as_many_bytes_as_in_a_gguf_file(name):
    block, size = gguf.GGML_QUANT_SIZES[TYPES[name]]
    format = recipes.parse(name).weights
    rows, columns = 3, 2 * SUPER_BLOCK
    assert format.nbytes(rows, columns) == rows * columns // block * size
    assert methods.quantize(torch.randn(rows, columns), format, "rtn").nbytes == format.nbytes(rows, columns)


def blocks_of(name, rows=3, columns=512, seed=0):
    """Return random blocks of the type as bytes, with scales that are neither infinite nor NaN, and their
    values as the gguf package reads them."""
    kind = TYPES[name]
    block, size = gguf.GGML_QUANT_SIZES[kind]
    data = np.random.default_rng(seed).integers(0, 256, (rows, columns // block, size), dtype=np.uint8)
    halves = {"gguf-q4_1": (0, 2), "gguf-q5_1": (0, 2), "gguf-q2_k": (80, 82), "gguf-q3_k": (108,)}
    halves |= {"gguf-q4_k": (0, 2), "gguf-q5_k": (0, 2), "gguf-q6_k": (208,)}
    for at in halves.get(name, (0,)):
        scale = np.random.default_rng(at).normal(size=(rows, columns // block, 1)).astype(np.float16)
        data[..., at : at + 2] = scale.view(np.uint8)
    return data, gguf.dequantize(data.reshape(rows, -1), kind)


def nibbles(qs):
    """Return (…, 32) codes of ggml's order for 32 weights: the low nibbles, then the high ones."""
    return np.concatenate((qs & 15, qs >> 4), axis=-1)


def half(data):
    return torch.from_numpy(np.ascontiguousarray(data).view(np.float16).copy())[..., 0]


def read_small(name, data):
    """Return the parts of a block type of 32 weights, by the definition in ggml-common.h."""
    rows = len(data)
    d, rest = data[..., :2], data[..., 2:]
    parts = {"scale": half(d)}
    if name.endswith("_1"):
        parts["minimum"], rest = half(rest[..., :2]), rest[..., 2:]
    if "q5" in name:
        high = np.unpackbits(rest[..., :4], axis=-1, bitorder="little")
        codes = nibbles(rest[..., 4:]) | (high << 4)
    elif "q8" in name:
        codes = (rest.view(np.int8).astype(np.int16) + 128).astype(np.uint8)
    else:
        codes = nibbles(rest)
    return torch.from_numpy(codes.reshape(rows, -1).copy()), parts


@pytest.mark.parametrize("name", [name for name in TYPES if not name.endswith(("_k", "_xs"))])
def test_a_small_block_dequantizes_to_the_same_bits_as_in_the_gguf_package(name):
    data, expected = blocks_of(name)
    format = recipes.parse(name).weights
    codes, parts = read_small(name, data)
    tensor = QuantizedTensor.from_codes(
        format, codes, parts["scale"], None, format.fixed, parts.get("minimum")
    )
    assert np.array_equal(tensor.dequantize().numpy().view(np.int32), expected.view(np.int32))


def k_integers(bits, data):
    """Return codes, a, d, b and m of K-quant blocks (N, S, bytes), read one weight at a time from the layouts
    in ggml-common.h."""
    rows, blocks, _ = data.shape
    size = KQuant(bits).group_size
    per = SUPER_BLOCK // size
    codes = np.zeros((rows, blocks, SUPER_BLOCK), np.uint8)
    scales, minimums = (np.zeros((rows, blocks, per), np.int16) for _ in range(2))
    units = {}

    def six(at, group):  # the 6-bit scales and minimums of Q4_K and Q5_K
        part = data[..., at : at + 12]
        if group < 4:
            return part[..., group] & 63, part[..., group + 4] & 63
        low = part[..., group + 4]
        return ((low & 15) | (part[..., group - 4] >> 6 << 4), (low >> 4) | (part[..., group] >> 6 << 4))

    for group in range(per):
        if bits == 2:
            scales[..., group], minimums[..., group] = data[..., group] & 15, data[..., group] >> 4
        elif bits == 3:
            low = data[..., 96 + group % 8] >> (4 * (group // 8)) & 15
            high = data[..., 104 + group % 4] >> (2 * (group // 4)) & 3
            scales[..., group] = (low | high << 4).astype(np.int16) - 32
        elif bits == 6:
            scales[..., group] = data[..., 192 + group].view(np.int8)
        else:
            scales[..., group], minimums[..., group] = six(4, group)
    for k in range(SUPER_BLOCK):
        n, r = divmod(k, 128)
        if bits == 2:
            codes[..., k] = data[..., 16 + 32 * n + r % 32] >> (2 * (r // 32)) & 3
        elif bits == 3:
            low = data[..., 32 + 32 * n + r % 32] >> (2 * (r // 32)) & 3
            codes[..., k] = low | (data[..., r % 32] >> (4 * n + r // 32) & 1) << 2
        elif bits == 6:
            low = data[..., 64 * n + r % 64] >> (4 * (r // 64)) & 15
            codes[..., k] = low | (data[..., 128 + 32 * n + r % 32] >> (2 * (r // 32)) & 3) << 4
        else:
            start = 16 if bits == 4 else 48
            codes[..., k] = data[..., start + 32 * (k // 64) + k % 32] >> (4 * (k % 64 // 32)) & 15
            if bits == 5:
                codes[..., k] |= (data[..., 16 + k % 32] >> (k // 32) & 1) << 4
    places = {2: (80, 82), 3: (108, None), 4: (0, 2), 5: (0, 2), 6: (208, None)}[bits]
    units["d"] = half(data[..., places[0] : places[0] + 2])
    if places[1] is not None:
        units["m"] = half(data[..., places[1] : places[1] + 2])
    flat = [torch.from_numpy(part.reshape(rows, -1)) for part in (codes, scales, minimums)]
    return *flat, units


@pytest.mark.parametrize("format", K_QUANTS, ids=lambda format: format.label)
def test_a_super_block_dequantizes_to_the_same_bits_as_in_the_gguf_package(format):
    data, expected = blocks_of(format.label)
    codes, scales, minimums, units = k_integers(format.bits, data)
    parts = {"scale": units["d"], "scale_codes": format.pack_scales(scales)}
    if format.affine:
        parts |= {"minimum": units["m"], "min_codes": format.pack_minimums(minimums)}
    packed = QuantizedTensor.from_codes(format, codes).codes
    tensor = QuantizedTensor(format, tuple(codes.shape), packed, **parts)
    assert torch.equal(format.scale_integers(tensor.parts()), scales)
    assert np.array_equal(tensor.dequantize().numpy().view(np.int32), expected.view(np.int32))


@pytest.mark.parametrize("format", K_QUANTS, ids=lambda format: format.label)
def test_scales_that_a_k_quant_can_store_are_stored_exactly(format):
    generator = torch.Generator().manual_seed(0)
    groups = format.groups(1024)
    limit = 1 << format.scale_bits
    for most in (limit, 3):  # whether or not the integers reach the end of their range
        integers = torch.randint(0, most, (5, groups), generator=generator)
        if format.signed and most == limit:
            integers -= format.scale_offset
        unit = (torch.rand(5, 4, generator=generator) * 1e-4).half()
        scale = unit.float().repeat_interleave(format.groups_per_block, dim=1) * integers
        assert torch.equal(round_scale(scale, format), scale)
        if format.affine:
            assert torch.equal(round_minimum(-scale, format), -scale)


@pytest.mark.parametrize("format", K_QUANTS, ids=lambda format: format.label)
def test_the_unit_of_a_super_block_is_at_least_as_good_as_its_largest_scale_over_the_largest_integer(format):
    scale = torch.rand(7, format.groups(512), generator=torch.Generator().manual_seed(0)) + 0.5
    top = (1 << format.scale_bits) - 1 - format.scale_offset
    blocks = scale.unflatten(1, (2, -1))
    unit = (blocks.amax(2, keepdim=True) / top).half().float()
    plain = ((blocks / unit).round() * unit - blocks).square().sum(2)
    found = (round_scale(scale, format) - scale).square().unflatten(1, (2, -1)).sum(2)
    assert (found <= plain).all() and (found < plain).any()


def test_importance_decides_which_scales_of_a_super_block_are_stored_precisely():
    format = KQuant(2)
    scale = torch.rand(1, 16, generator=torch.Generator().manual_seed(1)) + 0.1
    important = torch.ones(1, 16)
    important[0, 3] = 1e6
    plain = format.decode_scale(format.encode_scale(scale)) - scale
    weighted = format.decode_scale(format.encode_scale(scale, important)) - scale
    assert weighted[0, 3].abs() < plain[0, 3].abs()


def test_a_super_block_of_zeros_is_stored_as_zeros():
    for format in K_QUANTS:
        assert not methods.quantize(torch.zeros(2, 256), format, "rtn").dequantize().any()


@pytest.mark.parametrize(
    ("bits", "label"),
    [(2, "gguf-q4_0"), (3, "gguf-q4_0"), (4, "gguf-q5_0"), (5, "gguf-q5_1"), (6, "int8-g32-sym")],
)
def test_rows_without_whole_super_blocks_fall_back_as_in_llama_cpp(bits, label):
    format = KQuant(bits)
    assert format.for_columns(512) == format
    assert format.for_columns(576).label == label
    with pytest.raises(InputError, match=f"super-blocks of 256 inputs.*576 inputs. Choose {label}"):
        format.nbytes(8, 576)


@pytest.mark.parametrize("name", TYPES)
def test_records_and_names_lead_back_to_the_format(name):
    format = recipes.parse(name).weights
    assert kinds.from_dict(format.to_dict()) == format
    assert recipes.parse(format.label).weights == format


@pytest.mark.parametrize("name", TYPES)
def test_a_gguf_type_has_one_group_size_and_one_grid(name):
    with pytest.raises(InputError, match="-g128 does not apply"):
        recipes.parse(f"{name}-g128")
    with pytest.raises(InputError, match="-sym"):
        recipes.parse(f"{name}-sym")


@pytest.mark.parametrize("build", [Affine, Signed], ids=["affine", "signed"])
def test_contradictory_formats_are_refused(build):
    with pytest.raises(ValueError, match="2 to 8"):
        build(9, 32)
    with pytest.raises(ValueError, match="positive multiple of 8"):
        build(4, 12)
    with pytest.raises(ValueError, match="2 to 6"):
        KQuant(7)


def worst_step(tensor):
    """Return the distance (N, G) between neighbouring values of each group's grid, at its widest."""
    scale = tensor.scales().abs()
    return scale if tensor.format.even else scale * tensor.table.sort().values.diff().max()


@pytest.mark.parametrize("name", [*TYPES, "affine4-g64", "affine3-g32", "affine8-g64", "iq4nl-g64"])
def test_rounding_to_nearest_stays_within_half_a_step(name):
    weight = torch.randn(6, 512, generator=torch.Generator().manual_seed(2)) * 0.02
    format = recipes.parse(name).weights
    tensor = methods.quantize(weight, format, "rtn")
    error = (tensor.dequantize() - weight).abs().unflatten(1, (-1, format.group_size))
    # a K-quant rounds its minimums and scales, and the short end of a signed grid lies up to half a step
    # inside
    slack = {"k_quant": 1.5 * format.levels / 15 if format.bits > 3 else 2.5}.get(format.TYPE, 0.51)
    slack = max(slack, 1.01) if format.signed else slack
    assert (error <= slack * worst_step(tensor).unsqueeze(2) + 1e-5).all()


def test_a_negative_scale_puts_the_sixteenth_code_of_q4_0_on_the_side_of_the_largest_weight():
    weight = torch.zeros(2, 32)
    weight[0, 5], weight[1, 5] = 8.0, -8.0
    weight[:, 6] = torch.tensor([-7.0, 7.0])
    tensor = methods.quantize(weight, Signed(4), "rtn")
    assert tensor.scales().flatten().tolist() == [-1.0, 1.0]
    assert torch.equal(tensor.dequantize(), weight)


def test_an_affine_group_away_from_zero_uses_all_of_its_codes():
    weight = torch.linspace(5, 20, 16).repeat(2).reshape(1, 32)
    tensor = methods.quantize(weight, Affine(4, 32), "rtn")
    assert torch.equal(tensor.dequantize(), weight)
    assert set(tensor.unpacked_codes().flatten().tolist()) == set(range(16))
    assert tensor.group_values(0, 0).tolist() == weight[0, :16].tolist()


def test_a_constant_affine_group_has_scale_0_and_is_exact():
    tensor = methods.quantize(torch.full((2, 64), 0.5), Affine(4, 32), "rtn")
    assert not tensor.scales().any()
    assert torch.equal(tensor.dequantize(), torch.full((2, 64), 0.5))


def test_a_ragged_last_group_of_an_affine_format_does_not_reach_to_zero():
    weight = torch.linspace(5, 20, 16).repeat(3)[:40].reshape(1, 40)
    tensor = methods.quantize(weight, Affine(4, 32), "rtn")
    assert tensor.minimums()[0].tolist() == [5.0, 5.0]


def test_chosen_rows_equal_those_of_the_whole():
    rows = torch.tensor([8, 0, 0, 3])
    for format in (*formats().values(), Affine(4, 64), Codebook("iq4nl", 64)):
        tensor = methods.quantize(torch.randn(9, 512), format, "rtn")
        assert torch.equal(tensor.dequantize(rows=rows), tensor.dequantize()[rows])
