"""Where work runs: an invalid engine, address or cluster is one sentence, before work starts."""

import importlib.util
import socket

import pytest
import tiny

from qcore.base.errors import InputError, UnavailableError
from qcore.base.executor import Executor
from qcore.cli import main
from qcore.jobs import jobs


@pytest.mark.parametrize(
    ("name", "address", "words"),
    [
        ("rye", None, "Did you mean ray"),
        ("local", "auto", "Choose the engine ray"),
        ("ray", "ray://host:10001", "is not that of a Ray"),
        ("ray", "", "is not that of"),
        ("ray", "host", "is not that of"),
        ("ray", "host:port", "is not that of"),
        ("ray", "a b:6379", "is not that of"),
    ],
)
def test_what_is_no_engine_or_address_is_one_sentence(name, address, words):
    with pytest.raises(InputError, match=words) as error:
        Executor(name, address)
    assert "\n" not in str(error.value)


def test_an_address_where_nobody_listens():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        with pytest.raises(UnavailableError, match="No Ray cluster answers at 127.0.0.1"):
            Executor("ray", f"127.0.0.1:{free.getsockname()[1]}").check()


def test_without_ray_the_sentence_says_how_to_install_it(monkeypatch):
    found = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "ray" else found(name))
    with pytest.raises(UnavailableError, match="requirements-ray.txt"):
        Executor("ray", "auto").check()
    Executor().check()


def test_the_command_line_starts_nothing_that_cannot_run(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("QCORE_HOME", str(tmp_path / "home"))
    model = str(tiny.checkpoint("llama", tmp_path / "llama"))
    out = str(tmp_path / "out")
    for arguments, words in (
        (["compare", model, "--engine", "rye"], "Did you mean ray"),
        (["compare", model, "--address", "127.0.0.1:6379"], "Choose the engine ray"),
        (["compare", model, "--engine", "ray", "--address", "127.0.0.1:1"], "No Ray cluster answers"),
        (
            [
                "quantize",
                model,
                "--recipe",
                "int8",
                "--out",
                out,
                "--engine",
                "ray",
                "--address",
                "127.0.0.1:1",
            ],
            "Stream it",
        ),
        (
            [
                "quantize",
                model,
                "--recipe",
                "int8",
                "--out",
                out,
                "--stream",
                "--engine",
                "ray",
                "--address",
                "127.0.0.1:1",
            ],
            "No Ray cluster",
        ),
    ):
        assert main.main(arguments) == 2
        said = capsys.readouterr().err
        assert words in said and said.count("\n") == 1, said
    assert jobs.list_runs() == []


def test_the_same_recipes_on_several_models(tmp_path, monkeypatch, capsys):
    """One queued run per model; the JSON holds all rows."""
    import json

    submitted, rows = [], {"1": [{"recipe": "int8", "model": "a"}], "2": [{"recipe": "int8", "model": "b"}]}
    one, two = (str(tiny.checkpoint(kind, tmp_path / kind)) for kind in ("llama", "gpt2"))
    monkeypatch.setattr(
        jobs,
        "submit",
        lambda spec, engine: submitted.append((spec.model, spec.recipes, engine)) or str(len(submitted)),
    )
    monkeypatch.setattr("qcore.cli.compare.follow", lambda run_id, json: int(run_id) - 1)
    monkeypatch.setattr(jobs, "rows", rows.get)
    monkeypatch.setattr(jobs, "status", lambda run_id: jobs.JobStatus(run_id, "done"))
    assert (
        main.main(["compare", one, "--also", two, "--recipes", "int8", "--json", str(tmp_path / "out.json")])
        == 1
    )
    assert [model for model, _, _ in submitted] == [one, two] and submitted[0][1:] == submitted[1][1:]
    assert json.loads((tmp_path / "out.json").read_text()) == rows["1"] + rows["2"]
