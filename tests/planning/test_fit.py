"""The estimate against what really happens to tiny models, and against sums done by hand."""

import pytest
import tiny
import torch

from qcore import library
from qcore.base.errors import InputError, TooLargeError
from qcore.formats.codebook import Codebook
from qcore.formats.uniform import Uniform
from qcore.planning import fit as plan
from qcore.planning.cache import FORMATS
from qcore.planning.stored import stored
from qcore.quantization import methods
from qcore.quantization.convert import quantize
from qcore.recipes import common, engines, parse

KINDS = list(tiny.CONFIGS)
HELD = plan.LIBRARIES + plan.AROUND


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory):
    folder = tmp_path_factory.mktemp("checkpoints")
    return {kind: library.resolve(tiny.checkpoint(kind, folder / kind)) for kind in KINDS}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", common())
def test_stored_bytes_of_own_recipes_are_exactly_the_ledgers(checkpoints, kind, name):
    estimate = plan.estimate(checkpoints[kind], parse(name))
    assert estimate.stored_bytes == quantize(tiny.model(kind), parse(name)).stored_bytes


def test_stored_bytes_by_hand_for_the_tied_llama(checkpoints):
    # per block: q 64x64, k and v 32x64, o 64x64, gate and up 128x64, down 64x128; int8 per channel: 1 byte
    # per weight and 2 per row
    block = (64 + 32 + 32 + 64 + 128 + 128) * (64 + 2) + 64 * (128 + 2)
    kept = 4 * (258 * 64 + 5 * 64)  # the one embedding, and the norms
    assert plan.estimate(checkpoints["llama-tied"], parse("int8")).stored_bytes == 2 * block + kept


@pytest.mark.parametrize("name", engines.recipes())
def test_other_libraries_are_estimated_between_their_codes_and_fp32(checkpoints, name):
    checkpoint = checkpoints["llama"]
    stored = plan.estimate(checkpoint, parse(name)).stored_bytes
    assert checkpoint.nbytes / 8 < stored < checkpoint.nbytes or (
        name == "onnx-fp32" and stored == checkpoint.nbytes
    )


@pytest.mark.parametrize("shape", [(3, 8), (5, 64), (7, 100), (600, 65)], ids=str)
@pytest.mark.parametrize(
    "format",
    [
        Uniform(8, None, True),
        Uniform(4, 32, False),
        Uniform(3, 64, False),
        Uniform(2, 16, False, True),
        Codebook("nf4", 64),
        Codebook("fp4", 64, True),
        Codebook("kmeans4", None),
        Codebook("kmeans4", 64),
    ],
    ids=str,
)
def test_bytes_of_a_format_are_those_of_its_tensor(shape, format):
    weight = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    method = "kmeans" if getattr(format, "kind", "") == "kmeans4" else "rtn"
    assert format.nbytes(*shape) == methods.quantize(weight, format, method).nbytes


def test_bytes_are_counted_once_per_recipe(checkpoints, monkeypatch):
    counted = []
    monkeypatch.setattr(plan, "stored", lambda *about: counted.append(about) or stored(*about))
    monkeypatch.setattr(plan, "_sizes", {})
    found = [
        plan.estimate(checkpoints["llama"], parse(name), tokens=tokens, kv=kv)
        for tokens in (64, 128)
        for kv in (FORMATS["fp32"], FORMATS["int8"])
        for name in ("int8", "int4-g64", "nf4-g64")
    ]
    assert len(counted) == 3 and len({each.stored_bytes for each in found}) == 3


def test_more_tokens_and_wider_windows_need_more(checkpoints):
    small = plan.estimate(checkpoints["llama"], parse("fp32"), tokens=10, window=10)
    large = plan.estimate(checkpoints["llama"], parse("fp32"), tokens=20, window=30)
    assert large.kv_bytes == 2 * small.kv_bytes
    activations = 4 * 20 * (8 * 64 + 3 * 128 + plan.LOGIT_COPIES * tiny.VOCABULARY)
    assert large.peak_run_bytes - small.peak_run_bytes == small.kv_bytes + activations


def test_a_model_saved_quantized_is_counted_as_it_is(tmp_path, checkpoints):
    from qcore.library import safetensors

    model = tiny.model("llama")
    ledger = quantize(model, parse("int8"))
    saved = library.resolve(
        safetensors.save(model, tiny.tokenizer(), parse("int8"), ledger, tmp_path / "saved")
    )
    assert saved.is_quantized
    assert saved.parameters == checkpoints["llama"].parameters
    assert plan.estimate(saved, parse("fp32")).stored_bytes == saved.nbytes == ledger.stored_bytes


@pytest.mark.row("11")
def test_what_does_not_fit_is_refused_with_the_arithmetic(checkpoints, monkeypatch):
    monkeypatch.setenv("QCORE_MEMORY_LIMIT", str(HELD + 100_000))
    with pytest.raises(
        TooLargeError, match=r"llama does not fit .* loading 0.11 million weights needs 0.43 GB"
    ) as raised:
        plan.check_fits(checkpoints["llama"], parse("fp32"))
    assert "available" in str(raised.value)
    assert "million weights would fit" in str(raised.value)


def test_too_little_memory_for_anything(checkpoints, monkeypatch):
    monkeypatch.setenv("QCORE_MEMORY_LIMIT", "1000")
    with pytest.raises(TooLargeError, match="free some first"):
        plan.check_fits(checkpoints["llama"], parse("int8"))


@pytest.mark.row("11")
def test_what_would_fit_is_named_if_only_the_window_is_too_wide(checkpoints, monkeypatch):
    monkeypatch.setenv("QCORE_MEMORY_LIMIT", str(HELD + 4_000_000))
    with pytest.raises(TooLargeError, match="As int8 it would fit"):
        plan.check_fits(checkpoints["llama"], parse("fp32"), window=100_000)


def test_what_fits_passes(checkpoints):
    assert plan.check_fits(checkpoints["llama"], parse("int4")).fits


def test_a_limit_that_is_no_number_is_an_error(monkeypatch):
    monkeypatch.setenv("QCORE_MEMORY_LIMIT", "4 GB")
    with pytest.raises(InputError, match="number of bytes"):
        plan.budget()


def test_a_limit_never_exceeds_what_is_there(monkeypatch):
    monkeypatch.setenv("QCORE_MEMORY_LIMIT", str(1 << 60))
    assert plan.budget() < 1 << 60
