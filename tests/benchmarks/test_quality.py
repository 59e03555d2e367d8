"""The quality benchmark: comparisons drawn from rows, selection of rows, and the cache between runs."""

import json

import pytest

from benchmarks import quality, quality_cache, quality_plan, quality_table
from benchmarks.quality_plan import Method
from qcore.base.errors import InputError

NF4 = Method("bitsandbytes nf4", "own", "bnb-nf4")
PLAIN, GPTQ = (
    Method("int4-g64", "own", "int4-g64", own=True),
    Method("int4-g64-gptq", "own", "int4-g64-gptq", own=True),
)
LEARNED = Method("int3-g64-signround", "own", "int3-g64-signround", own=True, learned=True)
METHODS = [Method("fp32", "own", "fp32", own=True), PLAIN, GPTQ, LEARNED, NF4]


def row(name: str, bits: float, kl: float, seconds: float = 1.0, **more) -> dict:
    return {
        "name": name,
        "bits_per_weight": bits,
        "kl_mean": kl,
        "seconds": seconds,
        "perplexity": 20.0,
        "top1_agreement": 0.75,
        "others_busy": 0.0,
        "notes": [],
        **more,
    }


ROWS = [
    row("fp32", 32, 0.0),
    row("int4-g64", 4.31, 0.5),
    row("int4-g64-gptq", 4.31, 0.13, 170),
    row("int3-g64-signround", 3.31, 0.6),
    row("bitsandbytes nf4", 4.5, 0.4),
]


def found(rows=ROWS) -> dict[str, dict]:
    return {each["name"]: each for each in quality_plan.comparisons(rows, METHODS)}


def test_bars_take_the_smallest_loss_that_fits_and_keep_training_apart():
    plain, at4, at3 = (found()[bar.name] for bar in quality_plan.BARS)
    assert (plain["ours"], plain["holds"]) == ("int4-g64-gptq", True) and plain["value"] == pytest.approx(
        0.325
    )
    assert (at4["ours"], at4["holds"]) == ("int3-g64-signround", False) and at4["value"] == pytest.approx(1.5)
    assert at3["value"] == at4["value"] and at3["holds"] is False


def test_a_peer_stands_beside_our_recipes_of_its_size_alone():
    beside = "beside bitsandbytes nf4, within 0.1 bits"
    entry = found()[beside]
    assert (
        entry["holds"] is None and "of that size was not measured" in entry["why"]
    )  # 4.31 is too far from 4.5
    entry = found([*ROWS, row("fp32", 32, 0.0), row("int4-g64", 4.45, 0.39)])[beside]
    assert (entry["ours"], entry["holds"]) == ("int4-g64", True)
    entry = found([*ROWS[:2], row("int4-g64-gptq", 4.6, 0.4), ROWS[-1]])[beside]
    assert entry["holds"] is False  # equal is not lower


def test_time_limits_are_for_the_recipes_that_they_were_set_for():
    assert found()["seconds for int4-g64-gptq"]["holds"] is True
    slow = [*ROWS[:2], row("int4-g64-gptq", 4.31, 0.13, 181), ROWS[-1]]
    assert found(slow)["seconds for int4-g64-gptq"]["holds"] is False
    assert [name for name in found() if name.startswith("seconds")] == ["seconds for int4-g64-gptq"]


def test_without_the_yardstick_nothing_is_claimed():
    assert all(
        each["holds"] is None and "bitsandbytes nf4 was not measured" in each["why"]
        for each in found(ROWS[:-1]).values()
        if each["kind"] == "bar"
    )


def test_an_unknown_recipe_of_the_default_list_is_named_and_one_that_was_typed_is_refused(monkeypatch):
    monkeypatch.setattr(quality_plan, "OWN", ("int8", "int9-nonsense"))
    methods, unknown = quality_plan.own_methods(quality_plan.OWN)
    assert [method.name for method in methods] == ["fp32", "int8"] and "int9-nonsense" in unknown
    with pytest.raises(InputError, match="int4-g6x"):
        quality_plan.own_methods(["int4-g6x"])


def test_only_what_was_asked_for_and_the_baseline():
    assert [method.name for method in quality_plan.chosen(METHODS, ["int4*"])] == [
        "fp32",
        "int4-g64",
        "int4-g64-gptq",
    ]
    assert quality_plan.chosen(METHODS, []) == METHODS
    with pytest.raises(InputError, match="No row is called 'int5'.*bitsandbytes nf4"):
        quality_plan.chosen(METHODS, ["int5"])


def test_names_can_be_given_in_a_list():
    every = [method.name for method in quality_plan.PEERS]
    assert len(set(every)) == len(every) and not any("," in name or "*" in name for name in every)


def test_a_peer_that_is_not_installed_is_left_out_with_the_command_that_installs_it():
    reasons = quality_plan.left_out([Method("HQQ", "hqq", "4 64", ("hqq",)), *METHODS], ["torch"])
    assert list(reasons) == ["HQQ"] and "pip install" in reasons["HQQ"]


def test_a_row_is_kept_until_something_it_follows_from_changes(tmp_path, monkeypatch):
    conditions = {"digest": "d", "tokens": 8}
    name = quality_cache.key(PLAIN, conditions)
    assert quality_cache.read(tmp_path, PLAIN, name) is None
    quality_cache.write(tmp_path, PLAIN, name, ROWS[1])
    assert quality_cache.read(tmp_path, PLAIN, name) == ROWS[1]
    next(tmp_path.iterdir()).write_text("{half a")  # such as by a kill during the copy
    assert quality_cache.read(tmp_path, PLAIN, name) is None
    others = {
        quality_cache.key(GPTQ, conditions),
        quality_cache.key(PLAIN, conditions | {"tokens": 9}),
        quality_cache.key(NF4, conditions),
    }
    monkeypatch.setattr(
        quality_cache, "code", lambda part: "changed" * (part == "qcore/quantization/methods")
    )
    others.add(quality_cache.key(PLAIN, conditions))
    assert len(others | {name}) == 5


MIXED = Method("auto-4.25bpw-gptq", "own", "auto-4.25bpw-gptq", own=True)


@pytest.mark.parametrize("method", [*quality_plan.PEERS, PLAIN, MIXED], ids=lambda method: method.name)
def test_what_a_row_follows_from_exists(method):
    assert all(quality_cache.code(part) for part in quality_cache.sources(method))


def test_code_that_is_not_there_is_an_error():
    with pytest.raises(FileNotFoundError, match="qcore/nowhere"):
        quality_cache.code("qcore/nowhere")


def test_the_table_says_what_missed_what_is_missing_and_which_times_were_disturbed():
    rows = [*ROWS[:3], ROWS[3] | {"others_busy": 0.9, "notes": ["a remark"]}, ROWS[4]]
    result = {
        "rows": rows,
        "comparisons": quality_plan.comparisons(rows, METHODS),
        "left_out": {"HQQ int4-g64": "hqq not installed"},
        "own": [method.name for method in METHODS if method.own],
        "started_at": 0,
        "environment": {"cpu": "Some CPU (R)", "libraries": {"torch": "2"}},
        "conditions": {
            "threads": 2,
            "model": "m",
            "tokens": 8,
            "window": 4,
            "text": "t",
            "calibration_tokens": 3,
            "calibration": "c",
        },
        "file": "some.json",
    }
    shown = quality_table.text(result)
    line = {each.split("  ")[0]: each for each in shown.splitlines()}
    assert line["int3-g64-signround"].endswith("time disturbed") and not line["int4-g64-gptq"].endswith(
        "disturbed"
    )
    assert (
        line["int4-g64"].split()[-1] == "1.250" and line["bitsandbytes nf4"].split()[-1] == "1.000"
    )  # shares of nf4's loss
    assert line["without training, up to 4.35 bits"].endswith("holds")
    assert line["with learned rounding, up to 3.35 bits"].endswith("MISSED")
    assert line["beside bitsandbytes nf4, within 0.1 bits"].endswith("was not measured")
    assert "left out: HQQ int4-g64: hqq not installed" in shown and "int3-g64-signround: a remark" in shown
    page = quality_table.page(result)
    assert (
        "| `int4-g64-gptq` | 4.31 | 20.00 | 0.1300 | 75.0 % | 170.0 |" in page
        and "| bitsandbytes nf4 | 4.50 |" in page
    )
    assert quality_table.CHOICE in page and quality_table.CHOICE in quality_table.readme(result)
    assert quality_table.file_name(result).startswith("quality-some-cpu-r-1970-01-01")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--tokens", "1"], "--tokens is 1"),
        (["--minutes", "-1"], "--minutes is -1"),
        (["--recipes", "int4-g6x"], "int4-g6x"),
        (["--only", "nothing"], "No row is called"),
        (["--text", "no/such/file"], "no/such/file"),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else "",
)
def test_bad_input_is_one_sentence_and_status_2(arguments, message, monkeypatch, capsys, tmp_path):
    monkeypatch.setattr(
        "sys.argv", ["quality.py", "--cache", str(tmp_path), "--model", str(tmp_path / "none"), *arguments]
    )
    monkeypatch.setattr(quality.library, "resolve", lambda name: None)
    assert quality.main() == 2
    assert message in capsys.readouterr().err


def test_the_last_line_has_the_fields_that_others_read(monkeypatch, capsys, tmp_path):
    result = {
        "rows": ROWS,
        "comparisons": [],
        "left_out": {},
        "own": [],
        "started_at": 0,
        "environment": {"cpu": "c", "libraries": {}},
        "conditions": {
            "threads": 2,
            "model": "m",
            "tokens": 8,
            "window": 4,
            "text": "t",
            "calibration_tokens": 3,
            "calibration": "c",
        },
    }
    monkeypatch.setattr(quality, "run", lambda options: result)
    monkeypatch.setattr("sys.argv", ["quality.py", "--json", str(tmp_path / "out.json")])
    assert quality.main() == 0
    last = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert [list(each) for each in last] == [
        ["name", "bits_per_weight", "perplexity", "kl_mean", "top1_agreement", "seconds"]
    ] * len(ROWS)
    assert json.loads((tmp_path / "out.json").read_text()) == result
