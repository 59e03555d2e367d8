"""The kernels of every instruction set against a float64 product and against AVX2, on any machine."""

import itertools
import os
import subprocess
import sys

import pytest
import tiny
import torch
from emulation import INSTRUCTIONS, use
from kernel_weights import ENOUGH, FORMATS, allowed_error, weight, whole
from test_kernels import MODES, check

from qcore import recipes
from qcore.kernels import dispatch, library
from qcore.kernels.packed import PackedWeight
from qcore.quantization.convert import quantize

pytestmark = pytest.mark.slow  # compiles all kernels once more, in emulated instructions


@pytest.fixture(params=INSTRUCTIONS)
def instructions(request, monkeypatch) -> str:
    use(request.param, monkeypatch)
    return request.param


@pytest.mark.parametrize("activations", MODES)
@pytest.mark.parametrize("format", FORMATS.values(), ids=FORMATS)
def test_product_is_right_for_every_format_mode_and_number_of_tokens(instructions, format, activations):
    stored = weight(format, 40, 192)
    for tokens in (1, 2, 3, 4, 5, 8, 14):
        torch.manual_seed(tokens)
        check(stored, torch.randn(tokens, stored.shape[1]), activations)


@pytest.mark.parametrize("activations", MODES)
@pytest.mark.parametrize("format", ENOUGH.values(), ids=ENOUGH)
def test_awkward_shapes_are_right(instructions, format, activations):
    for rows, columns in itertools.product((1, 7, 9, 25), {whole(format, k) for k in (1, 31, 100, 544)}):
        stored = weight(format, rows, columns, seed=rows)
        for tokens in (1, 6):
            torch.manual_seed(rows)
            check(stored, torch.randn(tokens, columns), activations, torch.randn(rows))


@pytest.mark.parametrize("activations", MODES)
@pytest.mark.parametrize("format", FORMATS.values(), ids=FORMATS)
def test_results_are_those_of_avx2_but_for_the_order_of_sums(instructions, format, activations, monkeypatch):
    """The integers are equal, so only float32 sums may differ. Up to four tokens they are added in the same
    order, with two exceptions: tables per row, whose registers are half as long with NEON; and bytes with
    NEON, which subtracts 128 from codes and zero points to make them signed."""
    stored = weight(format, 45, 320)
    packed = PackedWeight.pack(stored)
    moved = instructions in ("neon", "dotprod") and packed.kind == 0 and activations.startswith("int8")
    same_order = not packed._per_row and not moved
    for tokens in (1, 2, 3, 4, 7, 40):
        torch.manual_seed(tokens)
        x = torch.randn(tokens, stored.shape[1]) * 10 ** torch.randn(tokens, 1)
        use(instructions, monkeypatch)
        y = dispatch.linear(x, packed, None, activations)
        use("avx2", monkeypatch)
        expected = dispatch.linear(x, packed, None, activations)
        assert ((y - expected).abs() <= allowed_error(x, stored, "fp32")).all()
        if tokens <= 4 and (same_order or (packed._per_row and instructions.startswith("avx"))):
            assert torch.equal(y, expected)


@pytest.mark.parametrize("activations", MODES)
@pytest.mark.parametrize("format", ENOUGH.values(), ids=ENOUGH)
def test_extremes_do_not_overflow(instructions, format, activations):
    """All codes and all inputs are extreme and equal, which makes the sums of integers as large as
    possible."""
    stored = weight(format, 16, 128)
    for codes in (torch.zeros_like(stored.codes), torch.full_like(stored.codes, 255)):
        stored.codes.copy_(codes)
        for tokens, sign in itertools.product((1, 4, 6), (1, -1)):
            check(stored, torch.full((tokens, stored.shape[1]), 3.0 * sign), activations)


@pytest.mark.parametrize("activations", MODES)
@pytest.mark.parametrize("tokens", [1, 6])
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_bad_input_spoils_its_own_token_and_no_other(instructions, bad, tokens, activations):
    packed, x = PackedWeight.pack(weight(FORMATS["int4-g32"], 9, 128)), torch.randn(tokens, 128)
    x[-1, 40] = bad
    y = dispatch.linear(x, packed, None, activations)
    assert not y[-1].isfinite().any() and y[:-1].isfinite().all()


@pytest.mark.parametrize("recipe", ["int4-g32-head8", "int8-dynamic", "nf4-g64"])
def test_the_whole_step_runs_on_every_instruction_set(instructions, recipe, monkeypatch):
    model, ids = tiny.model("llama-tied"), torch.arange(30)[None]
    quantize(model, recipes.parse(recipe))
    with torch.inference_mode():
        logits = model(ids).logits
        use("avx2", monkeypatch)
        torch.testing.assert_close(logits, model(ids).logits, rtol=0, atol=1e-3 * logits.abs().max().item())


def test_the_library_names_the_instruction_set_that_runs(instructions):
    assert library.functions().qcore_instructions().decode() == instructions
    packed = PackedWeight.pack(weight(FORMATS["int4-g32"], 16, 64))
    assert dispatch.explain(packed).startswith(f"native {library.NAMES[instructions]}, ")
    assert (
        not library.functions().qcore_choose(b"mmx")
        and library.functions().qcore_instructions().decode() == instructions
    )


@pytest.mark.parametrize("wanted, found", [("avx2", "AVX2"), ("mmx", "QCORE_INSTRUCTIONS is 'mmx'")])
def test_a_person_can_choose_the_instruction_set(wanted, found):
    code = "from qcore.kernels import library; print(library.reason_missing() or library.instructions())"
    environment = os.environ | {"QCORE_INSTRUCTIONS": wanted}
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=True
    )
    assert done.stdout.startswith(found)
