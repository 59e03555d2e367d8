"""quiet.silence(): the listed noise disappears, everything else stays."""

import logging
import subprocess
import sys
import warnings

import pytest

from qcore.base import quiet

NOISY = """
import warnings, logging
from qcore.base import quiet
{silence}
import torch, torchao, bitsandbytes
from torchao.quantization import quantize_
from torch.ao.quantization import quantize_dynamic
layer = bitsandbytes.nn.Linear8bitLt(8, 8, has_fp16_weights=False)
layer.weight = layer.weight.to("cpu")
layer.eval()(torch.ones(1, 8))
warnings.simplefilter("default") if not {quiet} else None
quantize_dynamic(torch.nn.Sequential(torch.nn.Linear(8, 8)), {{torch.nn.Linear}}, torch.qint8)
logging.getLogger("torchao").warning("a real problem")
warnings.warn("another real problem")
"""

SILENCE = """
quiet.silence()
from qcore.recipes import ENGINES
list(ENGINES)  # engines name their own noise
"""


def run(silence: bool) -> str:
    code = NOISY.format(silence=SILENCE if silence else "", quiet=silence)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == ""
    return done.stderr


@pytest.mark.slow
def test_import_and_use_of_every_engine_is_silent_but_for_real_problems():
    lines = [line for line in run(silence=True).splitlines() if "warnings.warn" not in line]
    assert len(lines) == 2, lines
    assert "a real problem" in lines[0]
    assert "another real problem" in lines[1]


@pytest.mark.slow
def test_without_hush_the_same_process_is_noisy():
    """If this fails, the libraries have become quiet and the list can shrink."""
    text = run(silence=False)
    for part in ("MatMul8bitLt", "Failed to load", "is an Enum subclass"):
        assert part in text


def test_a_filter_is_added_once():
    quiet.silence()
    before = len(logging.getLogger("torchao").filters)
    quiet.silence()
    assert len(logging.getLogger("torchao").filters) == before == 1


def test_filters_match_only_their_text(caplog):
    quiet.silence()
    logger = logging.getLogger("torchao")
    logger.warning("Failed to load /x/_C_mxfp8.so: Could not load this library")
    logger.warning("Failed to load /x/_C.abi3.so: undefined symbol")
    assert [record.getMessage() for record in caplog.records] == [
        "Failed to load /x/_C.abi3.so: undefined symbol"
    ]


def test_other_warnings_of_the_same_class_stay():
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        quiet.silence()
        warnings.warn(
            "torch.ao.quantization is deprecated and will be removed", DeprecationWarning, stacklevel=1
        )
        warnings.warn("something else is deprecated", DeprecationWarning, stacklevel=1)
    assert [str(warning.message) for warning in seen] == ["something else is deprecated"]


def test_progress_bars_are_off_even_in_libraries_already_imported():
    import huggingface_hub.utils as hub
    import transformers.utils.logging as bars

    bars.enable_progress_bar()
    quiet.silence()
    assert hub.are_progress_bars_disabled()
    assert not bars.is_progress_bar_enabled()


def test_recurrences_run_without_a_word_on_missing_kernels():
    """transformers reports each missing package at the first call of a Mamba or a gated delta net."""
    import torch
    from transformers.utils import logging as library

    from tests import zoo

    logger = logging.getLogger("transformers.integrations.hub_kernels")
    seen: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: seen.append(record.getMessage())
    logger.addHandler(handler)
    try:
        for filters, expected in ((list(logger.filters), 0), ([], 1)):
            before, logger.filters = logger.filters, filters
            library.warning_once.cache_clear()
            with torch.no_grad():
                zoo.model("mamba")(input_ids=torch.arange(4)[None], use_cache=False)
            logger.filters = before
            assert bool(seen) == bool(expected), seen
    finally:
        logger.removeHandler(handler)
