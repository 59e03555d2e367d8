"""Requests of the playground on a public server: one per visitor, some at a time, for a bounded time."""

import threading

import pytest

from qcore.base.errors import InputError
from qcore.jobs.resident import Event
from qcore.recipes import parse
from ui import playground_session
from ui.playground_session import Session

RECIPES = [parse("fp32")]


class Slow:
    """Generates one piece of text after another until it is told to end."""

    def __init__(self):
        self.go, self.closed = threading.Event(), threading.Event()

    def generate(self, prompt, new_tokens, recipes, **sampling):
        try:
            yield Event("start", "fp32")
            while not self.go.wait(0.01):
                yield Event("text", "fp32", text="a")
        finally:
            self.closed.set()


@pytest.fixture
def slow():
    found = Slow()
    yield found
    found.go.set()
    for session in list(playground_session._sessions):
        session.join(10)


def ask(slow: Slow, visitor: str | None) -> Session:
    return Session(slow, "a prompt", RECIPES, 8, visitor=visitor)


def test_a_visitor_has_one_text_at_a_time(slow):
    first = ask(slow, "me")
    with pytest.raises(InputError, match="Another text of yours"):
        ask(slow, "me")
    ask(slow, "you")
    first.stop()
    first.join(10)
    ask(slow, "me")


def test_so_many_may_wait(slow, monkeypatch):
    monkeypatch.setattr(playground_session, "MOST_WAITING", 2)
    sessions = [ask(slow, "a"), ask(slow, "b")]
    with pytest.raises(InputError, match="2 texts are being generated"):
        ask(slow, "c")
    ask(slow, None)  # a private server has no visitors and no limit
    assert all(session.active for session in sessions)


@pytest.mark.row("15", "19")
@pytest.mark.parametrize(
    ("prompt", "tokens"),
    [("a" * 20_001, 8), ("a", 129), ("a", -1), ("a", 10**9)],
    ids=["long", "129", "-1", "10^9"],
)
def test_what_the_form_does_not_offer_is_refused(slow, prompt, tokens):
    with pytest.raises(InputError, match="This server allows"):
        Session(slow, prompt, RECIPES, tokens, visitor="me")
    with pytest.raises(InputError, match="This server allows"):
        Session(slow, "a", RECIPES * 5, 8, visitor="me")


def test_a_text_that_takes_too_long_is_ended_and_says_so(slow, monkeypatch):
    monkeypatch.setattr(playground_session, "LONGEST_SECONDS", 0.05)
    session = ask(slow, "me")
    session.join(10)
    assert not session.active and "limited to" in session.error and slow.closed.is_set()
    assert session.panes["fp32"].state == "failed" and session.panes["fp32"].text
