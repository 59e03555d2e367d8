"""The harness itself: cells are filled only by logits that agree, and the page is what the cells say."""

import json
import re

import matrix
import numpy as np
import pytest
import runtimes
from architectures import exact_logits, make
from matrix import ARCHITECTURES

LOGITS = np.random.default_rng(0).normal(size=(5, 7)).astype(np.float32)


@pytest.fixture(autouse=True)
def cells(tmp_path, monkeypatch):
    """The file that collects cells: these tests must not fill real ones."""
    file = tmp_path / "cells.jsonl"
    monkeypatch.setenv("QCORE_CELLS", str(file))
    return lambda: [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []


def fill(ours=LOGITS, theirs=LOGITS, tolerance=1e-3):
    matrix.passed("gguf", "llama", "llama.cpp", recipe="int8", ours=ours, theirs=theirs, tolerance=tolerance)


def test_equal_logits_fill_a_cell(cells):
    fill(theirs=LOGITS + np.float32(2.5e-4))
    (cell,) = cells()
    assert cell["difference"] == pytest.approx(2.5e-4, rel=1e-3) and cell["refusal"] is None


@pytest.mark.parametrize(
    "theirs, tolerance, words",
    [
        (LOGITS + 2e-3, 1e-3, "differ by 0.002"),
        (LOGITS * np.nan, 1e-3, "not finite"),
        (LOGITS[:4], 1e-3, "logits (5, 7) and (4, 7)"),
        (LOGITS, 0.5, "proves nothing"),
    ],
    ids=["other logits", "NaN", "another shape", "a tolerance above everything"],
)
def test_a_wrong_cell_fails_and_is_not_recorded(theirs, tolerance, words, cells):
    with pytest.raises(AssertionError, match=re.escape(words)):
        fill(theirs=theirs, tolerance=tolerance)
    assert cells() == []


def test_a_refusal_is_a_sentence(cells):
    matrix.refused(
        "awq", "gpt2", "transformers", recipe="int4", error=ValueError("AWQ has no form for GPT-2.")
    )
    assert cells()[0]["refusal"] == "AWQ has no form for GPT-2."
    with pytest.raises(AssertionError):
        matrix.refused("awq", "gpt2", "transformers", recipe="int4", error=KeyError("bits"))
    with pytest.raises(AssertionError, match="'cpp' is none of"):
        matrix.refused("awq", "gpt2", "cpp", recipe="int4", error="AWQ has no form for GPT-2.")


def test_a_runtime_that_fails_is_looked_at_again_when_it_changes(cells):
    fails, differs = (
        matrix.Other("X cannot load GPT-2.", "'weight'"),
        matrix.Other("X computes other logits.", None),
    )

    def unread(found, why):
        matrix.unread("gptq", "gpt2", "transformers", recipe="int4", found=found, why=why)

    unread("no attribute 'weight'", fails)
    unread(LOGITS, differs)
    for found, why, words in (
        (LOGITS, fails, "is read now"),
        ("no attribute 'bias'", fails, "'bias'"),
        ("no attribute 'weight'", differs, "fails now"),
    ):
        with pytest.raises(AssertionError, match=words):
            unread(found, why)
    assert [cell["word"] for cell in cells()] == ["not read", "other logits"]
    text = matrix.tables(cells()[:1])
    assert "not read (1)" in text and "1. X cannot load GPT-2." in text


def test_the_page_is_written_from_merged_cells(tmp_path, monkeypatch, cells):
    page = tmp_path / "interop.md"
    page.write_text(f"# Title\n\n{matrix.BEGIN}\nold\n{matrix.END}\n\nThe end.\n")
    monkeypatch.setattr(matrix, "PAGE", page)
    monkeypatch.setattr(matrix, "KEPT", tmp_path / "cells.json")
    fill(theirs=LOGITS + np.float32(2.5e-4))
    matrix.refused("awq", "gpt2", "transformers", recipe="int4", error="AWQ has no form for GPT-2.")
    matrix.write(cells())
    fill()
    matrix.write(cells()[-1:])
    text = page.read_text()
    assert text.startswith("# Title\n") and text.endswith("The end.\n") and "old" not in text
    assert "| `int8` | llama.cpp | equal | 1e-03 |" in text
    assert "refused (1)" in text and "1. AWQ has no form for GPT-2." in text


def test_the_committed_page_is_what_the_cells_say():
    text = matrix.PAGE.read_text()
    shown = text.partition(matrix.BEGIN)[2].partition(matrix.END)[0].strip()
    assert shown == matrix.tables(matrix.read()).strip()


@pytest.mark.slow
def test_a_fresh_process_computes_the_logits_of_ordinary_checkpoints(originals, ids):
    """The oracle of all cells: transformers in memory and in a process of its own compute the same. What
    fails there comes back as a traceback."""
    folders = {name: originals(name) for name in ARCHITECTURES}
    theirs = runtimes.logits("transformers", {**folders, "nowhere": originals("llama") / "nowhere"}, ids)
    for name in ARCHITECTURES:
        assert np.array_equal(theirs[name], exact_logits(make(name), ids)), name
    assert "nowhere" in theirs["nowhere"] and "Traceback" in theirs["nowhere"]
