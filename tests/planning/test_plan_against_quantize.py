"""The plan against what quantizing then stored and took: GPT-2, experts, tied and untied, sharded; in memory
and streamed; and the default model in a real run, peaks included."""

import json

import pytest
import tiny

from qcore.jobs import jobs
from qcore.library import outline
from qcore.planning import hindsight, plan
from qcore.recipes import parse
from qcore.verbs import quantize

KINDS = [*tiny.CONFIGS, "sharded bf16"]


@pytest.fixture(autouse=True)
def own_home(tmp_path, monkeypatch):
    """A cache folder of its own, but for the prepared models."""
    from qcore.base.home import home

    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "models").symlink_to((home() / "models").resolve())
    monkeypatch.setenv("QCORE_HOME", str(tmp_path / "home"))


def checkpoint(kind, folder):
    if kind != "sharded bf16":
        return tiny.checkpoint(kind, folder)
    tiny.model("llama").bfloat16().save_pretrained(folder, max_shard_size="60KB")
    tiny.tokenizer().save_pretrained(folder)
    assert len(list(folder.glob("model-*-of-*.safetensors"))) > 3
    return folder


@pytest.mark.parametrize("stream", [False, True], ids=["in memory", "streamed"])
@pytest.mark.parametrize("kind", KINDS)
def test_stored_bytes_are_those_that_quantize_reports_and_writes(kind, stream, tmp_path):
    model = str(checkpoint(kind, tmp_path / "model"))
    names = ["int8", "int4-g64", "nf4-g64-dq"]
    planned = {row.recipe: row for row in plan(model, names, kv=("fp32",)).rows}
    for name in names:
        found = quantize.run(model, parse(name), tmp_path / name, stream=stream, progress=lambda *_: None)
        assert planned[name].stored_bytes == found["stored_bytes"]
        assert planned[name].bits_per_weight == pytest.approx(found["bits_per_weight"], rel=1e-9)
        assert outline(tmp_path / name).nbytes == pytest.approx(
            found["stored_bytes"], rel=0.01
        )  # what the files' headers add up to
        saved = json.loads((tmp_path / name / "qcore.json").read_text())["ledger"]["rows"]
        assert sum(row["bytes_after"] for row in saved) == found["stored_bytes"]


@pytest.mark.slow
def test_the_default_models_bytes_and_peaks_are_as_planned(capsys):
    """Every run stores what was predicted beside what was measured: bytes within 1 %, peaks within 10 %."""
    options = dict(tokens=64, window=64, prompt_tokens=32, new_tokens=4, repeats=1, generate=False)
    rows = jobs.compare("smollm2-135m", ["fp32", "int8", "int4-g64"], **options)
    for row in rows:
        errors = hindsight.of_row(row)
        with capsys.disabled():
            print(
                f"\n{row['recipe']}: "
                + ", ".join(f"{figure} {100 * error:+.1f} %" for figure, error in errors.items()),
                end="",
            )
        for figure in ("stored_bytes", "peak_load_bytes", "peak_run_bytes"):
            assert abs(errors[figure]) <= hindsight.FIGURES[figure], (row["recipe"], figure, errors[figure])
