"""Every row of docs/reliability.md has a test, and the page lists the tests that there are."""

import json

import reliability


def test_every_row_has_a_test_and_every_mark_a_row():
    tests = reliability.marked()
    assert set(tests) <= set(reliability.rows()), "marks of rows that are not on the page"
    assert [row for row in reliability.rows() if not tests.get(row)] == [], "rows without a test"


def test_the_page_lists_the_tests_and_no_row_fails():
    text = reliability.PAGE.read_text()
    results = reliability.results_of(text)
    right = reliability.page(text, reliability.marked(), results)
    assert text == right, "run make reliability, or python tests/reliability.py for the lists alone"
    assert reliability.FAILS not in results.values()


def test_a_row_holds_if_every_test_of_it_ran_and_none_failed(tmp_path):
    path = tmp_path / "rows.jsonl"
    lines = [
        ("tests/a/test_a.py::test_one[x]", ["1"], "failed"),
        ("tests/a/test_a.py::test_one[x]", ["1"], "passed"),  # repeated after a fix
        ("tests/a/test_a.py::test_one[y]", ["1"], "skipped"),
        ("tests/a/test_a.py::test_two", ["1", "2"], "passed"),
        ("tests/a/test_a.py::test_three", ["2"], "failed"),
        ("tests/a/test_a.py::test_four", ["3"], "skipped"),
    ]
    path.write_text(
        "\n".join(json.dumps({"case": case, "rows": rows, "outcome": end}) for case, rows, end in lines)
    )
    found = reliability.outcomes(path)
    one, two, three, four = (f"a/test_a.py::test_{name}" for name in ("one", "two", "three", "four"))
    assert reliability.result("1", [one, two], found) == "holds (2)"
    assert reliability.result("2", [two, three], found) == reliability.FAILS
    assert reliability.result("3", [four], found) == reliability.MISSING
    assert reliability.result("1", [one, two, four], found) == reliability.MISSING
    assert reliability.result("4", [], found) == reliability.MISSING


def test_marks_are_found_on_files_tests_and_single_parameters(tmp_path):
    (tmp_path / "test_a.py").write_text(
        "import pytest\n"
        "@pytest.mark.row('1', '2')\ndef test_one(): pass\n"
        "@pytest.mark.parametrize('x', [1, pytest.param(2, marks=pytest.mark.row('3'))])\n"
        "def test_two(x): pass\n"
    )
    (tmp_path / "test_b.py").write_text(
        "import pytest\npytestmark = [pytest.mark.slow, pytest.mark.row('4', '1')]\ndef test_all(): pass\n"
    )
    one, two, every = "test_a.py::test_one", "test_a.py::test_two", "test_b.py::test_all"
    assert reliability.marked(tmp_path) == {"1": [one, every], "2": [one], "3": [two], "4": [every]}
