"""Native rounding gives the bits of the definition in plain torch, for all weights, formats and memory
layouts."""

import itertools

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from qcore.base.errors import InputError
from qcore.formats.codebook import Codebook
from qcore.formats.uniform import Uniform
from qcore.kernels import library, rounding
from qcore.quantization import methods
from qcore.quantization.methods import rtn

FORMATS = [
    Uniform(bits, size, symmetric, double_quant)
    for bits, size, symmetric, double_quant in itertools.product(
        range(2, 9), (None, 8, 32, 40, 128), (True, False), (False, True)
    )
    if size or not double_quant
] + [
    Codebook(kind, size, dq)
    for kind in ("nf4", "fp4")
    for size, dq in ((None, False), (8, False), (64, False), (64, True))
]


def check(weight: torch.Tensor, format) -> None:
    expected, found = rtn.reference(weight, format), rounding.quantize(weight, format)
    assert found.shape == expected.shape and found.parts().keys() == expected.parts().keys()
    for name, part in expected.parts().items():
        other = found.parts()[name]
        assert other.dtype == part.dtype and other.shape == part.shape, name
        assert torch.equal(other.contiguous().view(torch.uint8), part.contiguous().view(torch.uint8)), (
            name
        )  # bits, so that −0 is not 0


def random(rows: int, columns: int, seed: int, decades: float) -> torch.Tensor:
    """Return a weight whose groups differ in magnitude by `decades` (standard deviation), with some zeros."""
    generator = torch.Generator().manual_seed(seed)
    sizes = (10 ** (decades * torch.randn(rows, columns // 7 + 1, generator=generator))).clamp(1e-30, 5e3)
    weight = torch.randn(rows, columns, generator=generator) * sizes.repeat_interleave(7, 1)[:, :columns]
    weight[torch.rand(rows, columns, generator=generator) < 0.1] = 0
    return weight


@pytest.mark.parametrize("format", FORMATS, ids=lambda format: format.label)
def test_every_format_gives_the_bits_of_the_definition(format):
    for rows, columns in ((1, 1), (3, 33), (5, 200), (2, 263), (9, 256)):
        for dtype in (torch.float32, torch.bfloat16, torch.float16):
            check(random(rows, columns, rows, 0.5).clamp(-6e4, 6e4).to(dtype), format)


@given(
    format=st.sampled_from(FORMATS),
    rows=st.integers(1, 9),
    columns=st.integers(1, 300),
    seed=st.integers(0, 9999),
    decades=st.sampled_from([0.0, 0.5, 4.0, 12.0]),
    dtype=st.sampled_from([torch.float32, torch.bfloat16, torch.float64]),
)
def test_any_weights_give_the_bits_of_the_definition(format, rows, columns, seed, decades, dtype):
    check(random(rows, columns, seed, decades).to(dtype), format)


@pytest.mark.parametrize("format", FORMATS, ids=lambda format: format.label)
def test_ties_zeros_denormals_and_signs(format):
    levels = torch.arange(-40, 41) * 0.5  # halves of a step: ties, for scales that are powers of two
    for values in (
        torch.cat((levels, torch.tensor([float(2 ** (format.bits - 1) - 1)]))),
        torch.tensor([0.0, -0.0, 0.0, -0.0]),
        torch.tensor([-0.0]),
        torch.tensor([1e-45, -1e-45, 3e-42, -0.0]),
        torch.tensor([3e-8, 5.9e-8, -2.9e-8, 1e-9]),  # scales around the smallest that float16 holds
        torch.full((70,), 0.7),
        torch.full((70,), -0.7),
        torch.tensor([-1.0, 1e-30, 1.0]),
    ):
        weight = torch.zeros(3, 128)
        weight[0, : len(values)] = values
        weight[1:] = values.repeat(130)[:128]
        weight[2] = -weight[2]
        check(weight, format)


def test_halfway_between_two_entries_of_a_table_goes_the_same_way():
    for kind in ("nf4", "fp4"):
        table = Codebook(kind, None).fixed.sort().values
        between = (table[1:] + table[:-1]) / 2
        check(
            torch.cat(
                (table, between, between.nextafter(torch.tensor(2.0)), between.nextafter(torch.tensor(-2.0)))
            ).repeat(2, 1),
            Codebook(kind, None),
        )


@pytest.mark.parametrize(
    "format",
    [Uniform(4, 32, False), Uniform(8, None, True), Codebook("nf4", 64)],
    ids=lambda format: format.label,
)
def test_layout_in_memory_does_not_matter(format, monkeypatch):
    monkeypatch.setattr(rounding, "_CHUNK", 200)  # so that copies are made in several pieces
    base = random(64, 96, 1, 0.5)
    for weight in (
        base.T,
        base[::2],
        base[:, 3:80],
        base[:, ::3],
        base[:1].expand(5, 96),
        base[5:6].T,
        base.T.to(torch.bfloat16),
    ):
        check(weight, format)
    assert torch.equal(
        rounding.quantize(base.T, format).codes, rounding.quantize(base.T.contiguous(), format).codes
    )


@pytest.mark.parametrize("format", FORMATS[::3], ids=lambda format: format.label)
@pytest.mark.parametrize(
    ("bad", "words"),
    [(float("nan"), "hold NaN"), (float("inf"), "too large"), (-3e38, "too large"), (4e7, "too large")],
)
def test_weights_that_cannot_be_held_are_refused_by_both(format, bad, words):
    weight = random(3, 80, 0, 0.5)
    weight[1, 77] = bad
    assert rounding.quantize(weight, format) is None
    for run in (rtn.reference, lambda weight, format: methods.quantize(weight, format, "rtn")):
        with pytest.raises(InputError, match=words):
            run(weight, format)


@pytest.mark.parametrize("threads", [1, 3])
def test_threads_do_not_change_a_bit_and_every_row_is_done(threads):
    weight, before = random(257, 128, 3, 0.5), torch.get_num_threads()
    try:
        torch.set_num_threads(threads)
        check(weight, Uniform(4, 64, False))
    finally:
        torch.set_num_threads(before)


def test_the_method_takes_the_native_way_where_it_can_and_the_definition_where_it_cannot(monkeypatch):
    weight, format, calls = random(4, 64, 0, 0.5), Uniform(4, 64, False), []
    original = rounding.quantize
    monkeypatch.setattr(rounding, "quantize", lambda *given: calls.append(given) or original(*given))
    native_way = methods.quantize(weight, format, "rtn")
    assert len(calls) == 1
    monkeypatch.setattr(library, "reason_missing", lambda: "There is no compiler.")
    assert torch.equal(methods.quantize(weight, format, "rtn").codes, native_way.codes) and len(calls) == 1
    with pytest.raises(InputError, match="at least one row"):
        methods.quantize(torch.empty(0, 64), format, "rtn")


def test_a_learned_table_is_not_rounded_to():
    with pytest.raises(InputError, match="method kmeans"):
        methods.quantize(torch.ones(2, 8), Codebook("kmeans4", None), "rtn")
