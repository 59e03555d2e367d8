import csv
import io
import json
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qcore.results import report
from qcore.results.rows import FIGURE, FIGURES, ROW_KEYS, RunRecord

VALUES = dict(
    zip(
        FIGURE,
        (538_060_032, 4.3125, 0.7891, 14.704, 0.0123, 0.9612, 305.2, 13.04, 0.4196, 1.2e9, 1.1e9, 2.5),
        strict=True,
    )
)
OK = {
    "recipe": "int4-g64",
    "status": "ok",
    "error": None,
    **VALUES,
    "record": {"model": "m", "text": {"name": "=t", "sha256": "0"}},
}
FAILED = {
    **dict.fromkeys(ROW_KEYS),
    "recipe": "bnb-nf4",
    "status": "failed",
    "error": "It was killed.",
    "record": {},
}


@pytest.mark.parametrize(
    ("function", "value", "text"),
    [
        (report.human_bytes, 0, "0 B"),
        (report.human_bytes, 999, "999 B"),
        (report.human_bytes, 1000, "1.00 kB"),
        (report.human_bytes, 999_600, "1.00 MB"),
        (report.human_bytes, 538_060_032, "538 MB"),
        (report.human_bytes, 1.2e15, "1,200 TB"),
        (report.human_bytes, None, "–"),
        (report.human_number, 0, "0"),
        (report.human_number, 4.3125, "4.31"),
        (report.human_number, 0.00123, "0.00123"),
        (report.human_number, 9.9996, "10.0"),
        (report.human_number, 12345.6, "12,346"),
        (report.human_number, 1.5e-7, "1.5e-07"),
        (report.human_number, -2.5, "-2.50"),
        (report.human_number, 1e300, "1e+300"),
        (report.human_seconds, 0.0123, "12.3 ms"),
        (report.human_seconds, 2.345, "2.3 s"),
        (report.human_seconds, 59.96, "1 min 00 s"),
        (report.human_seconds, 125, "2 min 05 s"),
        (report.human_seconds, 3725, "1 h 02 min"),
        (report.human_percent, 0.9612, "96.1 %"),
        (report.human_perplexity, 14.704, "14.70"),
        (report.human_perplexity, 100000.4, "100,000"),
    ],
)
def test_numbers_as_text(function, value, text):
    assert function(value) == text


@given(st.floats(-1e300, 1e300))
def test_a_number_as_text_stays_near_the_number(value):
    text = report.human_number(value).replace(",", "")
    assert math.isclose(float(text), value, rel_tol=0.006, abs_tol=1e-320)


def test_table_has_units_values_and_the_error_of_what_failed():
    text = report.table([OK, FAILED])
    head, rule, ok, failed, error = text.splitlines()
    assert "decode tok/s" in head and set(rule) == {"-", " "}
    assert "538 MB" in ok and "14.70" in ok and "96.1 %" in ok
    assert failed.split() == ["bnb-nf4", "failed"] and error == "bnb-nf4 failed: It was killed."


@pytest.mark.row("16")
def test_table_shows_control_characters_instead_of_obeying_them():
    text = report.table([{**FAILED, "error": "\x1b[31mred\u202e\x00\n"}])
    assert "\\x1b[31mred\\u202e\\x00\\n" in text


@pytest.mark.row("16")
@given(st.text(st.characters()))
def test_visible_text_never_controls_a_terminal(text):
    assert (
        report.visible(text).isprintable()
        or any(c in text for c in "\u2028\u2029\u00a0")
        or not report.visible(text).isascii()
    )


def read_csv(text):
    return list(csv.DictReader(io.StringIO(text, newline="")))


def test_a_speed_beside_other_work_is_marked():
    disturbed, quiet = ({**OK, "record": {"throughput": {"others_share": share}}} for share in (0.234, 0.07))
    mark = "int4-g64: measured beside other work: other processes took 23.4 % of the processor."
    assert report.table([disturbed]).splitlines()[-1] == mark
    assert "other work" not in report.table([quiet, OK])  # OK was measured before shares were recorded
    shares = [row["others_share"] for row in read_csv(report.to_csv([disturbed, quiet, OK, FAILED]))]
    assert shares == ["0.234", "0.07", "", ""]


VERDICT = {
    "outcome": "worse",
    "sentence": "Worse.",
    "margin": 0.01,
    "ratio": {"estimate": 1.5, "low": 1.4, "high": 1.6},
    "kl": {"estimate": 0.03, "low": 0.02, "high": 0.04},
    "flips": {"harmful": 9, "beneficial": 3, "p": 0.146},
}


def test_table_has_the_verdict_as_a_word_and_as_a_sentence():
    lines = report.table(
        [{**OK, "recipe": "fp32", "verdict": None}, {**OK, "verdict": VERDICT}, FAILED]
    ).splitlines()
    assert (
        lines[0].split()[-1] == "verdict"
        and lines[3].split()[-1] == "worse"
        and lines[2].split()[-1] == "–"
        and "worse" not in lines[4]
    )
    assert lines[5] == (
        "int4-g64: Worse. KL 0.0300 nats per token (0.0200 to 0.0400); 9 harmful and 3 "
        "beneficial flips (McNemar p = 0.15)."
    )
    assert lines[6].startswith("bnb-nf4 failed")
    assert "verdict" not in report.table([{**OK, "verdict": None}, FAILED])


SHARE = {"right": 53, "estimate": 0.828125, "low": 0.7179, "high": 0.9012}
CHOICES = {
    "name": "q",
    "sha256": "0",
    "questions": 64,
    "chance": 0.25,
    "accuracy": SHARE,
    "accuracy_by_length": {**SHARE, "right": 51},
    "lost_and_gained": {"lost": 4, "gained": 1, "p": 0.375},
    "lost_and_gained_by_length": {"lost": 0, "gained": 0, "p": 1.0},
}


def test_table_and_csv_have_the_answers():
    lines = report.table([{**OK, "choices": CHOICES}, {**OK, "choices": None}, FAILED]).splitlines()
    assert lines[0].split()[-1] == "questions" and lines[2].endswith("82.8 %") and lines[3].endswith("–")
    assert lines[5] == (
        "int4-g64: 53 of 64 questions right (83 %, 95 % interval 72 % to 90 %; guessing 25 %), 51 by length; "
        "against the baseline 4 lost and 1 gained (McNemar p = 0.38); by length 0 lost "
        "and 0 gained (McNemar p = 1)."
    )
    asked, not_asked = read_csv(report.to_csv([{**OK, "choices": CHOICES}, FAILED]))
    assert asked["choices"] == "0.828125" and not_asked["choices"] == ""


def test_csv_has_the_verdict():
    judged, plain = read_csv(report.to_csv([{**OK, "verdict": VERDICT}, FAILED]))
    assert [judged[name] for name in report.VERDICT_CELLS] == ["worse", "1.5", "1.4", "1.6", "0.01"]
    assert [plain[name] for name in report.VERDICT_CELLS] == [""] * 5


def test_csv_has_every_figure_unrounded():
    ok, failed = read_csv(report.to_csv([OK, FAILED]))
    assert float(ok["perplexity"]) == 14.704 and int(ok["stored_bytes"]) == 538_060_032
    assert set(ROW_KEYS) - {"record"} <= set(ok) and ok["text"] == "'=t"
    assert failed["perplexity"] == "" and failed["error"] == "It was killed."


@pytest.mark.row("17")
@pytest.mark.parametrize(
    "cell", ["=1+1", "+1", "-1", "@x", "\tx", "\rx", "\n=1", "＝1", "=cmd|' /C calc'!A0"]
)
def test_csv_escapes_what_a_spreadsheet_would_run(cell):
    (found,) = read_csv(report.to_csv([{**FAILED, "error": cell}]))
    assert found["error"] == "'" + cell
    assert json.loads(report.to_json([{**FAILED, "error": cell}]))[0]["error"] == cell


@pytest.mark.parametrize("cell", [-1.5, 0, None, "plain", "a=b"])
def test_csv_leaves_the_rest_alone(cell):
    assert report.escape_cell(cell) is cell


def test_json_has_no_nan():
    assert json.loads(report.to_json({"a": (1.0, float("nan"))})) == {"a": [1.0, None]}


def test_every_figure_of_a_row_is_listed_once_and_in_the_rows_order():
    assert [figure.key for figure in FIGURES] == [key for key in ROW_KEYS if key in FIGURE]
    others = {"recipe", "status", "error", "choices", "record"}
    assert {*FIGURE, *others} == set(ROW_KEYS)
    assert len({figure.heading for figure in FIGURES}) == len(FIGURES)


def test_conditions_in_downloads_are_keys_of_the_record():
    assert set(report.RECORD_CELLS) <= set(RunRecord.__annotations__)


def test_tables_of_numbers_and_text_show_the_same_figure():
    assert [figure.heading for figure in FIGURES][:4] == [
        "stored, MB",
        "bits/weight",
        "coverage, %",
        "perplexity",
    ]
    shown = {key: f"{VALUES[key] * figure.scale:.{figure.decimals}f}" for key, figure in FIGURE.items()}
    assert shown["stored_bytes"] == "538.1" and shown["top1_agreement"] == "96.1" and shown["ttft_s"] == "420"
    text = {key: report.human_figure(figure, VALUES[key]) for key, figure in FIGURE.items()}
    assert text["stored_bytes"] == "538 MB" and text["top1_agreement"] == "96.1 %"
    assert text["ttft_s"] == "420 ms" and text["perplexity"] == "14.70" and text["decode_tok_s"] == "13.0"
