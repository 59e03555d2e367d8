"""Dispatch reaches the native kernel, reports it, and works with torch's tools; modules restore their
parts."""

import copy
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
import tiny
import torch
from kernel_weights import FORMATS, weight

from qcore import recipes
from qcore.base.errors import InputError, UnavailableError
from qcore.kernels import build, dispatch, library, ops, reference
from qcore.kernels.packed import PackedWeight
from qcore.layers.modules import QuantEmbedding, QuantizedModule, QuantLinear
from qcore.quantization.convert import quantize

INT4 = FORMATS["int4-g32"]


def quantized_model(recipe: str = "int4-g32-head8", kind: str = "llama-tied") -> torch.nn.Module:
    model = tiny.model(kind)
    quantize(model, recipes.parse(recipe))
    return model


def test_a_layer_runs_the_native_kernel(monkeypatch):
    calls = []
    real = ops.linear
    monkeypatch.setattr(ops, "linear", lambda *args: calls.append(1) or real(*args))
    layer = QuantLinear(weight(INT4, 16, 64), None, "fp32")
    layer(torch.randn(2, 64))
    assert calls and isinstance(layer.packed, PackedWeight) and layer.codes is None


def test_explain_names_the_kernel_and_the_reason():
    assert f"native {library.instructions()}" in dispatch.explain(weight(INT4, 16, 64))
    assert "int16" in dispatch.explain(PackedWeight.pack(weight(INT4, 16, 64)), "int16")
    odd = weight(type(INT4)(4, 24, True), 8, 48)
    assert dispatch.explain(odd) == "plain torch: groups of 24 are not a multiple of 32"
    assert "meta" in dispatch.explain(type(odd)(odd.format, odd.shape, odd.codes.to("meta")))


def test_groups_that_no_kernel_takes_run_in_the_reference():
    stored, x = weight(type(INT4)(4, 24, True), 8, 48), torch.randn(2, 48)
    layer = QuantLinear(stored, None, "fp32")
    assert torch.equal(layer(x), reference.linear(x, stored, None)) and layer.packed is None


def test_without_a_compiler_the_reference_runs_and_says_so(monkeypatch):
    monkeypatch.setattr(library, "reason_missing", lambda: "There is no compiler.")
    layer, x = QuantLinear(weight(INT4, 16, 64), None, "fp32"), torch.randn(2, 64)
    with pytest.warns(UserWarning, match="There is no compiler"):
        y = layer(x)
    assert torch.equal(y, reference.linear(x, layer.quantized, None)) and "no compiler" in dispatch.explain(
        layer.quantized
    )


@pytest.mark.row("39")
@pytest.mark.parametrize("compiler", ["no-such-compiler", "false"])
def test_a_missing_or_broken_compiler_is_a_plain_message(monkeypatch, compiler):
    monkeypatch.setenv("CXX", compiler)
    build._compiler.cache_clear()
    try:
        with pytest.raises(UnavailableError, match="compiler|compiled"):
            build.build(("-DNEVER_BUILT_BEFORE",))
    finally:
        monkeypatch.undo()
        build._compiler.cache_clear()


@pytest.mark.row("39")
def test_another_processor_is_a_plain_message(monkeypatch):
    monkeypatch.setattr(build.platform, "machine", lambda: "riscv64")
    with pytest.raises(UnavailableError, match="riscv64"):
        build.build()


def test_wrong_input_is_a_plain_message():
    with pytest.raises(InputError, match="63 features.*takes 64"):
        QuantLinear(weight(INT4, 16, 64), None, "fp32")(torch.randn(2, 63))
    with pytest.raises(InputError, match="Unknown activations"):
        QuantLinear(weight(INT4, 16, 64), None, "fp33")(torch.randn(2, 64))


def test_gradients_flow_to_the_inputs():
    stored, x = weight(INT4, 16, 64), torch.randn(2, 64, requires_grad=True)
    QuantLinear(stored, None, "fp32")(x).sum().backward()
    torch.testing.assert_close(x.grad, stored.dequantize().sum(0).expand(2, 64))


def test_meta_tensors_pass_and_operators_are_well_formed():
    packed = PackedWeight.pack(weight(INT4, 16, 64))
    y = dispatch.linear(torch.empty(3, 5, 64, device="meta"), packed)
    assert y.shape == (3, 5, 16) and y.device.type == "meta"
    assert dispatch.rows(packed, torch.empty(7, dtype=torch.int64, device="meta")).shape == (7, 64)
    arguments = (
        torch.randn(3, 64),
        packed.panels,
        None,
        torch.randn(16),
        list(packed.numbers),
        library.INT16,
    )
    torch.library.opcheck(ops.linear_op, arguments, test_utils=("test_schema", "test_faketensor"))
    torch.library.opcheck(
        ops.rows_op,
        (torch.arange(4), packed.panels, None, list(packed.numbers)),
        test_utils=("test_faketensor",),
    )


def test_compiled_code_calls_the_same_kernel():
    packed = PackedWeight.pack(weight(INT4, 16, 64))
    x = torch.randn(3, 64)
    compiled = torch.compile(lambda x: dispatch.linear(x, packed) + 1, fullgraph=True, backend="eager")
    assert torch.equal(compiled(x), dispatch.linear(x, packed) + 1)


@pytest.mark.parametrize(
    "recipe", ["int4-g32", "int8-dynamic", "nf4-g64-dq", "kmeans4", "int3", "int4-g32-head8"]
)
@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_a_model_keeps_its_state_when_it_runs(recipe, kind):
    model, ids = quantized_model(recipe, kind), torch.arange(20)[None]
    before = {name: value.clone() for name, value in model.state_dict().items()}
    logits = model(ids).logits
    assert any(module.packed is not None for module in model.modules() if isinstance(module, QuantizedModule))
    after = model.state_dict()
    assert before.keys() == after.keys() and all(torch.equal(before[name], after[name]) for name in before)
    assert torch.equal(model(ids).logits, logits)


def test_a_tied_head_and_embedding_share_one_packed_weight_and_come_back_shared():
    model = quantized_model()
    model(torch.arange(5)[None])
    head, embedding = model.get_output_embeddings(), model.get_input_embeddings()
    assert isinstance(embedding, QuantEmbedding) and head.packed is embedding.packed is not None
    head.restore(), embedding.restore()
    assert head.codes.data_ptr() == embedding.codes.data_ptr() and head.packed is None


def test_a_tied_layer_that_has_not_run_is_shared_again():
    """Some of Zamba 2's tied adapters, and one of ProphetNet's tied embeddings, never run: they kept the
    parts that the others unpacked anew, so saved models held them twice and were refused as damaged."""
    shared = weight(INT4, 64, 256)
    first, idle, last = (QuantLinear(shared, None, "fp32") for _ in range(3))
    del shared
    x = torch.randn(2, 256)
    expected = first(x), last(x)
    assert first.packed is last.packed is not None and idle.packed is None
    for layer in (first, idle, last):
        layer.restore()
        assert layer.codes.data_ptr() == idle.codes.data_ptr()
        assert layer.scale.data_ptr() == idle.scale.data_ptr()
    assert torch.equal(first(x), expected[0]) and torch.equal(last(x), expected[1])


def test_a_model_can_be_copied_and_moved_after_it_ran():
    model, ids = quantized_model(), torch.arange(5)[None]
    logits = model(ids).logits
    assert torch.equal(copy.deepcopy(model)(ids).logits, logits)
    assert torch.equal(model.to("cpu")(ids).logits, logits)
    assert model.to("meta")(ids.to("meta")).logits.device.type == "meta"


def test_first_use_from_many_threads_packs_once_and_is_right():
    layer, x = QuantLinear(weight(INT4, 64, 256), None, "fp32"), torch.randn(3, 256)
    expected = dispatch.linear(x, PackedWeight.pack(layer.quantized))
    start = threading.Barrier(4)
    with ThreadPoolExecutor(4) as pool:
        for y in pool.map(lambda _: start.wait() is None or layer(x), range(4)):
            assert torch.equal(y, expected)
