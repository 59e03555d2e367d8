"""The native kernels against a float64 product, for every format, activation mode and awkward shape."""

import itertools
import threading

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from kernel_weights import ENOUGH, FORMATS, allowed_error, weight, whole

from qcore.formats.tensor import QuantizedTensor
from qcore.formats.uniform import Uniform
from qcore.kernels import dispatch, library
from qcore.kernels.packed import PackedWeight

MODES = ("fp32", "int16", "int8-block", "int8")


def check(
    stored: QuantizedTensor, x: torch.Tensor, activations: str, bias: torch.Tensor | None = None
) -> None:
    y = dispatch.linear(x, PackedWeight.pack(stored), bias, activations)
    expected = x.double() @ stored.dequantize().double().T + (0 if bias is None else bias.double())
    wrong = (
        (y.double() - expected).abs()
        - allowed_error(x.flatten(0, -2), stored, activations).view(expected.shape)
        - 1e-6 * expected.abs()
    )
    assert y.isfinite().all() and wrong.max() <= 1e-30, (
        f"{wrong.max():.3g} beyond the bound at {torch.nonzero(wrong == wrong.max())[0].tolist()}"
    )


@pytest.mark.parametrize("activations", MODES)
@pytest.mark.parametrize("format", FORMATS.values(), ids=FORMATS)
def test_product_is_right_for_every_format_mode_and_number_of_tokens(format, activations):
    stored = weight(format, 40, 192)
    for tokens in (1, 2, 3, 4, 5, 8, 14):
        torch.manual_seed(tokens)
        check(stored, torch.randn(tokens, stored.shape[1]), activations)


@pytest.mark.row("9")
@pytest.mark.parametrize("activations", MODES)
@pytest.mark.parametrize("format", ENOUGH.values(), ids=ENOUGH)
def test_awkward_shapes_are_right(format, activations):
    for rows, columns in itertools.product((1, 7, 9, 25), {whole(format, k) for k in (1, 31, 64, 100, 544)}):
        stored = weight(format, rows, columns, seed=rows)
        for tokens in (1, 6):
            torch.manual_seed(rows)
            check(stored, torch.randn(tokens, columns), activations, torch.randn(rows))


@given(
    st.sampled_from(sorted(FORMATS)),
    st.integers(1, 70),
    st.integers(1, 300),
    st.integers(1, 20),
    st.sampled_from(MODES),
    st.integers(0, 99),
)
def test_product_is_right_for_any_shape(name, rows, columns, tokens, activations, seed):
    generator = torch.Generator().manual_seed(seed)
    stored = weight(FORMATS[name], rows, columns, seed)
    check(stored, torch.randn(tokens, stored.shape[1], generator=generator), activations)


@pytest.mark.parametrize("format", FORMATS.values(), ids=FORMATS)
@pytest.mark.parametrize("shape", [(1, 1), (8, 64), (9, 33), (30, 300), (16, 128)])
def test_unpacking_gives_back_every_stored_bit(format, shape):
    stored = weight(format, *shape)
    again = PackedWeight.pack(stored).unpack()
    assert (
        again.format == stored.format
        and again.shape == stored.shape
        and again.parts().keys() == stored.parts().keys()
    )
    for name, part in stored.parts().items():
        assert torch.equal(part, again.parts()[name]), name


@pytest.mark.parametrize("format", FORMATS.values(), ids=FORMATS)
def test_rows_are_the_dequantized_rows_exactly(format):
    stored = weight(format, 21, 130)
    ids = torch.tensor([20, 0, 7, 8, 7])
    assert torch.equal(dispatch.rows(PackedWeight.pack(stored), ids), stored.dequantize()[ids])


def test_rows_outside_the_weight_are_refused():
    packed = PackedWeight.pack(weight(FORMATS["int8"], 5, 32))
    for bad in (-1, 5):
        with pytest.raises(IndexError, match="outside"):
            dispatch.rows(packed, torch.tensor([bad]))


@pytest.mark.parametrize(
    "name", ["int8", "int5", "int4-g64", "nf4-g64", "kmeans4", "gguf-q5_1", "gguf-q2_k", "gguf-q6_k"]
)
def test_packing_takes_no_more_bytes_than_padding_explains(name):
    stored = weight(FORMATS[name], 1024, 1024)
    assert stored.nbytes <= PackedWeight.pack(stored).nbytes <= stored.nbytes * 1.001 + 64


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_dtypes_come_back_as_they_went_in(dtype):
    stored, x = weight(FORMATS["int4-g32"], 16, 64), torch.randn(3, 64).to(dtype)
    y = dispatch.linear(x, PackedWeight.pack(stored), None, "fp32")
    assert y.dtype == dtype
    assert torch.equal(y, dispatch.linear(x.float(), PackedWeight.pack(stored), None, "fp32").to(dtype))


def test_inputs_that_are_not_contiguous_and_have_many_dimensions_are_right():
    stored = weight(FORMATS["int4-g64"], 24, 96)
    base = torch.randn(96, 5, 2)
    for x in (
        base.permute(2, 1, 0),
        torch.randn(2, 5, 192)[..., ::2],
        torch.randn(1, 1, 96).expand(3, 4, 96),
    ):
        y = dispatch.linear(x, PackedWeight.pack(stored), None, "fp32")
        assert y.shape == (*x.shape[:-1], 24)
        torch.testing.assert_close(y, x @ stored.dequantize().T, rtol=1e-4, atol=1e-4)


def test_no_tokens_give_no_outputs():
    assert dispatch.linear(
        torch.empty(0, 64), PackedWeight.pack(weight(FORMATS["int8"], 8, 64)), None, "fp32"
    ).shape == (0, 8)


@pytest.mark.parametrize("activations", MODES)
@pytest.mark.parametrize("tokens", [1, 7])
@pytest.mark.parametrize("format", ENOUGH.values(), ids=ENOUGH)
def test_zero_scales_and_zero_inputs_give_exact_zeros(format, tokens, activations):
    stored = weight(format, 9, 64)
    columns = stored.shape[1]
    if stored.scale is not None:
        for part in (stored.scale, stored.minimum):
            if part is not None:
                part.zero_()
        assert not dispatch.linear(
            torch.randn(tokens, columns), PackedWeight.pack(stored), None, activations
        ).any()
    assert not dispatch.linear(
        torch.zeros(tokens, columns), PackedWeight.pack(weight(format, 9, 64)), None, activations
    ).any()


@pytest.mark.parametrize("activations", MODES)
def test_denormal_scales_and_denormal_inputs_stay_finite_and_small(activations):
    stored = weight(FORMATS["int4-g32"], 9, 64)
    stored.scale.fill_(6e-8)
    check(stored, torch.randn(3, 64), activations)
    tiny = torch.full((3, 64), 1e-40)
    y = dispatch.linear(tiny, PackedWeight.pack(weight(FORMATS["int4-g32"], 9, 64)), None, activations)
    assert y.isfinite().all() and y.abs().max() < 1e-36


@pytest.mark.parametrize("activations", MODES)
@pytest.mark.parametrize("tokens", [1, 6])
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
@pytest.mark.parametrize("name", ["int4-g32", "gguf-q4_1", "gguf-q4_k", "gguf-q6_k"])
def test_a_bad_input_spoils_its_own_token_and_no_other(name, bad, tokens, activations):
    packed, x = PackedWeight.pack(weight(FORMATS[name], 9, 256)), torch.randn(tokens, 256)
    x[-1, 40] = bad
    y = dispatch.linear(x, packed, None, activations)
    assert not y[-1].isfinite().any() and y[:-1].isfinite().all()


@pytest.mark.parametrize("format", ENOUGH.values(), ids=ENOUGH)
@pytest.mark.parametrize("activations", MODES)
def test_many_tokens_agree_with_one_at_a_time(format, activations):
    stored = weight(format, 48, 1100)
    packed, x = PackedWeight.pack(stored), torch.randn(300, stored.shape[1])
    many = dispatch.linear(x, packed, None, activations)
    one = torch.cat([dispatch.linear(row[None], packed, None, activations) for row in x])
    torch.testing.assert_close(many, one, rtol=0, atol=2e-5 * one.abs().max().item())


def test_calls_from_two_threads_at_once_do_not_disturb_each_other():
    cases = [
        (PackedWeight.pack(weight(FORMATS[name], 64, 256)), torch.randn(tokens, 256))
        for name, tokens in (("int4-g32", 1), ("int8", 9))
    ]
    alone = [dispatch.linear(x, packed, None, "fp32") for packed, x in cases]
    wrong = []

    def work(i: int) -> None:
        packed, x = cases[i]
        for _ in range(200):
            if not torch.equal(dispatch.linear(x, packed, None, "fp32"), alone[i]):
                wrong.append(i)

    threads = [threading.Thread(target=work, args=(i % 2,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


@pytest.mark.parametrize("threads", [1, 2, 3, 7])
def test_number_of_threads_does_not_change_a_bit(threads):
    packed = PackedWeight.pack(weight(FORMATS["int4-g32"], 100, 256))
    before = torch.get_num_threads()
    try:
        for x in (torch.randn(1, 256), torch.randn(70, 256)):
            torch.set_num_threads(2)
            expected = dispatch.linear(x, packed, None, "fp32")
            torch.set_num_threads(threads)
            assert torch.equal(dispatch.linear(x, packed, None, "fp32"), expected)
    finally:
        torch.set_num_threads(before)


def test_symmetric_eight_bit_extremes_do_not_saturate():
    format = Uniform(8, None, False)
    for code, zero in ((255, 0), (0, 255)):
        codes = torch.full((8, 128), code, dtype=torch.uint8)
        stored = QuantizedTensor.from_codes(
            format, codes, torch.ones(8, 1), torch.full((8, 1), zero, dtype=torch.uint8)
        )
        for tokens in (1, 6):
            y = dispatch.linear(torch.ones(tokens, 128), PackedWeight.pack(stored), None, "fp32")
            torch.testing.assert_close(y, torch.full_like(y, 128.0 * (code - zero)), rtol=1e-6, atol=0)


def test_minimums_count_where_scales_are_zero():
    stored = weight(FORMATS["gguf-q4_1"], 9, 64)
    stored.scale.zero_()
    for activations in MODES:
        check(stored, torch.randn(3, 64), activations)
        check(stored, torch.randn(6, 64), activations)


def test_library_is_the_native_one_here():
    assert library.reason_missing() is None
