"""The arithmetic of the speed benchmark, and its messages for missing packages and ratios."""

import pytest

from benchmarks import marks, plan, quality_table, table
from benchmarks.plan import Figure, Process, Ratio, Samples, Stage
from qcore.base.errors import InputError

OURS, THEIRS = Figure("own", "a", "decode"), Figure("peer", "b", "decode")
RATIO = Ratio("fast", "decode, a against b", OURS, THEIRS, 1.5)
STAGE = Stage(
    "a stage",
    3,
    (Process("own", "own", ("a",)), Process("peer", "peer", ("b",), ("some-package",))),
    (RATIO,),
)


def test_a_ratio_is_the_median_of_those_within_a_round():
    samples = Samples()
    for ours, theirs in (
        (10, 10),
        (30, 10),
        (400, 200),
    ):  # the machine became ten times faster in the last round
        samples.add("own", "a", {"decode": ours})
        samples.add("peer", "b", {"decode": theirs})
    assert samples.ratio(RATIO) == 2


def test_rounds_go_there_and_back():
    assert plan.turns(STAGE, 0) == [("own", "a"), ("peer", "b")]
    assert plan.turns(STAGE, 1) == [("peer", "b"), ("own", "a")]


def test_only_what_was_asked_for_is_run():
    (stage,) = plan.chosen(["decode_nf4*"])
    assert [ratio.name for ratio in stage.ratios] == ["decode_nf4_vs_int4"]
    assert [(process.name, process.items) for process in stage.processes] == [
        ("qcore", (plan.GROUPED, plan.NF4))
    ]
    assert [ratio.name for stage in plan.chosen([]) for ratio in stage.ratios] == plan.ratio_names()


def test_an_unknown_ratio_is_answered_with_the_known_ones():
    with pytest.raises(InputError, match="No ratio is called 'decode_int5'.*gemv_int4_bandwidth_share"):
        plan.chosen(["decode_int5"])


def test_a_missing_peer_is_named_with_the_command_that_installs_it():
    with pytest.raises(InputError, match="some-package.*pip install -r benchmarks/requirements.txt"):
        plan.check_installed([STAGE], ["torch"])
    plan.check_installed([STAGE], ["some-package"])


def test_the_table_says_what_is_below_its_bar_and_what_disturbed():
    comparison = {
        "name": "fast",
        "measure": RATIO.measure,
        "bar": 1.5,
        "unit": "tok/s",
        "ours": 120.0,
        "theirs": 100.0,
        "ratio": 1.2,
    }
    result = {
        "comparisons": [comparison, comparison | {"ratio": 1.6, "ours": 160.0}],
        "environment": {"cpu": "Some CPU", "flags": ["avx2"], "libraries": {"torch": "2"}},
        "conditions": {"threads": 2, "model": "m", "prompt_tokens": 1, "steps": 2, "generate_tokens": 3},
        "others_busy": {"median": 0.9, "most": 1.0},
        "started_at": 0,
        "file": "some.json",
    }
    lines = table.text(result).splitlines()
    assert lines[1].endswith("BELOW") and not lines[2].endswith("BELOW") and lines[-1].startswith("DISTURBED")
    assert "| decode, a against b | 160 tok/s | 100 tok/s | **1.60 x** | 1.5 x |" in table.page(result)


def test_a_share_above_the_limit_is_left_out_and_named():
    share = {"name": "gemv_a", "measure": "GEMV a", "bar": 0.8, "unit": "bytes/s", "theirs": 1e9}
    result = {
        "comparisons": [
            share | {"ours": 0.9e9, "ratio": 0.9},
            share | {"measure": "GEMV b", "ours": 1.1e9, "ratio": 1.1},
        ],
        "environment": {"cpu": "Some CPU", "flags": [], "libraries": {}},
        "conditions": {"threads": 2, "model": "m", "prompt_tokens": 1, "steps": 2, "generate_tokens": 3},
        "others_busy": {"median": 0.0, "most": 0.0},
        "started_at": 0,
        "file": "some.json",
    }
    page = table.page(result)
    assert "| GEMV a |" in page and "| GEMV b |" not in page
    assert "Left out" in page and "GEMV b" in page
    assert "ABOVE THE LIMIT" in table.text(result).splitlines()[2]


def test_a_section_is_replaced_and_a_document_without_it_is_refused():
    document = "before <!-- speed: by hand --> old <!-- /speed --> after"
    assert (
        marks.put(document, "speed", "new")
        == "before <!-- speed: by hand -->\n\nnew\n\n<!-- /speed --> after"
    )
    for without in ("nothing", "<!-- speed: open", "<!-- speed: x --> old <!-- /quality -->"):
        with pytest.raises(ValueError, match="no section"):
            marks.put(without, "speed", "new")


def test_a_result_is_shown_until_a_later_one_of_that_processor_has_its_ratios():
    def result(cpu: str, *names: str) -> dict:
        return {"environment": {"cpu": cpu}, "comparisons": [{"name": name} for name in names]}

    whole, part = result("A", "generate", "decode"), result("A", "gguf")
    assert table.current([whole, part]) == [whole, part]
    assert table.current([whole, result("B", "generate", "decode", "gguf")])[0] is whole
    later = result("A", "generate", "decode", "gguf")
    assert table.current([whole, part, later]) == [later]


@pytest.mark.parametrize("tables", [table, quality_table], ids=lambda module: module.__name__)
def test_the_documents_hold_the_newest_saved_results(tables):
    for file, text in tables.documents().items():
        assert file.read_text() == text, f"run python {tables.__name__.replace('.', '/')}.py"


def test_the_code_that_prepared_files_depend_on_exists():
    from benchmarks.prepare import OWN_CODE

    assert OWN_CODE and all(any(folder.glob("*.py")) for folder in OWN_CODE)
