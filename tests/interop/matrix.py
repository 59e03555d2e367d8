"""The matrix of docs/interop.md: which architecture, exported to which target, computes the same in which
runtime.

A test fills a cell by one of three calls, and fails itself if the cell is wrong:

    passed(target, architecture, runtime, recipe=…, ours=…, theirs=…, tolerance=…)   logits agree
    refused(target, architecture, runtime, recipe=…, error=…)                        the export is refused
    unread(target, architecture, runtime, recipe=…, found=…, why=…)                  the runtime fails

`make test-interop` collects the cells of all processes in the file that QCORE_CELLS names. Then it runs this
file, which merges them into cells.json and writes docs/interop.md. Cells that a run did not reach keep their
old values, so part of the tests may be repeated alone.
"""

from __future__ import annotations

import json
import os
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import NotRequired, TypedDict

import numpy as np

ROOT = Path(__file__).parent.parent.parent
KEPT, PAGE = Path(__file__).with_name("cells.json"), ROOT / "docs" / "interop.md"
BEGIN, END = "<!-- cells: written by make test-interop -->", "<!-- end of cells -->"
TARGETS = {
    "qcore": "a folder that qcore saved",
    "gguf": "a GGUF file",
    "compressed-tensors": "compressed-tensors, pack-quantized",
    "gptq": "GPTQ",
    "awq": "AWQ",
    "bnb": "bitsandbytes",
    "mlx": "MLX",
}
ARCHITECTURES = {
    "llama": "Llama",
    "llama-tied": "Llama, tied",
    "llama-bias": "Llama, biases",
    "qwen2": "Qwen2",
    "qwen3": "Qwen3",
    "gemma": "Gemma",
    "mixtral": "Mixtral",
    "gpt2": "GPT-2",
}
GGUF_ARCHITECTURES = {  # what llama.cpp computes besides those
    "llama3": "Llama 3.1 (scaled positions)",
    "mistral": "Mistral",
    "qwen2-moe": "Qwen2-MoE",
    "qwen3-moe": "Qwen3-MoE",
    "olmoe": "OLMoE",
    "gemma2": "Gemma 2",
    "gemma3": "Gemma 3",
    "phi3": "Phi-3",
}
COLUMNS = ARCHITECTURES | GGUF_ARCHITECTURES
RUNTIMES = {
    "transformers": "transformers",
    "llama.cpp": "llama.cpp",
    "ik_llama.cpp": "ik_llama.cpp",
    "gptqmodel": "GPTQModel",
    "mlx-lm": "mlx-lm",
    "vllm": "vLLM",
}


class Cell(TypedDict):
    """One cell: the largest absolute difference of a logit and the tolerance, or the sentence of a
    refusal."""

    target: str
    recipe: str
    architecture: str
    runtime: str
    difference: float | None
    tolerance: float | None
    refusal: str | None
    word: NotRequired[str]  # before the number of the sentence, if not "refused"


@dataclass(frozen=True)
class Other:
    """The reason why a runtime does not compute the logits of an export, one sentence for the page. `words`
    stand in its traceback; None if it computes other logits."""

    sentence: str
    words: str | None


def passed(
    target: str,
    architecture: str,
    runtime: str,
    *,
    recipe: str,
    ours: np.ndarray,
    theirs: np.ndarray,
    tolerance: float,
    flipped: float | None = None,
) -> None:
    """Fill a cell with the largest difference between two arrays of logits (T, V). Fail above `tolerance`,
    for logits that are not finite, and for logits so alike that a wrong model could pass.

    A runtime that rounds inputs to 8 bits may round one of them to the other side, which moves all logits of
    later positions a little. With `flipped`, the root mean square of the differences must hold `tolerance`,
    and the largest `flipped`.
    """
    ours, theirs = np.asarray(ours, np.float64), np.asarray(theirs, np.float64)
    assert ours.shape == theirs.shape and ours.ndim == 2, f"logits {ours.shape} and {theirs.shape}"
    assert np.isfinite(theirs).all(), f"{runtime} computed logits that are not finite"
    assert ours.std() > 20 * tolerance, "the logits hardly differ from each other, so the test proves nothing"
    difference = float(np.abs(ours - theirs).max())
    where = f"{architecture} as {target} {recipe} in {runtime}"
    if flipped is not None:
        mean = float(np.sqrt(np.square(ours - theirs).mean()))
        assert mean <= tolerance, (
            f"{where}: logits differ by {mean:.3g} in the mean, tolerance {tolerance:.3g}"
        )
    most = tolerance if flipped is None else flipped
    assert difference <= most, f"{where}: logits differ by {difference:.3g}, tolerance {most:.3g}"
    _record(target, architecture, runtime, recipe, difference=difference, tolerance=most)


def refused(target: str, architecture: str, runtime: str, *, recipe: str, error: BaseException | str) -> None:
    """Fill a cell with the sentence of a refusal. Fail if that is no sentence of its own."""
    sentence = str(error).strip()
    assert sentence.endswith(".") and len(sentence) > 20 and "\n" not in sentence, sentence
    _record(target, architecture, runtime, recipe, refusal=sentence)


def unread(target: str, architecture: str, runtime: str, *, recipe: str, found: object, why: Other) -> None:
    """Fill a cell of a runtime that cannot load the export, or computes something else, with the reason. Fail
    if `found`, the logits or the runtime's traceback, is something else by now: the cell is then out of
    date."""
    where = f"{architecture} as {target} {recipe} in {runtime}"
    if why.words is None:
        assert not isinstance(found, str), f"{where} fails now: {found}"
    else:
        assert isinstance(found, str), f"{where} is read now: compare its logits"
        assert why.words in found, found
    word = "other logits" if why.words is None else "not read"
    _record(target, architecture, runtime, recipe, refusal=why.sentence, word=word)


def _record(
    target: str,
    architecture: str,
    runtime: str,
    recipe: str,
    *,
    difference: float | None = None,
    tolerance: float | None = None,
    refusal: str | None = None,
    word: str | None = None,
) -> None:
    for value, known in ((target, TARGETS), (architecture, COLUMNS), (runtime, RUNTIMES)):
        assert value in known, f"{value!r} is none of {', '.join(known)}; add it to matrix.py"
    cell = Cell(
        target=target,
        recipe=recipe,
        architecture=architecture,
        runtime=runtime,
        difference=difference,
        tolerance=tolerance,
        refusal=refusal,
    )
    if word:
        cell["word"] = word
    if file := os.environ.get("QCORE_CELLS"):
        with open(file, "a") as cells:  # several processes append: one write per line
            cells.write(json.dumps(cell) + "\n")


# -- the page ------------------------------------------------------------------------------------------------


def key(cell: Cell) -> tuple[int, str, int, int]:
    """Return what identifies a cell; also the order of cells."""
    return (
        list(TARGETS).index(cell["target"]),
        cell["recipe"],
        list(RUNTIMES).index(cell["runtime"]),
        list(COLUMNS).index(cell["architecture"]),
    )


def read() -> list[Cell]:
    """Return the cells of the last runs."""
    return json.loads(KEPT.read_text()) if KEPT.exists() else []


def merge(old: list[Cell], new: list[Cell]) -> list[Cell]:
    """Return `old` with the cells that `new` has replaced, in order."""
    cells = {key(cell): cell for cell in [*old, *new]}
    return [cells[each] for each in sorted(cells)]


def tables(cells: list[Cell]) -> str:
    """Return Markdown: a table per target, with the sentences of its refusals below."""
    parts = []
    for target, title in TARGETS.items():
        own = [cell for cell in cells if cell["target"] == target]
        if not own:
            continue
        sentences: list[str] = []
        columns = [name for name in COLUMNS if any(cell["architecture"] == name for cell in own)]
        lines = [
            "| recipe | runtime | " + " | ".join(COLUMNS[name] for name in columns) + " | tolerance |",
            "| --- | --- |" + " --- |" * (len(columns) + 1),
        ]
        for recipe, runtime in dict.fromkeys((cell["recipe"], cell["runtime"]) for cell in own):
            row = {
                cell["architecture"]: cell
                for cell in own
                if (cell["recipe"], cell["runtime"]) == (recipe, runtime)
            }
            texts = [_text(row.get(name), sentences) for name in columns]
            limits = sorted({cell["tolerance"] for cell in row.values() if cell["tolerance"] is not None})
            ends = dict.fromkeys(f"{each:.0e}" if each else "0" for each in (limits[:1] + limits[-1:]))
            limit = " to ".join(ends) or "–"
            lines.append(f"| `{recipe}` | {RUNTIMES[runtime]} | " + " | ".join(texts) + f" | {limit} |")
        notes = [f"{i}. {sentence}" for i, sentence in enumerate(sentences, 1)]
        parts.append(
            "\n".join([f"### {title[0].upper()}{title[1:]}", "", *lines, *(["", *notes] if notes else [])])
        )
    return "\n\n".join(parts)


def _text(cell: Cell | None, sentences: list[str]) -> str:
    if cell is None:
        return "not tested"
    if cell["refusal"] is None:
        return "equal" if not cell["difference"] else f"{cell['difference']:.0e}"
    if cell["refusal"] not in sentences:
        sentences.append(cell["refusal"])
    return f"{cell.get('word', 'refused')} ({sentences.index(cell['refusal']) + 1})"


def write(new: list[Cell]) -> None:
    """Merge `new` into cells.json and write the tables of docs/interop.md."""
    cells = merge(read(), new)
    KEPT.write_text(json.dumps(cells, indent=1, ensure_ascii=False) + "\n")
    before, _, rest = PAGE.read_text().partition(BEGIN)
    PAGE.write_text(f"{before}{BEGIN}\n\n{tables(cells)}\n\n{END}{rest.partition(END)[2]}")


if __name__ == "__main__":
    write([json.loads(line) for line in Path(sys.argv[1]).read_text().splitlines()])
