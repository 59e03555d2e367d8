"""Words of strangers are shown as text on every page, whatever they would mean to HTML, Markdown, a figure, a
terminal or a line of writing. They are fed into every place where a record, a file or a model holds words."""

import json
import re
import time

import pytest
import samples
from opened import calm, open_page, words

from qcore.base.files import write_json
from qcore.formats.kv import NONE
from qcore.results import html_report, report
from qcore.results.rows import ResultRow
from qcore.verbs.audit_types import Audit, Finding, LedgerLine, Spot
from ui import diff
from ui.playground_session import Pane
from ui.text import LONGEST, verbatim, visible

MARKUP = "<img src=x onerror=e>![i](http://e.org/i.png) [l](http://e.org) $x$ `c` :red[r] **b** {0} %{x}"
UNSEEN = "\u202e\u2066\u200b\u2028\x00\x1b[31m\x9b31m\r"
HOSTILE = f"{MARKUP} {UNSEEN}"
BARE = re.compile(r"(?<!\\)(?:\\\\)*(?:<img|!\[i|\[l\]|\$x\$|`c`|:red\[r|\*\*b\*\*)")
SENT = [each.encode() for each in ("\u202e", "\u2066", "\u200b", "\u2028", "\x1b[31m", "\x9b31m")]
# elements that show plain text, and not Markdown
PLAIN = ("dataframe", "code", "selectbox", "multiselect", "text_area", "text_input", "plotly_chart")
pytestmark = [pytest.mark.usefixtures("home"), pytest.mark.row("16")]


def check(at) -> None:
    """Assert that nothing that was sent to the browser would be obeyed, or stays unseen."""
    calm(at)
    for node in at._tree:
        if getattr(node, "proto", None) is None:
            continue
        shown = type(node.proto)()
        shown.CopyFrom(node.proto)
        if hasattr(shown, "id"):
            shown.id = ""  # it holds the key, which no one sees
        sent = shown.SerializeToString()
        assert not [each for each in SENT if each in sent], f"{node.type} holds characters that are not seen"
        if node.type == "plotly_chart":
            assert "<img" not in node.proto.spec and b"<img" not in sent, "a figure holds HTML"
        elif node.type not in PLAIN:
            bare = BARE.search(sent.decode("utf-8", "replace"))
            assert bare is None, f"{node.type} holds {bare[0]!r}"


def hostile_row(name: str) -> ResultRow:
    """Return a row in which every word that comes from outside is hostile."""
    row = samples.row(name, choices=samples.choices(name) | {"name": HOSTILE})
    record = row["record"]
    record["recipe"]["modules"] = {"skip": [HOSTILE], "head": "keep"}
    record |= {
        "model_description": HOSTILE,
        "text": {"name": HOSTILE, "sha256": "1" * 64},
        "notes": [HOSTILE],
        "command": f"python -m qcore compare {HOSTILE}",
        "revision": HOSTILE,
        "environment": record["environment"]
        | {"cpu": HOSTILE, "os": HOSTILE, "libraries": {HOSTILE: HOSTILE}},
    }
    for answer in record["generations"]:
        answer |= {"id": answer["id"] + HOSTILE, "kind": HOSTILE, "prompt": HOSTILE}
        answer["text"] = HOSTILE + answer["text"]
    for tensor in record["ledger"]["rows"]:
        tensor |= {"name": HOSTILE + tensor["name"], "reason": tensor["reason"] and HOSTILE}
    return row


@pytest.fixture
def run(home):
    failed = samples.row("int4-g64", status="failed", error=HOSTILE)
    rows = [hostile_row("fp32"), hostile_row("int8"), failed]
    return samples.write_run(home, rows, model=f"owner/{HOSTILE}", error=HOSTILE, phase=HOSTILE)


@pytest.mark.parametrize("name", ["home", "compare", "quantize", "learn", "plan", "playground"])
def test_a_run_of_hostile_words(run, name):
    at = open_page(name, run=run)
    check(at)
    if name == "learn":
        check(at.pills(key="learn.lesson").set_value("Your own runs").run())


def test_every_answer_and_the_models_used_before(run):
    at = open_page("compare", run=run)
    check(at.selectbox(key="compare.prompt").set_value(f"language-2{HOSTILE}").run())
    assert "onerror" in words(at)
    at = open_page("quantize")
    check(at.segmented_control(key="quantize.source").set_value("Used before").run())


@pytest.mark.parametrize("state", ["failed", "cancelled", "interrupted", "running", "queued"])
def test_a_run_that_did_not_end_well(home, state, monkeypatch):
    from qcore.jobs import jobs

    monkeypatch.setattr(jobs, "_alive", lambda folder, about: True)
    run = samples.write_run(
        home,
        [hostile_row("int8")],
        model=HOSTILE,
        state=state,
        phase=HOSTILE,
        error=HOSTILE,
        pending=["int3"],
    )
    (home / "runs" / run / "log.txt").write_text(HOSTILE)
    check(open_page("quantize", run=run))


def test_downloads_hold_the_words_and_nothing_that_runs(run):
    from ui import jobs

    rows = jobs.rows(run)
    assert json.loads(report.to_json(rows))[0]["record"]["notes"] == [HOSTILE]
    assert rows[0]["record"]["generations"][0]["text"].startswith(HOSTILE)
    page = html_report.page(rows)
    assert "<img" not in page and not [each for each in SENT if each in page.encode()]
    report.to_csv(rows).encode()


@pytest.mark.parametrize("place", ["error", "model", "text", "skip"])
def test_half_a_surrogate_pair_is_shown_stored_and_sent(home, place):
    half = "a\ud800b"
    row = samples.row("int8", status="failed" if place == "error" else "ok")
    if place == "error":
        row["error"] = half
    elif place == "text":
        row["record"]["generations"][2]["text"] = half
    elif place == "skip":
        row["record"]["recipe"]["modules"] = {"skip": [half], "head": "keep"}
    run = samples.write_run(home, [samples.row("fp32"), row], model=half if place == "model" else "m")
    at = open_page("compare", run=run)
    if place == "text":
        at = at.selectbox(key="compare.prompt").set_value("language-2").run()
    assert "D800" in words(calm(at)) or place == "model"  # a model's name is in a list
    from ui import jobs

    assert half in json.dumps(jobs.rows(run), ensure_ascii=False)
    sent = report.to_json(jobs.rows(run)).encode()
    assert half in json.dumps(json.loads(sent), ensure_ascii=False)
    report.to_csv(jobs.rows(run)).encode()


def job(home, kind: str, request: dict, outcome: dict) -> str:
    run = samples.write_run(home, [], model=HOSTILE, second=9, kind=kind)
    write_json(home / "runs" / run / "spec.json", {"kind": kind, "model": HOSTILE} | request)
    write_json(home / "runs" / run / "outcome.json", {"model": HOSTILE, "seconds": 1.0} | outcome)
    return run


def test_an_export(home, tmp_path):
    folder = tmp_path / "m`od<img el"
    folder.mkdir()
    (folder / "we`ig<img hts").write_bytes(b"x")
    outcome = {"to": "gguf", "recipe": HOSTILE, "files": ["we`ig<img hts"], "notes": [HOSTILE]}
    outcome |= {"folder": str(folder), "stored_bytes": 1, "bits_per_weight": 4.0}
    run = job(home, "export", {"to": "gguf", "recipe": {"name": HOSTILE}}, outcome)
    check(open_page("export", run=run))


def test_a_trained_model(home):
    figures = {"stored_bytes": 1, "perplexity": 40.0, "kl_mean": 0.0, "decode_tok_s": 12.0}
    compared = {"before": figures, "after": figures, "text": HOSTILE, "tokens": 2048}
    compared |= {"window": 256, "prompt_tokens": 64, "new_tokens": 16}
    outcome = {"compared": compared, "recipe": HOSTILE, "stored_bytes": 1, "folder": f"/made/{HOSTILE}"}
    run = job(home, "qat", {"recipe": {"name": HOSTILE}}, outcome)
    check(open_page("train", run=run))


def audit_of(finding: Finding, line: LedgerLine) -> Audit:
    return Audit(
        model=HOSTILE,
        kind="folder",
        revision=HOSTILE,
        architecture=HOSTILE,
        method=HOSTILE,
        files=1,
        file_bytes=16,
        tensors=1,
        findings=(finding,),
        ledger=(line,),
        read_bytes=16,
        not_looked_at=(HOSTILE,),
        parameters=4,
    )


def test_an_audit(home):
    finding = Finding("x", "broken", HOSTILE, HOSTILE, HOSTILE, (Spot(HOSTILE, HOSTILE),) * 5)
    found = audit_of(finding, LedgerLine(HOSTILE, HOSTILE, (2, 2), 4, 16, False))
    check(open_page("audit", run=job(home, "audit", {"values": True}, found.to_dict())))


def test_a_table_of_sensitivities(home):
    from test_sensitivity_page import keep, table

    found = table(measured=True, model=HOSTILE)
    for layer in found.layers:
        object.__setattr__(layer, "name", HOSTILE + layer.name)
    found.conditions["text"]["name"] = HOSTILE
    keep(found)
    check(open_page("sensitivity"))


class Written:
    """A finished generation of the playground, with hostile texts and reasons."""

    def __init__(self, active: bool = False):
        self.error, self.active, self.prompt, self.sampling = HOSTILE, active, HOSTILE, {"kv": NONE}
        done = {"tokens": [1], "reason": "end", "ttft_s": 0.1, "decode_tok_s": 1.0, "notes": [HOSTILE]}
        panes = (
            Pane("fp32", "done", text=HOSTILE, result=done),
            Pane("int8", "done", text=f"other {HOSTILE}", result=done),
            Pane("int4-g64", "failed", note=HOSTILE),
            Pane("int3", "loading", note=HOSTILE),
        )
        self.panes = {pane.recipe: pane for pane in panes}


def test_texts_of_models_in_the_playground(monkeypatch):
    from streamlit.testing.v1 import AppTest

    at = AppTest.from_file("../../app.py", default_timeout=600)
    at.session_state["playground.session"] = Written()
    at.switch_page("pages/playground.py")
    check(at.run())


@pytest.mark.row("17")
def test_the_browser_saves_tables_without_formulas(home):
    spots = (Spot("@where", "+what"),) * 5
    finding = Finding("x", "broken", "a title", "an effect", "a remedy", spots)
    line = LedgerLine("=name", "-form", (2, 2), 4, 16, False)
    at = open_page("audit", run=job(home, "audit", {"values": True}, audit_of(finding, line).to_dict()))
    cells = [
        cell for table in at.dataframe for column in table.value.to_dict("list").values() for cell in column
    ]
    assert {"'@where", "'+what", "'=name", "'-form"} <= set(cells)
    assert not [cell for cell in cells if isinstance(cell, str) and cell.startswith(("=", "+", "-", "@"))]


@pytest.mark.row("F16")
def test_repetitive_answers_are_compared_within_a_second():
    words_of = ("the", "of", "a")
    one = " ".join(words_of[i * i % 3] for i in range(1024))
    other = " ".join(words_of[i * i * i % 2] for i in range(1024))
    began = time.process_time()
    for base, text in ((one, other), ("the " * 1024, "of the " * 512), ("ab" * 10_000, "ba " * 6000)):
        assert "".join(part for part, _ in diff.spans(base, text)) == text
        diff.marked(base, text)
    assert time.process_time() - began < 1.0  # 6.4 s each with difflib


def test_the_longest_part_in_common_is_kept():
    kept = diff.kept_of(["a", "b", "c", "d", "e", "f"], ["a", "x", "c", "d", "y", "f", "z"])
    assert kept == [True, False, True, True, False, True, False]
    assert diff.kept_of([], ["a"]) == [False] and diff.kept_of(["a"], []) == []


@pytest.mark.row("47")
def test_a_text_of_megabytes_is_cut():
    """Every visitor waits while the server escapes it."""
    shown = visible("a" * LONGEST + "/" + "b" * 4_999_999)
    assert shown == "a" * LONGEST + " … (5,000,000 more characters)"
    start = time.process_time()
    assert len(verbatim("é.\n" * 2_000_000)) < 3 * LONGEST
    assert time.process_time() - start < 1.0
