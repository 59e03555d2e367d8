"""The command line where there is no home folder, on ASCII terminals and full devices."""

import io
import json
import pwd
import subprocess
import sys

import pytest

from qcore.base.errors import InputError
from qcore.cli import output
from qcore.cli.main import main
from qcore.models.names import classify
from qcore.results.folder import RunFolder


@pytest.fixture
def nobody(monkeypatch):
    """A user whom the system does not know, without HOME."""

    def unknown(which):
        raise KeyError(which)

    monkeypatch.delenv("HOME", raising=False)
    monkeypatch.setattr(pwd, "getpwuid", unknown)
    monkeypatch.setattr(pwd, "getpwnam", unknown)


@pytest.mark.row("F12")
@pytest.mark.parametrize("chosen", [None, "", "~", "~nobody", "~nobody/cache"])
@pytest.mark.parametrize("line", ["runs", "models", "runs show 20260101-000000-000001"])
def test_no_home_is_one_sentence(said, monkeypatch, nobody, chosen, line):
    if chosen is None:
        monkeypatch.delenv("QCORE_HOME")
    else:
        monkeypatch.setenv("QCORE_HOME", chosen)
    status, out, err = said(*line.split())
    assert (status, out.count("\n") == 0 or line == "models") == (2, True)
    assert len(err.splitlines()) == 1 and err.startswith("The cache folder ") and "Set QCORE_HOME" in err


@pytest.mark.row("F12")
@pytest.mark.parametrize("name", ["~nobody/model", "~/model", "~nobody/model.gguf"])
def test_a_name_in_an_unknown_home_is_one_sentence(nobody, name):
    with pytest.raises(InputError, match="knows no such home folder"):
        classify(name)


@pytest.mark.row("F12")
def test_what_ascii_does_not_hold_is_replaced(own_home, monkeypatch):
    folder = RunFolder("20260101-000000-000001", new=True)
    folder.write("status.json", {"state": "done", "created_at": 1.0})
    folder.write("spec.json", {"model": "größe…", "recipes": []})
    stream = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    monkeypatch.setattr(sys, "stdout", stream)
    assert main(["runs"]) == 0
    stream.flush()
    assert b"gr??e?" in stream.buffer.getvalue()


@pytest.mark.row("F12")
def test_json_on_an_ascii_output_is_complete(monkeypatch):
    stream, value = io.TextIOWrapper(io.BytesIO(), encoding="ascii"), {"größe": "…\u202e \U0001f600"}
    monkeypatch.setattr(sys, "stdout", stream)
    output.write_output(value, "-", "a table")
    stream.flush()
    assert json.loads(stream.buffer.getvalue()) == value


@pytest.mark.row("F12", "33")
@pytest.mark.parametrize("command", ["--version", "models"])
def test_a_full_device_is_one_sentence(command):
    with open("/dev/full", "w") as full:
        line = [sys.executable, "-m", "qcore", command]
        done = subprocess.run(line, stdout=full, stderr=subprocess.PIPE, text=True)
    assert done.returncode == 1
    assert done.stderr == "The output cannot be written: No space left on device.\n"


@pytest.mark.row("F12", "33")
def test_messages_to_a_full_device_are_no_error():
    with open("/dev/full", "w") as full:
        line = [sys.executable, "-m", "qcore", "comapre"]
        assert subprocess.run(line, stdout=subprocess.PIPE, stderr=full).returncode == 2
