"""On a public server a visitor sees, follows, cancels and downloads their own runs and the samples only, by
whatever way: lists, links, results, tables, predictions. Nothing that is shown or sent holds a path."""

import ast
from pathlib import Path

import pytest
import samples
from opened import calm, everything, open_page, words

from qcore.base.errors import InputError
from qcore.base.files import write_json
from qcore.jobs import jobs
from qcore.jobs.public import SAMPLE
from ui import jobs as own_jobs
from ui import redaction, visitor

ROOT = Path(__file__).resolve().parents[2]
MINE, YOURS = "m" * 43, "y" * 43
MODEL = "owner/hidden-model"
PAGES = tuple(sorted(path.stem for path in (ROOT / "pages").glob("*.py")))


def owner_of(secret: str) -> str:
    import hashlib

    return hashlib.sha256(secret.encode()).hexdigest()[:32]


@pytest.fixture
def public(home, monkeypatch):
    monkeypatch.setenv("QCORE_PUBLIC", "1")
    return home


@pytest.fixture
def runs(public, monkeypatch):
    """Jobs of one visitor, of each kind; the last one runs."""
    monkeypatch.setattr(jobs, "_alive", lambda folder, about: True)
    about = {"owner": owner_of(MINE)}
    rows = [samples.row("fp32"), samples.row("int8")]
    rows[1]["record"]["command"] = f"python -m qcore compare {MODEL} --text {public}/texts/abc.txt"
    rows[0]["record"]["notes"] = [f"Read from {public}/models/x."]
    done = samples.write_run(public, rows, model=MODEL, **about)
    kinds = {
        "sensitivity": ({"method": "rtn"}, {"key": "a"}),
        "export": (
            {"to": "gguf", "recipe": None},
            {"to": "gguf", "recipe": "r", "folder": f"{public}/made/it"},
        ),
        "audit": ({"values": False}, {}),
        "qat": ({"recipe": {"name": "int3-g64"}}, {"folder": f"{public}/made/it"}),
    }
    found = [done]
    for second, (kind, (request, outcome)) in enumerate(kinds.items(), 1):
        run = samples.write_run(public, [], model=MODEL, second=second, kind=kind, **about)
        write_json(public / "runs" / run / "spec.json", {"kind": kind, "model": MODEL, **request})
        write_json(public / "runs" / run / "outcome.json", {"model": MODEL, **outcome})
        found.append(run)
    error = f"It failed in {public}/runs/x."
    running = samples.write_run(
        public, rows, model=MODEL, second=30, state="running", pending=["int3"], error=error, **about
    )
    return [*found, running]


@pytest.mark.row("F4")
@pytest.mark.parametrize("name", PAGES)
def test_a_stranger_finds_nothing_of_it_on_any_page(runs, name):
    at = open_page(name, secret=YOURS, run=runs)
    seen = everything(at)
    assert "hidden-model" not in seen and not changing(at)
    assert not [run for run in runs[:-1] if run in seen]  # an error may repeat the address


def changing(at) -> list[str]:
    """Return the keys of the buttons that change a run."""
    keys = [button.key or "" for button in at.button]
    return [key for key in keys if key.startswith(("cancel", "delete", "again"))]


@pytest.mark.row("F4")
@pytest.mark.parametrize("name", ["quantize", "audit"])
def test_a_link_to_a_run_of_somebody_else_is_answered_like_one_to_no_run(runs, name):
    answers = []
    for run in (runs[0], runs[-1], runs[0].replace("20250102", "20250103")):
        at = open_page(name, secret=YOURS, run=run)
        answers.append("\n".join(error.value for error in at.error).replace("\\", "").replace(run, "RUN"))
    assert len(set(answers)) == 1 and "There is no run 'RUN' of yours" in answers[0]


@pytest.mark.row("F5")
def test_its_owner_finds_it_without_paths(runs, public):
    seen = everything(open_page("compare", secret=MINE, run=runs[0]))
    assert "hidden-model" in seen and str(public) not in seen
    at = open_page("quantize", secret=MINE, run=runs[-1])
    assert f"cancel.{runs[-1]}" in [button.key for button in at.button]
    assert "It failed in x" in words(at).replace("\\", "") and str(public) not in everything(at)


@pytest.mark.row("F4")
def test_its_owner_cancels_it_and_nobody_else(runs, monkeypatch):
    cancelled = []
    monkeypatch.setattr(jobs, "cancel", lambda run: cancelled.append(run) or jobs.status(run))
    for secret in (YOURS, MINE):
        monkeypatch.setattr(visitor, "visitor", lambda who=secret: owner_of(who))
        monkeypatch.setattr(own_jobs, "visitor", lambda who=secret: owner_of(who))
        if secret == MINE:
            own_jobs.cancel(runs[-1])
            continue
        verbs = (own_jobs.cancel, own_jobs.delete, own_jobs.repeat, own_jobs.status, own_jobs.rows)
        for verb in (*verbs, own_jobs.outcome, own_jobs.history, own_jobs.result_folder):
            with pytest.raises(InputError, match="There is no run"):
                verb(runs[-1])
        assert own_jobs.list_runs() == [] and own_jobs.visible_rows([{"run_id": runs[0]}]) == []
        assert own_jobs.visible_tables({"a": "table"}) == {}
    assert cancelled == [runs[-1]]


@pytest.mark.row("F4")
def test_a_sample_is_seen_by_all_and_changed_by_none(runs, public, monkeypatch):
    jobs.share(runs[0])
    assert jobs.status(runs[0]).owner == SAMPLE
    with pytest.raises(InputError, match="has not ended"):
        jobs.share(runs[-1])
    at = open_page("compare", secret=YOURS)
    assert "hidden-model" in everything(at) and str(public) not in everything(at)
    at = open_page("quantize", secret=YOURS, run=runs[0])
    assert not changing(at)
    monkeypatch.setattr(own_jobs, "visitor", lambda: owner_of(YOURS))
    with pytest.raises(InputError, match="a sample"):
        own_jobs.delete(runs[0])


def test_runs_without_an_owner_belong_to_the_server(public):
    samples.write_run(public, [samples.row("fp32")], model=MODEL)
    assert "hidden-model" not in everything(open_page("home", secret=YOURS))


@pytest.mark.row("F5")
def test_what_is_downloaded_holds_no_path(runs, public, monkeypatch):
    from qcore.results import html_report, report

    monkeypatch.setattr(own_jobs, "visitor", lambda: owner_of(MINE))
    rows = own_jobs.rows(runs[0])
    for text in (report.to_json(rows), report.to_csv(rows), html_report.page(rows)):
        assert str(public) not in text
    assert "--text abc.txt" in report.to_json(rows)


def test_a_start_is_recorded_with_its_visitor(public, monkeypatch):
    asked = []
    run = "20250102-030400-abcdef"
    monkeypatch.setattr(jobs, "submit", lambda spec, visitor, **_: asked.append(visitor) or run)
    at = open_page("home", secret=MINE)
    at.button(key="home.first").click().run()
    assert asked == [owner_of(MINE)]


def test_two_browsers_are_two_visitors_and_a_private_server_knows_none(public, monkeypatch):
    first, second = visitor.new_secret(), visitor.new_secret()
    assert first != second and visitor.is_secret(first) and not visitor.is_secret(first + "x")
    monkeypatch.setenv("QCORE_PUBLIC", "0")
    assert visitor.visitor() is None


@pytest.mark.row("F5")
@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("It is in {home}/made/a-model.", "It is in a-model."),
        ("'{home}/texts/x.txt' is empty", "'x.txt' is empty"),
        ("{code}/ui/state.py, line 3", "state.py, line 3"),
        ("{home}", "home"),
        ("/usr/bin/python is a path of the text", "/usr/bin/python is a path of the text"),
        ("owner/name at https://example.org/a/b", "owner/name at https://example.org/a/b"),
    ],
)
def test_paths_of_the_server_are_cut(public, text, shown):
    text = text.format(home=public, code=ROOT)
    assert redaction.redacted({"a": [text]}) == {"a": [shown]}
    assert redaction.redacted({"generations": text}) == {"generations": text}


def test_a_private_server_shows_paths(home):
    assert redaction.redacted(f"{home}/x") == f"{home}/x"


def test_pages_reach_jobs_and_rows_only_through_the_visitor():
    closed = {"qcore.jobs.jobs", "qcore.results.store", "qcore.results.folder"}
    allowed = {ROOT / "ui/jobs.py", ROOT / "ui/state.py"}  # state: the notice of the database
    for path in {*(ROOT / "ui").rglob("*.py"), *(ROOT / "pages").glob("*.py"), ROOT / "app.py"} - allowed:
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if isinstance(node, ast.ImportFrom):
                names = {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
            elif isinstance(node, ast.Import):
                names = {alias.name for alias in node.names}
            else:
                continue
            assert not names & closed, f"{path.name} imports {names & closed}; use ui/jobs.py"


def test_a_queue_is_visible_without_what_is_in_it(runs):
    at = open_page("quantize", secret=YOURS)
    assert "One run is in the queue" in words(at)


def test_the_page_about_what_is_kept(runs, monkeypatch):
    monkeypatch.setenv("QCORE_PUBLIC_LIMITS", "days=2,minutes=7,disk=5GB")
    at = open_page("privacy", secret=MINE)
    tables = str([table.value.to_dict() for table in at.table])
    assert at.title[0].value == "What this server keeps"
    assert "2 days after its end" in tables and "7 minutes" in tables and "5.00 GB" in tables
    assert "this tab" in tables and "6 runs are kept, 5 of them have ended" in words(at)
    calm(at.button(key="privacy.delete").click().run())
    assert [run.run_id for run in jobs.list_runs()] == [runs[-1]]
    assert "There are none" in words(open_page("privacy", secret=YOURS))


def test_the_page_is_in_the_menu_of_a_public_server_only(home, monkeypatch):
    from ui import navigation

    shown = []
    for value in "01":
        monkeypatch.setenv("QCORE_PUBLIC", value)
        monkeypatch.setattr(navigation.st, "Page", lambda path, **about: path)
        shown.append("pages/privacy.py" in navigation.pages())
    assert shown == [False, True]
