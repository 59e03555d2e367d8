"""Sizes that contradict one another are refused before any memory is touched.

Every buffer here ends where readable memory ends, so a function that trusts a wrong size is killed rather
than lucky.
"""

import ctypes
import os
import subprocess
import sys
from dataclasses import replace

import pytest
import torch
from guarded import guarded
from hypothesis import given
from hypothesis import strategies as st
from kernel_weights import ENOUGH, FORMATS, weight, whole

from qcore.base.errors import InputError
from qcore.formats.codebook import Codebook
from qcore.formats.uniform import Uniform
from qcore.kernels import arena, choosing, library, ops, packed, rounding
from qcore.kernels.packed import PackedWeight

ROWS, COLUMNS = 11, 100
INTEGERS = (ctypes.c_int32, ctypes.c_int64)
ODD = (-1, 0, 1, 3, 8, 64, 2**31 - 1, 2**40, 2**62)  # numbers to put in place of right ones


@pytest.fixture(autouse=True)
def guarded_panels(monkeypatch):
    monkeypatch.setattr(arena, "empty", lambda nbytes: guarded(torch.zeros(nbytes, dtype=torch.uint8)))


def stored(name: str, rows: int = ROWS, columns: int = COLUMNS):
    """Return a random weight whose parts end at an inaccessible page."""
    whole = weight(FORMATS[name], rows, columns)
    return replace(whole, **{name: guarded(part) for name, part in whole.parts().items()})


def change(data, structure: ctypes.Structure) -> None:
    """Replace up to three integers of `structure`; the sizes of its buffers stay correct."""
    names = [name for name, kind in structure._fields_ if kind in INTEGERS]
    for name in data.draw(st.lists(st.sampled_from(names), min_size=1, max_size=3, unique=True)):
        value = getattr(structure, name)
        other = data.draw(st.sampled_from((*ODD, value - 1, value + 1, 2 * value, 8 * value)), label=name)
        setattr(structure, name, other)


# -- packed weights


@pytest.mark.row("F1")
@pytest.mark.parametrize("name", sorted(FORMATS))
@pytest.mark.parametrize("shape", [(ROWS, 8 * COLUMNS), (8 * ROWS, COLUMNS), (ROWS + 8, COLUMNS + 64)])
def test_a_shape_that_the_parts_do_not_fill_is_refused(name, shape):
    larger = shape[0], whole(FORMATS[name], shape[1])
    with pytest.raises(InputError, match="cannot be packed: there are too few"):
        PackedWeight.pack(replace(stored(name), shape=larger))


@pytest.mark.row("F1")
@pytest.mark.parametrize(
    "part", ["codes", "scale", "zero_point", "codebook", "minimum", "scale_codes", "min_codes"]
)
@pytest.mark.parametrize(
    "name",
    [
        *("int8-g32-asym", "int4-g32", "int3-g64", "nf4-g64", "kmeans4-g64", "kmeans4", "gguf-q5_1"),
        *("gguf-q2_k", "gguf-q3_k", "gguf-q4_k"),
    ],
)
def test_each_part_that_is_too_short_is_named(name, part):
    whole = stored(name)
    short = getattr(whole, part)
    if short is None:
        return
    words = {
        **{"codes": "codes", "scale": "scales", "zero_point": "zero points", "codebook": "table"},
        **{"minimum": "minimums", "scale_codes": "scales", "min_codes": "minimums"},
    }[part]
    cut = short[: len(short) // 2]
    if part == "zero_point":
        cut = short[: short.numel() // 2 // whole.format.bits * whole.format.bits]  # whole eights of codes
    with pytest.raises(InputError, match=f"cannot be packed: .*{words}"):
        PackedWeight.pack(replace(whole, **{part: guarded(cut)}))


LITTLE = """
import resource
import torch
from qcore.formats.tensor import QuantizedTensor
from qcore.formats.uniform import Uniform
from qcore.kernels.packed import PackedWeight

def one_row(columns):
    halves = torch.zeros(1, columns // 32, dtype=torch.float16)
    codes = torch.zeros(1, columns // 2, dtype=torch.uint8)
    return QuantizedTensor(Uniform(4, 32, True), (1, columns), codes, halves)

torch.set_num_threads(4)
PackedWeight.pack(one_row(64))
wide = one_row(1 << 26)  # 0.3 GB of panels, and for each thread 0.5 GB of codes
mapped = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (mapped + (1 << 30),) * 2)
try:
    PackedWeight.pack(wide)
except MemoryError as error:
    print(error)
"""


@pytest.mark.slow
@pytest.mark.skipif(
    "asan" in os.environ.get("LD_PRELOAD", ""), reason="the sanitizer takes all address space"
)
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="limits the address space")
def test_packing_without_memory_is_an_error_and_not_the_end():
    done = subprocess.run([sys.executable, "-c", LITTLE], capture_output=True, text=True)
    words = f"The weight (1, {1 << 26}) in int4-g32-sym cannot be packed: there is not enough memory.\n"
    assert (done.returncode, done.stdout) == (0, words), done.stderr[-2000:]


@given(st.sampled_from(sorted(ENOUGH)), st.data())
def test_no_numbers_make_packing_or_unpacking_leave_their_buffers(name, data):
    sound = stored(name)
    layout = library.Layout.from_buffer_copy(PackedWeight.pack(sound).layout)
    held = {part: guarded(tensor) for part, tensor in packed._parts(sound).items()}
    parts = packed._Stored.of(sound.format.bits, packed._groups(sound.format, sound.shape[1]), held)
    change(data, data.draw(st.sampled_from((layout, parts))))
    for function in (library.functions().qcore_pack, library.functions().qcore_unpack):
        assert function(ctypes.byref(layout), ctypes.byref(parts), 2) in (library.OK, *library._PROBLEMS)


@given(st.sampled_from(sorted(ENOUGH)), st.sampled_from((1, 3, 9)), st.integers(-1, 4), st.data())
def test_no_numbers_make_products_and_rows_leave_their_buffers(name, tokens, mode, data):
    right = PackedWeight.pack(stored(name))
    layout = library.Layout.from_buffer_copy(right.layout)
    change(data, layout)
    columns = right.shape[1]
    x, y = guarded(torch.randn(tokens, columns)), guarded(torch.empty(tokens, ROWS))
    bias = guarded(torch.randn(ROWS))
    status = library.functions().qcore_linear(
        ctypes.byref(layout), x.data_ptr(), x.numel(), bias.data_ptr(), ROWS, y.data_ptr(), y.numel(), mode, 2
    )
    assert status in (library.OK, *library._PROBLEMS) and (status or 0 <= mode < 4)
    ids, out = guarded(torch.arange(tokens)), guarded(torch.empty(tokens, columns))
    status = library.functions().qcore_rows(
        ctypes.byref(layout), ids.data_ptr(), tokens, out.data_ptr(), out.numel()
    )
    assert status in (library.OK, library.BAD_INDEX, *library._PROBLEMS)


@pytest.mark.row("F1")
def test_the_operators_check_what_they_are_handed():
    right = PackedWeight.pack(stored("int4-g32"))
    numbers, x = list(right.numbers), guarded(torch.randn(2, COLUMNS))
    for at, value in ((4, 800), (5, 8 * COLUMNS), (6, 40), (7, 10**6), (0, 6), (2, 0)):
        wrong = [*numbers[:at], value, *numbers[at + 1 :]]
        with pytest.raises((InputError, RuntimeError), match="contradict|too short|does not match"):
            ops.linear_op(x, right.panels, None, None, wrong, library.FLOAT)
    with pytest.raises(InputError, match="panels are too short"):
        ops.linear_op(x, guarded(right.panels[:-1].clone()), None, None, numbers, library.FLOAT)
    with pytest.raises(InputError, match="input does not match"):
        ops.linear_op(guarded(torch.randn(2, 64)), right.panels, None, None, numbers, library.FLOAT)
    with pytest.raises(InputError, match="bias does not match"):
        ops.linear_op(x, right.panels, None, guarded(torch.zeros(3)), numbers, library.FLOAT)
    tabled = PackedWeight.pack(stored("nf4-g64"))
    with pytest.raises(InputError, match="table of values is too short"):
        ops.linear_op(x, tabled.panels, guarded(torch.zeros(15)), None, list(tabled.numbers), library.FLOAT)


def test_tensors_of_another_type_layout_or_device_are_refused():
    right = PackedWeight.pack(stored("int4-g32"))
    for panels in (right.panels.float(), right.panels[::2], right.panels.to("meta")):
        with pytest.raises(InputError, match="contiguous torch.uint8 tensor on the CPU"):
            replace(right, panels=panels).layout  # noqa: B018
    with pytest.raises(InputError, match="contiguous torch.int64 tensor"):
        library.sum_words(torch.arange(9, dtype=torch.int32))


# -- rounding and choosing codes


@given(st.booleans(), st.data())
def test_no_numbers_make_rounding_leave_its_buffers(tabled, data):
    format = (
        Codebook("nf4", 64) if tabled else Uniform(data.draw(st.integers(2, 8)), 32, data.draw(st.booleans()))
    )
    seen, functions = [], library.functions()

    class Changing:
        def qcore_quantize(self, job, threads):
            change(data, job._obj)
            seen.append(functions.qcore_quantize(job, threads))
            return seen[-1]

    matrix = guarded(
        torch.randn(ROWS, COLUMNS).to(data.draw(st.sampled_from((torch.float32, torch.bfloat16))))
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(library, "functions", Changing)
        patch.setattr(torch, "empty", lambda *size, dtype=None: guarded(torch.zeros(size, dtype=dtype)))
        try:
            rounding.quantize(matrix, format)
        except InputError as error:
            assert str(error).startswith(f"The weight ({ROWS}, {COLUMNS}) cannot be rounded")
    assert seen


@pytest.mark.parametrize("kind", ["zero points", "middle", "table", "tables"])
@given(data=st.data())
def test_no_numbers_make_choosing_leave_its_buffers(kind, data):
    inputs, outputs, groups = 40, 19, 2
    per_group = guarded(torch.ones(groups, outputs))
    levels = choosing.Levels(per_group, per_group, per_group if kind == "zero points" else None, 8, 0, 15)
    if kind.startswith("table"):
        table = torch.arange(16.0).expand(outputs, 16) if kind == "tables" else torch.arange(16.0)
        levels = replace(levels, table=guarded(table), midpoints=guarded(table[..., 1:] - 0.5))
    index = guarded(torch.arange(inputs, dtype=torch.int32) // 20)
    square, wide = guarded(torch.eye(inputs)), guarded(torch.randn(inputs, outputs))
    values = guarded(torch.randn(inputs, outputs)) if data.draw(st.booleans()) else None
    functions = library.functions()

    class Changing:
        def qcore_choose_codes(self, job, threads):
            change(data, job._obj)
            return functions.qcore_choose_codes(job, threads)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(library, "functions", Changing)
        patch.setattr(torch, "empty", lambda *size: guarded(torch.zeros(size)))
        try:
            codes = guarded(torch.zeros(inputs, outputs))
            choosing.choose(8, 30, levels, index, square, wide, values, guarded(torch.ones(inputs)), codes)
        except (InputError, IndexError) as error:
            assert str(error).startswith("The codes of the inputs 8 to 30 cannot be chosen: ")


def test_choosing_names_what_is_wrong():
    one, index = torch.ones(1, 4), torch.zeros(8, dtype=torch.int32)
    levels = choosing.Levels(one, one, None, 8, 0, 15)
    wide, square, step = torch.randn(8, 4), torch.eye(8), torch.ones(8)

    def choose(last=8, groups=index, matrix=square, codes=None):
        target = torch.zeros(8, 4) if codes is None else codes
        return choosing.choose(0, last, levels, groups, matrix, wide, None, step, target)

    assert choose().shape == (8, 4)
    with pytest.raises(IndexError, match="outside the valid range"):
        choose(groups=index + 1)
    with pytest.raises(InputError, match="too few weights"):
        choose(matrix=torch.eye(7))
    with pytest.raises(InputError, match="output does not match"):
        choose(codes=torch.zeros(8, 3))
    with pytest.raises(InputError, match="contradict"):
        choose(last=9)
