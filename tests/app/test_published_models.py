"""The whole of `compare` on models shaped like those that people download: requested on the page Quantize,
run from the command line with the same request, and shown on Quantize and Compare."""

import json
import math

import published
import pytest
from in_this_process import jobs_here  # noqa: F401 (fixture)
from opened import calm, open_page, plots, words

from qcore.jobs import jobs
from qcore.recipes.spec import RunSpec
from qcore.results.rows import FIGURE

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("home")]
RECIPES = ("fp32", "int8", "int4-g32-gptq", "nf4")
NUMBERS = dict(tokens=192, window=64, prompt_tokens=8, new_tokens=4)


@pytest.fixture
def files(tmp_path):
    """The text to score, calibration, prompts and questions, by their option."""
    (tmp_path / "text.txt").write_text("It was the best of tokens, it was the worst of tokens. " * 12)
    (tmp_path / "calibration.txt").write_text(published.TEXT * 12)
    (tmp_path / "prompts.txt").write_text("Once upon a time\nTwo and two make\n")
    question = {"question": "Two and two make", "choices": ["four", "a café"], "answer": 0}
    (tmp_path / "questions.jsonl").write_text(json.dumps(question) + "\n")
    return {
        "text": tmp_path / "text.txt",
        "calibration": tmp_path / "calibration.txt",
        "prompts": tmp_path / "prompts.txt",
        "choices": tmp_path / "questions.jsonl",
    }


@pytest.mark.parametrize("kind", published.BUILT)
def test_compare(kind, said, jobs_here, files, tmp_path, monkeypatch):  # noqa: F811
    model, out = published.checkpoint(kind, tmp_path / kind), tmp_path / "out.json"
    from_page = started_on_the_page(model, files["text"], monkeypatch)
    options = [f"--{name.replace('_', '-')}={value}" for name, value in (NUMBERS | files).items()]
    more = ["--calibration-tokens=512", "--repeats=1", "--generate-tokens=4", f"--json={out}"]
    status, printed, err = said("compare", model, f"--recipes={','.join(RECIPES)}", *options, *more)
    rows = json.loads(out.read_text())
    assert status == 0, [row["error"] for row in rows]
    (run,) = jobs.list_runs()
    spec = RunSpec.from_dict(run.request)
    assert (from_page.model, from_page.recipes) == (spec.model, spec.recipes)
    assert {name: getattr(from_page, name) for name in NUMBERS} == NUMBERS
    check_rows(rows, printed)
    for page, drawn in (("quantize", 0), ("compare", 6))[kind != "qwen3_5" :]:
        at = open_page(page, run=run.run_id)
        assert not at.error and not at.warning and plots(at) >= drawn, words(at)
        shown = words(at).replace("\\", "").replace("\N{WORD JOINER}", "")
        assert all(name in shown for name in RECIPES[1:]), shown
    towers = [
        row for row in rows[1]["record"]["ledger"]["rows"] if "not part of the text" in (row["reason"] or "")
    ]
    assert bool(towers) == (kind in ("qwen3_5", "gemma4", "mistral3"))


def started_on_the_page(model, text, monkeypatch) -> RunSpec:
    """Fill in the page Quantize, press Start, and return what was submitted."""
    submitted = []
    with monkeypatch.context() as patch:
        patch.setattr(jobs, "submit", lambda spec, **more: submitted.append(spec) or "20260101-000000-000000")
        at = open_page("quantize")
        at.segmented_control(key="quantize.source").set_value("Folder or file")
        for pills in at.pills:
            pills.set_value([])
        calm(at.segmented_control(key="quantize.text").set_value("File").run())
        at.text_input(key="quantize.path").set_value(str(model))
        at.text_input(key="quantize.more").set_value(", ".join(RECIPES))
        at.text_input(key="quantize.file").set_value(str(text))
        for name, value in NUMBERS.items():
            at.number_input(key=f"quantize.{name}").set_value(value)
        calm(at.run())
        assert plots(at) == 1 and not at.warning and not at.error, words(at)  # the memory estimate
        calm(at.button(key="quantize.start").click().run())
    (spec,) = submitted
    return spec.absolute()


def check_rows(rows: list[dict], printed: str) -> None:
    """Every figure is there; the recipes lose little, and 8 bits less than 4."""
    base, int8, gptq, nf4 = rows
    for row in rows:
        assert row["status"] == "ok"
        assert all(isinstance(row[key], (int, float)) and math.isfinite(row[key]) for key in FIGURE), row
        assert len(row["record"]["generations"]) == 2 and row["choices"]["questions"] == 1
        assert row["record"]["predicted"]["stored_bytes"] == pytest.approx(row["stored_bytes"], rel=0.01)
    for row in (int8, gptq, nf4):
        assert row["verdict"]["sentence"] in printed and row["coverage"] > 0.2
    assert base["kl_mean"] == 0 < int8["kl_mean"] < min(gptq["kl_mean"], nf4["kl_mean"])
    assert max(gptq["kl_mean"], nf4["kl_mean"]) < 1
    assert base["stored_bytes"] > int8["stored_bytes"] > gptq["stored_bytes"]
