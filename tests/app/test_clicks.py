"""One click is one job, however long its checks take."""

import time

import pytest
from opened import open_page

from qcore.jobs.kind_audit import AuditRequest
from ui import jobs

RUN = "20250102-030400-abcdef"


@pytest.mark.row("37", "F6")
def test_the_time_of_a_click_goes_with_its_request_once(monkeypatch):
    session, seen = {jobs.ASKED: 5.0}, []
    monkeypatch.setattr(jobs.st, "session_state", session)
    monkeypatch.setattr(jobs, "visitor", lambda: None)
    monkeypatch.setattr(jobs.jobs, "submit", lambda request, **options: seen.append(options))
    for _ in range(2):
        jobs.submit(AuditRequest(model="m"))
    assert seen == [{"asked": 5.0}, {}]


@pytest.mark.row("37", "F6")
def test_a_start_goes_with_the_time_of_its_click(home, monkeypatch):
    seen = []
    monkeypatch.setattr(jobs.jobs, "submit", lambda request, **options: seen.append(options["asked"]) or RUN)
    at = open_page("home")
    before = time.time()
    at.button(key="home.first").click().run()
    assert before <= seen[0] <= time.time()
