"""`python -m qcore plan` and `qcore.plan`: the table, JSON, and one sentence for each wrong input."""

import json

import pytest
import tiny

import qcore
from qcore.cli.main import main


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return str(tiny.checkpoint("llama", tmp_path_factory.mktemp("models") / "llama"))


pytestmark = pytest.mark.usefixtures("own_home")


def test_the_table_and_the_json(model, tmp_path, capsys):
    out = tmp_path / "plan.json"
    assert (
        main(
            [
                "plan",
                model,
                "--recipes",
                "fp32,int8",
                "--context",
                "100",
                "--users",
                "2",
                "--memory",
                "16GB",
                "--json",
                str(out),
            ]
        )
        == 0
    )
    text = capsys.readouterr().out
    assert "16.0 GB given" in text and "Speeds are unknown until they are timed: add --probe." in text
    assert [line.split()[0] for line in text.splitlines() if line.startswith(("fp32", "int8"))] == [
        "fp32",
        "int8",
    ]
    assert "Smallest known accelerator for fp32, int8:" in text
    found = json.loads(out.read_text())
    assert found["context"] == 100 and [(row["recipe"], row["kv"]) for row in found["rows"]] == [
        (recipe, kv) for recipe in ("fp32", "int8") for kv in ("fp32", "fp16", "int8", "int4")
    ]
    assert found["rows"][4]["stored_bytes"] == qcore.quantize(model, "int8").ledger.stored_bytes


@pytest.mark.slow
def test_the_probe_fills_in_speeds(model, capsys):
    assert (
        main(
            [
                "plan",
                model,
                "--recipes",
                "fp32,int8",
                "--probe",
                "--min-tokens-per-second",
                "1",
                "--max-kl",
                "9",
            ]
        )
        == 0
    )
    text = capsys.readouterr().out
    assert "Speeds probed with" in text and text.count("tok/s") >= 4
    rows = qcore.plan(model, ["int8"]).rows
    assert [bool(row.decode_tok_s) for row in rows] == [
        True,
        True,
        False,
        False,
    ]  # the native step reads no quantized cache


def test_a_cache_in_fewer_bits_is_shown_where_only_that_fits(model, capsys):
    rows = qcore.plan(model, ["int8"], users=10_000).rows
    between = (rows[0].run_bytes + rows[1].run_bytes) // 2
    assert main(["plan", model, "--recipes", "int8", "--users", "10000", "--memory", f"{between}B"]) == 0
    assert [line.split()[1] for line in capsys.readouterr().out.splitlines() if line.startswith("int8")] == [
        "fp16"
    ]
    assert main(["plan", model, "--recipes", "int8", "--kv", "int4"]) == 0
    assert "int8 with a int4 cache" in capsys.readouterr().out


@pytest.mark.parametrize(
    "arguments, words",
    [
        (["--memory", "plenty"], "is not an amount of memory"),
        (["--recipes", "int4-g46x"], "Did you mean"),
        (["--recipes", " "], "No recipe was given"),
        (["--context", "99999"], "only 512 positions"),
        (["--users", "0"], "users is 0"),
        (["--kv", "int9"], "Did you mean"),
        (["--max-kl", "-1"], "max-kl is -1"),
        (["--json", "/no/such/folder/x.json"], "there is no folder"),
    ],
    ids=lambda value: " ".join(value)[:30] if isinstance(value, list) else "",
)
def test_wrong_input_is_one_sentence(model, capsys, arguments, words):
    assert main(["plan", model, *arguments]) == 2
    said = capsys.readouterr().err.strip()
    assert words in said and "\n" not in said and "Traceback" not in said
