"""Wrong shapes, types, strides and devices in calls of public functions of `qcore.kernels`.

Every tensor ends where readable memory ends. A call may be refused by any exception, and may compute what its
arguments mean, but a read or write beyond a tensor ends the process.
"""

from contextlib import suppress
from dataclasses import replace

import pytest
import torch
from guarded import guarded
from hypothesis import given, settings
from hypothesis import strategies as st
from kernel_weights import ENOUGH, weight

from qcore.base.errors import InputError
from qcore.formats.codebook import Codebook
from qcore.formats.kinds import Format
from qcore.formats.uniform import Uniform
from qcore.kernels import arena, choosing, dispatch, library, ops, packed, rounding
from qcore.kernels.mixture import Expert, Gating, Matrix, Mixture, Router
from qcore.kernels.packed import PackedWeight

ROWS, COLUMNS = 11, 512
DTYPES = (torch.float32, torch.float16, torch.bfloat16, torch.float64, torch.int64, torch.int32, torch.uint8)
REFUSED = (ValueError, TypeError, IndexError, RuntimeError, MemoryError, AttributeError, AssertionError)


@pytest.fixture(autouse=True)
def guarded_panels(monkeypatch):
    monkeypatch.setattr(arena, "empty", lambda nbytes: guarded(torch.zeros(nbytes, dtype=torch.uint8)))


def spoiled(data, tensor: torch.Tensor | None) -> torch.Tensor | None:
    """Return `tensor`, or with another shape, type, order in memory or device."""
    if tensor is None:
        return data.draw(st.sampled_from((None, torch.zeros(3))))
    way = data.draw(
        st.sampled_from(("same", "less", "more", "type", "strided", "turned", "broadcast", "meta", "none"))
    )
    if way == "less":
        return guarded(tensor[: tensor.shape[0] // 2].clone()) if tensor.ndim else tensor
    if way == "more":
        return guarded(torch.cat((tensor, tensor)).clone()) if tensor.ndim else tensor
    if way == "type":
        return guarded(tensor.to(data.draw(st.sampled_from(DTYPES))))
    if way == "strided":
        return tensor[..., ::2] if tensor.ndim else tensor
    if way == "turned":
        return tensor.transpose(0, -1) if tensor.ndim else tensor
    if way == "broadcast":
        return guarded(tensor.flatten()[:1].clone()).expand(tensor.shape)
    return {"meta": tensor.to("meta"), "none": None}.get(way, tensor)


def one_spoiled(data, tensors: dict[str, torch.Tensor | None]) -> dict[str, torch.Tensor | None]:
    """Return `tensors` with one or two of them spoiled."""
    names = data.draw(st.lists(st.sampled_from(sorted(tensors)), min_size=1, max_size=2, unique=True))
    return {name: spoiled(data, part) if name in names else part for name, part in tensors.items()}


def formats(data) -> Format:
    return data.draw(
        st.sampled_from(
            [*ENOUGH.values(), Uniform(4, 1 << 20, False), Uniform(4, 32, True), Codebook("nf4", 32)]
        )
    )


@given(st.sampled_from(sorted(ENOUGH)), st.data())
def test_parts_and_formats_that_do_not_belong_together(name, data):
    whole = weight(ENOUGH[name], ROWS, COLUMNS)
    parts = one_spoiled(data, {part: guarded(tensor) for part, tensor in whole.parts().items()})
    wrong = replace(whole, **parts)
    if data.draw(st.booleans()):
        rows, columns = data.draw(
            st.sampled_from(((ROWS, 64), (64, COLUMNS), (1, 1), (0, 8), (ROWS, 1 << 40)))
        )
        wrong = replace(wrong, shape=(rows, columns))
    if data.draw(st.booleans()):
        wrong = replace(wrong, format=formats(data))
    with suppress(*REFUSED):
        held = PackedWeight.pack(wrong)
        columns = held.shape[1]
        dispatch.linear(guarded(torch.randn(3, columns)), held)
        dispatch.rows(held, torch.tensor([0, held.shape[0] - 1]))
        held.unpack()


@settings(max_examples=120)
@given(st.sampled_from(sorted(ENOUGH)), st.sampled_from(sorted(dispatch.MODES)), st.data())
def test_packed_weights_with_another_format_or_other_panels(name, activations, data):
    right = PackedWeight.pack(weight(ENOUGH[name], ROWS, COLUMNS))
    parts = one_spoiled(
        data, {"panels": right.panels, "table": right.table, "scale_codes": right.scale_codes}
    )
    shape = data.draw(
        st.sampled_from(((ROWS, COLUMNS), (ROWS + 8, COLUMNS), (ROWS, 2 * COLUMNS), (1, 32), (0, 0)))
    )
    wrong = replace(
        right, format=data.draw(st.sampled_from((right.format, formats(data)))), shape=shape, **parts
    )
    inputs = one_spoiled(data, {"x": guarded(torch.randn(5, COLUMNS)), "bias": guarded(torch.randn(ROWS))})
    for call in (
        lambda: dispatch.linear(inputs["x"], wrong, inputs["bias"], activations),
        lambda: ops.linear(inputs["x"], right, inputs["bias"], dispatch.MODES[activations]),
        lambda: dispatch.rows(wrong, guarded(torch.tensor([0, ROWS - 1, ROWS + 7]))),
        lambda: dispatch.rows(right, spoiled(data, guarded(torch.arange(4)))),
        lambda: wrong.unpack(),
    ):
        with suppress(*REFUSED):
            call()


@given(st.data())
def test_rounding_takes_only_matrices_of_this_machine(data):
    matrix = spoiled(data, guarded(torch.randn(ROWS, 96)))
    with suppress(*REFUSED):
        rounding.quantize(matrix, formats(data))
    for wrong in (torch.randn(2, 3, 8), torch.randn(8), torch.randn(0, 8), torch.randn(3, 8, device="meta")):
        with pytest.raises(InputError, match="cannot be rounded natively"):
            rounding.quantize(wrong, Uniform(4, 32, False))


@given(st.data())
def test_choosing_with_tensors_of_other_sizes(data):
    inputs, outputs, groups = 40, 19, 2
    each = {name: guarded(torch.ones(groups, outputs)) for name in ("inverse", "scale", "zero", "minimum")}
    kind = data.draw(st.sampled_from(("even", "affine", "table", "tables")))
    if kind != "affine":
        each["minimum"] = None
    if kind.startswith("table"):
        table = torch.arange(16.0) if kind == "table" else torch.arange(16.0).expand(outputs, 16)
        each |= {"table": guarded(table), "midpoints": guarded(table[..., 1:] - 0.5), "zero": None}
    tensors = {
        **each,
        "groups": guarded(torch.arange(inputs, dtype=torch.int32) // 20),
        "matrix": guarded(torch.eye(inputs)),
        "state": guarded(torch.randn(inputs, outputs)),
        "values": data.draw(st.sampled_from((None, guarded(torch.randn(inputs, outputs))))),
        "step": guarded(torch.ones(inputs)),
        "codes": guarded(torch.zeros(inputs, outputs)),
    }
    tensors = one_spoiled(data, tensors)
    levels = choosing.Levels(middle=8, highest=15, **{name: tensors.pop(name) for name in each})
    first, last = data.draw(st.sampled_from(((0, 40), (8, 30), (30, 8), (-1, 40), (0, 400))))
    with suppress(*REFUSED):
        choosing.choose(first, last, levels, **tensors)


@settings(max_examples=40)
@given(st.data())
def test_mixtures_of_matrices_that_do_not_fit(data):
    hidden, inner, experts = 64, 32, 4

    def matrix(rows, columns):
        if data.draw(st.integers(0, 9)) == 0:
            rows, columns = data.draw(
                st.sampled_from(((columns, rows), (rows + 8, columns), (rows, 2 * columns)))
            )
        return Matrix(PackedWeight.pack(weight(Uniform(4, 32, False), rows, columns)), None, library.FLOAT)

    made = [
        Expert(matrix(inner, hidden), matrix(inner, hidden), matrix(hidden, inner)) for _ in range(experts)
    ]
    given_ = {
        "weight": guarded(torch.randn(experts, hidden)),
        "bias": None,
        "x": guarded(torch.randn(5, hidden)),
        "experts": guarded(torch.arange(10).view(5, 2) % experts),
        "weights": guarded(torch.rand(5, 2)),
    }
    given_ = one_spoiled(data, given_)
    chosen = data.draw(st.sampled_from((2, 1, 4, 9)))
    with suppress(*REFUSED):
        router = Router(experts, chosen, given_["weight"], given_["bias"])
        mixture = Mixture(router, made, Gating("silu"))
        mixture.run(given_["x"])
        mixture.run(given_["x"], given_["experts"], given_["weights"])


@given(st.data())
def test_sums_of_words(data):
    words = guarded(torch.arange(64))
    given_ = spoiled(data, words)
    try:
        assert library.sum_words(given_) == int(given_.sum())
    except (InputError, AttributeError):
        assert given_ is None or given_.dtype != torch.int64 or not given_.is_contiguous() or given_.is_meta
    assert packed.reason_against(Uniform(4, 32, True), (0, 8)) == "the weight is empty"
