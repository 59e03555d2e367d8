"""Untrusted texts are shown literally, differences are marked, rows are joined and summarized."""

import re

import pytest
import samples
from hypothesis import given
from hypothesis import strategies as st

from ui import charts, compare_view, diff, playground_view, results
from ui.playground_session import Pane
from ui.text import NBSP, verbatim, visible

JOINER = "\N{WORD JOINER}"


def shown(markdown: str) -> str:
    """Return the visible text of Markdown that has only escapes, hard line breaks and marks."""
    text = re.sub(r":orange-background\[((?:\\.|[^\]\\])*)\]", r"\1", markdown)
    return (
        re.sub(r"\\([!-/:-@\[-`{-~])", r"\1", text)
        .replace("  \n", "\n")
        .replace(NBSP, " ")
        .replace(JOINER, "")
    )


@pytest.mark.row("16")
@given(st.text())
def test_verbatim_shows_every_character(text):
    expected = re.sub(r"(?m)^$", " ", visible(text).replace(NBSP, " ").replace(JOINER, ""))
    assert shown(verbatim(text)) == expected


@pytest.mark.row("16")
@given(st.text())
def test_nothing_in_it_has_a_meaning(text):
    assert not re.search(r"(?<!\\)(?:\\\\)*[*_`\[\]<>$:#|~]", verbatim(text))


@pytest.mark.parametrize(
    "text",
    [":smile:", ":material/home:", "->", "<-", "--", ">=", "<=", "~=", "http://a.b", "www.a.b", "a@b.c"],
)
def test_what_streamlit_would_replace_is_broken_up(text):
    assert JOINER in verbatim(text)


@pytest.mark.parametrize(
    "text, expected",
    [
        ("a\u202eb", "a⟨U+202E⟩b"),
        ("\x00", "⟨U+0000⟩"),
        ("\u200b", "⟨U+200B⟩"),
        ("\x1b[31m", "⟨U+001B⟩[31m"),
        ("\ud800", "⟨U+D800⟩"),
    ],
    ids=["right-to-left override", "NUL", "zero width", "ANSI", "lone surrogate"],
)
def test_what_cannot_be_seen_is_spelled_out(text, expected):
    assert visible(text) == expected


@given(st.text(alphabet="ab \n.*", max_size=60), st.text(alphabet="ab \n.*", max_size=60))
def test_marked_shows_the_whole_other_text(base, other):
    assert "".join(text for text, _ in diff.spans(base, other)) == other
    assert shown(diff.marked(base, other)) == re.sub(r"(?m)^$", " ", other)


def test_equal_texts_have_no_marks():
    assert "background" not in diff.marked("Paris is big.", "Paris is big.")


def test_the_words_that_differ_are_marked():
    assert (
        diff.marked("Paris is a big city", "Paris is a small city")
        == "Paris is a :orange-background[small] city"
    )


def test_marks_do_not_span_lines():
    marked = diff.marked("x", "one\n\ntwo")
    assert marked.count(":orange-background[") == 2 and "[one]" in marked and "[two]" in marked


def test_indented_code_keeps_its_shape():
    assert verbatim("def f():\n    return 1").endswith(NBSP * 4 + "return 1")


class Run:
    def __init__(self, run_id, rows, model="smollm2-135m", at=0.0):
        self.run_id, self.rows, self.request, self.created_at, self.active, self.finished_at = (
            run_id,
            rows,
            {"model": model},
            at,
            True,
            None,
        )


@pytest.fixture
def join(monkeypatch):
    def joined(*runs):
        monkeypatch.setattr(results.state, "rows", lambda run: run.rows)
        return results.joined(runs)

    return joined


def test_labels_of_one_run_are_the_recipes(join):
    rows = join(Run("a", [samples.row("fp32"), samples.row("int8")]))
    assert [row["label"] for row in rows] == ["fp32", "int8"]


def test_labels_tell_models_apart(join):
    rows = join(Run("a", [samples.row("fp32")]), Run("b", [samples.row("fp32")], model="/models/other"))
    assert [row["label"] for row in rows] == ["fp32 · smollm2-135m", "fp32 · other"]


def test_labels_are_always_unique(join):
    rows = join(
        Run("a", [samples.row("fp32")]), Run("b", [samples.row("fp32")]), Run("c", [samples.row("fp32")])
    )
    assert len({row["label"] for row in rows}) == 3


def test_labels_say_what_was_left_out(join):
    row = samples.row("int8")
    row["record"]["recipe"]["modules"]["skip"] = ["layers.0"]
    assert join(Run("a", [row]))[0]["label"] == "int8 without layers.0"


def test_speeds_beside_other_work_are_marked(monkeypatch):
    rows, captions = samples.labeled(("fp32", "int8")), []
    monkeypatch.setattr(compare_view.st, "caption", lambda text, **_: captions.append(text))
    compare_view.disturbed(rows)
    assert not captions
    rows[1]["record"]["throughput"] = {"others_share": 0.5}
    compare_view.disturbed(rows)
    mark = "measured beside other work: other processes took 50.0 % of the processor"
    assert len(captions) == 1 and f"**int8** {mark}." in captions[0] and "fp32" not in captions[0]
    hovers = [text for trace in charts.throughput(rows).data for text in trace.customdata or ()]
    assert sum(mark in str(text) for text in hovers) == 2  # decode and prefill of one recipe
    result = {"decode_tok_s": 9.0, "ttft_s": 1.0, "tokens": [1], "reason": "end", "others_share": 0.5}
    assert mark in playground_view._about(Pane("int8", "done", result=result))


def test_best():
    smallest, fastest, closest = results.best(samples.labeled())
    assert (smallest.recipe, smallest.value, smallest.against) == (
        "torch-dynamic-int8",
        "135 MB",
        "3.98× smaller than fp32",
    )
    assert (fastest.recipe, fastest.value, fastest.against) == (
        "torch-dynamic-int8",
        "32.0 tok/s",
        "2.44× as fast as fp32",
    )
    assert (closest.recipe, closest.value) == ("int8", "KL 0.00210 nats")


@pytest.mark.parametrize(
    "names", [(), ("fp32",), ("int8",)], ids=["nothing", "the baseline alone", "no baseline"]
)
def test_best_of_little(names):
    assert len(results.best(samples.labeled(names))) == (3 if names == ("int8",) else 0)


def test_conditions_that_differ_are_named():
    rows = samples.labeled(("fp32", "int8"))
    assert results.shared_conditions(rows)[1] == []
    rows[1]["record"] |= {"window": 256, "threads": 1}
    assert results.shared_conditions(rows)[1] == ["window", "threads"]
