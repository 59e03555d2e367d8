"""Which rows get a verdict, and against which baseline."""

import pytest

from qcore.results.verdicts import with_verdicts

WINDOWS = {"window": 100, "stride": 100, "window_tokens": [100] * 6}
BASE = [300.0, 310.0, 305.0, 290.0, 330.0, 300.0]
DIVERGENCE = {"window_kl": [2.0] * 6, "harmful_flips": 9, "beneficial_flips": 3, "window_base_nll": BASE}


def row(recipe, more=0.0, divergence=None, status="ok", **spec):
    nll = [each + more + i / 10 for i, each in enumerate(BASE)] if more else BASE
    evaluation = {**WINDOWS, "window_nll": nll, "divergence": divergence}
    return {"recipe": recipe, "status": status, "record": {"spec": spec, "evaluation": evaluation}}


def outcomes(rows, margin=None):
    return [each["verdict"] and each["verdict"]["outcome"] for each in with_verdicts(rows, margin)]


def test_a_row_knows_its_baseline_by_itself():
    assert outcomes([row("int8", 20.0, DIVERGENCE)]) == ["worse"]


def test_rows_of_earlier_versions_take_it_from_the_row_of_fp32():
    old = {key: value for key, value in DIVERGENCE.items() if key != "window_base_nll"}
    assert outcomes([row("fp32"), row("int8", 20.0, old)]) == [None, "worse"]
    assert outcomes([row("fp32", status="failed"), row("int8", 20.0, old)]) == [None, None]


def test_failed_empty_and_fresh_rows_have_none():
    assert outcomes([]) == []
    assert (
        outcomes(
            [
                row("fp32"),
                row("int8", 20.0, DIVERGENCE, status="failed"),
                {"recipe": "int4", "status": "ok", "record": None},
            ]
        )
        == [None] * 3
    )
    assert outcomes([{"recipe": "int8", "status": "cancelled", "record": {}}]) == [None]


def test_windows_that_do_not_fit_and_numbers_that_are_none_have_none():
    other = row("int8", 20.0)
    other["record"]["evaluation"]["window_tokens"] = [50] * 12
    broken = row("int4", 20.0, DIVERGENCE)
    broken["record"]["evaluation"]["window_nll"] = [None] * 6
    assert outcomes([row("fp32"), other, broken]) == [None] * 3


@pytest.mark.parametrize(
    ("asked", "given", "outcome"),
    [(None, 0.5, "equivalent"), (0.5, None, "equivalent"), (0.01, 0.5, "worse")],
)
def test_the_margin_is_the_runs_or_the_one_asked_for(asked, given, outcome):
    spec = {} if given is None else {"margin": given}
    (judged,) = with_verdicts([row("int8", 20.0, DIVERGENCE, **spec)], asked)
    assert judged["verdict"]["outcome"] == outcome and judged["verdict"]["margin"] == (asked or given)
    assert list(judged)[-1] == "record"
