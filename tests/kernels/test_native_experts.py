"""The native mixture of experts against plain torch."""

import ctypes
from typing import NamedTuple

import pytest
import torch
from guarded import guarded
from hypothesis import given, settings
from hypothesis import strategies as st
from kernel_weights import FORMATS, weight

from qcore.base.errors import InputError
from qcore.kernels import arena, library, mixture
from qcore.kernels.mixture import Expert, Gating, Matrix, Mixture, Router
from qcore.kernels.packed import PackedWeight

pytestmark = pytest.mark.skipif(mixture.reason_missing() is not None, reason="needs the native kernels")
GATINGS = {
    "silu": Gating("silu"),
    "gelu": Gating("gelu_tanh"),
    "gpt-oss": Gating(None, 1.702, 1.5, interleaved=True),
}
TOKENS = (1, 2, 4, 5, 30)


class Shape(NamedTuple):
    experts: int
    hidden: int
    inner: int
    chosen: int


SHAPES = {
    "even": Shape(4, 64, 64, 2),
    "odd": Shape(8, 100, 37, 3),
    "few": Shape(3, 33, 20, 1),
    "wide": Shape(16, 64, 44, 8),
}


class Reference(NamedTuple):
    """An expert in plain torch: (weight, bias) of gate, up (None if fused) and down."""

    gate: tuple
    up: tuple | None
    down: tuple

    def __call__(self, x: torch.Tensor, gating: Gating) -> torch.Tensor:
        linear = torch.nn.functional.linear
        both = linear(x, *self.gate)
        if self.up is not None:
            gating, both = Gating(gating.function), torch.cat((both, linear(x, *self.up)), -1)
        return linear(gating.reference(both), *self.down)


def matrix(format: str, rows: int, columns: int, bias: bool) -> tuple[tuple, Matrix]:
    random = weight(FORMATS[format], rows, columns)
    values = torch.randn(rows) if bias else None
    return (random.dequantize(), values), Matrix(PackedWeight.pack(random), values, library.FLOAT)


def expert(format: str, hidden: int, inner: int, fused: bool, bias: bool) -> tuple[Reference, Expert]:
    gate, up = matrix(format, 2 * inner if fused else inner, hidden, bias), None
    if not fused:
        up = matrix(format, inner, hidden, bias)
    down = matrix(format, hidden, inner, bias)
    parts = (gate, up, down)
    return (
        Reference(*(part and part[0] for part in parts)),
        Expert(*(part and part[1] for part in parts)),  # type: ignore[arg-type]
    )


def make(shape: Shape, gating: Gating, *, format="int4-g32", fused=True, bias=False, shared=0, **router):
    """Return a random mixture and the function that computes it in plain torch."""
    torch.manual_seed(0)
    references, experts = zip(
        *(expert(format, shape.hidden, shape.inner, fused, bias) for _ in range(shape.experts)), strict=True
    )
    common, native = expert("int8", shape.hidden, shared, False, bias) if shared else (None, None)
    shared_gate = torch.randn(shape.hidden) / 4 if shared else None
    weights = torch.randn(shape.experts, shape.hidden) * shape.hidden**-0.5
    biases = torch.randn(shape.experts) if bias else None
    route = Router(shape.experts, shape.chosen, weights, biases, **router)

    def compute(x: torch.Tensor) -> torch.Tensor:
        chosen, factors = route.route(x)
        result = torch.zeros_like(x)
        for t, token in enumerate(x):
            for number, factor in zip(chosen[t].tolist(), factors[t], strict=True):
                result[t] += factor * references[number](token, gating)
            if common is not None:
                result[t] += torch.sigmoid(token @ shared_gate) * common(token, gating)
        return result

    return Mixture(route, experts, gating, native, shared_gate), compute


def check(made, compute) -> None:
    for tokens in TOKENS:
        x = torch.randn(tokens, made.hidden)
        expected = compute(x)
        close = dict(rtol=0, atol=2e-5 * float(expected.abs().max()))
        torch.testing.assert_close(made.run(x), expected, **close)
        torch.testing.assert_close(made.run(x, *made.router.route(x)), expected, **close)


@pytest.mark.parametrize("gating", GATINGS)
@pytest.mark.parametrize("shape", SHAPES)
def test_all_shapes(shape, gating):
    check(*make(SHAPES[shape], GATINGS[gating], bias=True))


@pytest.mark.parametrize("format", ["int8", "int8-asym", "nf4-g64", "kmeans4", "int3-g64"])
def test_formats(format):
    check(*make(SHAPES["odd"], GATINGS["silu"], format=format))


@pytest.mark.parametrize("shape", ["even", "odd"])
def test_separate_gate_and_up_and_a_shared_expert_of_another_format(shape):
    check(*make(SHAPES[shape], GATINGS["silu"], fused=False, shared=50, bias=True))


ROUTERS = {
    "softmax, normalized": dict(normalized=True),
    "sigmoid, normalized, scaled": dict(sigmoid=True, normalized=True, scale=2.5),
    "groups by their two best": dict(
        sigmoid=True, groups=4, chosen_groups=3, group_best=2, normalized=True, correction=torch.ones(16)
    ),
    "groups by their best": dict(groups=4, chosen_groups=2),
    "a correction for the selection": dict(sigmoid=True, correction=torch.linspace(-0.5, 0.5, 16)),
    "a correction of softmax": dict(correction=torch.linspace(-0.5, 0.5, 16)),
}


@pytest.mark.parametrize("router", ROUTERS)
def test_routers(router):
    check(*make(SHAPES["wide"], GATINGS["silu"], **ROUTERS[router]))


def test_numbers_that_are_not_finite_stay_so_and_select_existing_experts():
    made, _ = make(SHAPES["wide"], GATINGS["silu"])
    for tokens in TOKENS:
        x = torch.randn(tokens, made.hidden)
        x[0] = torch.nan
        result = made.run(x)
        assert result[0].isnan().all() and result[1:].isfinite().all()


@pytest.mark.parametrize("wrong", [[0, 16], [-1, 3], [2, 2]], ids=["too large", "negative", "twice the same"])
def test_selected_experts_that_cannot_be_are_refused(wrong):
    made, _ = make(Shape(16, 64, 32, 2), GATINGS["silu"])
    with pytest.raises(IndexError, match="mixture of experts"):
        made.run(torch.randn(1, 64), torch.tensor([wrong]), torch.ones(1, 2))


def test_threads_agree():
    made, _ = make(SHAPES["odd"], GATINGS["silu"], shared=50)
    threads = torch.get_num_threads()
    try:
        for tokens in TOKENS:
            x, results = torch.randn(tokens, made.hidden), []
            for count in (1, 2, 3, 9):
                torch.set_num_threads(count)
                results.append(made.run(x))
            assert all(torch.equal(result, results[0]) for result in results[1:])
    finally:
        torch.set_num_threads(threads)


@pytest.mark.parametrize("function", mixture.FUNCTIONS)
def test_functions(function):
    check(*make(SHAPES["odd"], Gating(function)))


@pytest.fixture(scope="module")
def guarded_mixture():
    """A mixture whose panels end where readable memory ends."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(arena, "empty", lambda nbytes: guarded(torch.zeros(nbytes, dtype=torch.uint8)))
        return make(SHAPES["odd"], GATINGS["silu"], shared=50, bias=True)[0]


@settings(max_examples=100, deadline=None)
@given(st.sampled_from(("layer", "router")), st.sampled_from((1, 3, 30)), st.data())
def test_no_numbers_make_it_leave_its_buffers(guarded_mixture, which, tokens, data):
    kept = guarded_mixture.layer
    layer = guarded_mixture.layer = type(kept).from_buffer_copy(kept)
    place = layer if which == "layer" else layer.router
    names = [name for name, kind in place._fields_ if kind is ctypes.c_int64]
    for name in data.draw(st.lists(st.sampled_from(names), min_size=1, max_size=2, unique=True)):
        value = getattr(place, name)
        odd = (-1, 0, 1, 2, 8, 2**31 - 1, 2**40, value - 1, value + 1, 2 * value)
        setattr(place, name, data.draw(st.sampled_from(odd), label=name))
    try:
        result = guarded_mixture.run(guarded(torch.randn(tokens, kept.hidden)))
        assert result.shape == (tokens, kept.hidden)
    except (InputError, MemoryError, IndexError):
        pass
    finally:
        guarded_mixture.layer = kept
