"""The HTML report in Chromium: drawn from its file alone, on screen and on paper."""

import dashboard
import pytest
import samples

from qcore.results import html_report
from qcore.results.verdicts import with_verdicts

pytestmark = pytest.mark.browser


def test_a_report_needs_nothing_but_its_file(page, tmp_path):
    file = tmp_path / "report.html"
    rows = with_verdicts([samples.row(name) for name in samples.FIGURES])
    file.write_text(html_report.page(rows), encoding="utf-8")
    complaints, requests = [], []
    page.on("console", lambda message: complaints.append(message.text))
    page.on("request", lambda request: requests.append(request.url))
    page.set_viewport_size({"width": 390, "height": dashboard.LAPTOP[1]})
    page.goto(file.as_uri())
    assert requests == [file.as_uri()] and not complaints
    assert page.evaluate("document.body.scrollWidth <= innerWidth"), "wide tables scroll on their own"
    assert page.locator("svg").count() == 5
    paper = page.pdf(prefer_css_page_size=True)
    assert paper.startswith(b"%PDF") and paper.count(b"/Type /Page\n") <= 12
