"""The time of a step: phases that add up to the step, and a trace that contains the steps."""

import json

import pytest
import tiny

pytestmark = pytest.mark.usefixtures("own_home")
SHORT = ("--prompt-tokens", 16, "--new-tokens", 4, "--repeats", 1)


@pytest.fixture
def model(tmp_path):
    return str(tiny.checkpoint("llama", tmp_path / "llama"))


@pytest.mark.parametrize("recipe", ["int8", None], ids=["int8", "as it is"])
def test_the_phases_add_up_and_the_trace_holds_the_steps(said, model, tmp_path, recipe):
    words = [] if recipe is None else ["--recipe", recipe]
    out, trace = tmp_path / "out.json", tmp_path / "trace.json"
    status, printed, _ = said("profile", model, *words, *SHORT, "--out", trace, "--json", out)
    found = json.loads(out.read_text())
    assert status == 0 and "linear layers" in printed and str(trace) in printed
    parts = sum(found[name] for name in ("linears_s", "attention_s", "head_s", "rest_s"))
    assert parts == pytest.approx(found["step_s"]) and min(found["linears_s"], found["head_s"]) > 0
    assert found["linear_layers"] == 14  # seven in each of two blocks
    names = {event.get("name") for event in json.loads(trace.read_text())["traceEvents"]}
    assert {"qcore: prefill", "qcore: decoding step 1", "qcore: decoding step 4"} <= names
    assert found["record"]["command"].startswith(f"python -m qcore profile {model}")
    assert found["recipe"] == (recipe or "fp32")


def test_a_trace_that_cannot_be_written_is_refused_before_anything_is_loaded(said, model, tmp_path):
    status, _, error = said("profile", model, "--out", tmp_path / "no" / "trace.json")
    assert status == 2 and "Name a file in a folder that exists" in error and error.count("\n") == 1
