"""The call of lm-eval, against a stand-in for the library that records its arguments."""

import sys
from types import ModuleType, SimpleNamespace

import pytest

from qcore.base.errors import InputError, RunError, UnavailableError
from qcore.evaluation import harness

FOUND = {
    "results": {
        "facts": {
            "alias": "facts",
            "acc,none": 0.75,
            "acc_stderr,none": 0.1,
            "perplexity,none": 3.0,
            "perplexity_stderr,none": "N/A",
        }
    },
    "n-samples": {"facts": {"original": 64, "effective": 8}},
}


@pytest.fixture
def library(monkeypatch):
    """Install a stand-in for lm_eval with two tasks; return its recorded arguments."""
    calls = SimpleNamespace(wrapped=None, evaluated=None, folder=None, error=None)

    class TaskManager:
        all_tasks = ["facts", "arithmetic"]

        def __init__(self, include_path=None):
            calls.folder = include_path

    def simple_evaluate(**options):
        if calls.error:
            raise calls.error
        calls.evaluated = options
        return FOUND

    parts = {
        "lm_eval": {"simple_evaluate": simple_evaluate},
        "lm_eval.tasks": {"TaskManager": TaskManager},
        "lm_eval.models": {},
        "lm_eval.models.huggingface": {"HFLM": lambda **options: options},
    }
    for name, content in parts.items():
        module = ModuleType(name)
        module.__dict__.update(content)
        monkeypatch.setitem(sys.modules, name, module)
    return calls


def test_the_very_model_is_handed_over(library, tmp_path):
    model, tokenizer = object(), object()
    found = harness.run_tasks(model, tokenizer, ["facts"], folder=tmp_path, limit=8, batch=4, seed=3)
    given = library.evaluated
    assert (
        given["model"]["pretrained"] is model
        and given["model"]["tokenizer"] is tokenizer
        and given["model"]["batch_size"] == 4
    )
    assert (given["tasks"], given["limit"], given["random_seed"], library.folder) == (
        ["facts"],
        8,
        3,
        str(tmp_path),
    )
    assert found["limit"] == 8 and found["tasks"] == {
        "facts": {
            "documents": 8,
            "metrics": {
                "acc,none": {"value": 0.75, "stderr": 0.1},
                "perplexity,none": {"value": 3.0, "stderr": None},
            },
        }
    }


def test_an_unknown_task_is_answered_with_near_ones(library):
    with pytest.raises(InputError, match="Unknown lm-eval task 'fatcs'. Did you mean facts"):
        harness.check_tasks(["facts", "fatcs"])
    with pytest.raises(InputError, match="ls tasks"):
        harness.check_tasks(["x"])


def test_no_task_and_no_folder(library, tmp_path):
    with pytest.raises(InputError, match="No lm-eval task"):
        harness.check_tasks([])
    with pytest.raises(InputError, match="no folder"):
        harness.check_tasks(["facts"], tmp_path / "missing")


def test_what_the_library_says_when_it_fails_is_passed_on(library):
    library.error = ConnectionError("the data set cannot be reached\nand much more")
    with pytest.raises(
        RunError, match="could not do facts: ConnectionError: the data set cannot be reached$"
    ):
        harness.run_tasks(None, None, ["facts"])


def test_without_the_library(monkeypatch):
    monkeypatch.setitem(sys.modules, "lm_eval", None)
    monkeypatch.setitem(sys.modules, "lm_eval.tasks", None)
    with pytest.raises(UnavailableError, match="pip install lm_eval=="):
        harness.check_tasks(["facts"])
