"""The HTML report: complete, without scripts and references, and harmless whatever names and texts hold."""

import re
from html.parser import HTMLParser
from xml.etree import ElementTree

import pytest
import samples

from qcore.base.errors import InputError
from qcore.results import html_report, pictures
from qcore.results.verdicts import with_verdicts

HOSTILE = (
    "</td></svg></style></title></pre><script>alert(1)</script><img src=x onerror=alert(2)>"
    "<a href='javascript:alert(3)'>\"'`{{ 7 * 7 }}{% endraw %}&lt;&#x3c;b&#x3e;]]>\u202e\x1b[31m\x00\ud800"
)
NAMES = ("fp32", "int8", "int4-g64", "nf4-g64", "int2")


class Reader(HTMLParser):
    """The tags, attributes and text of a page."""

    def __init__(self, page):
        super().__init__()
        self.tags, self.attributes, self.words = [], [], []
        self.feed(page)
        self.text = " ".join("".join(self.words).split())

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        self.attributes += attributes

    def handle_data(self, data):
        self.words.append(data)


def made(names=NAMES, margin=None, **changes):
    rows = [samples.row(name, run_id="20250102-030400-abcdef") for name in names]
    for row in rows:
        row["record"] |= changes
    return with_verdicts(rows, margin)


def test_a_speed_beside_other_work_is_marked():
    rows = made(("int8",), throughput={"others_share": 0.5})
    mark = "int8: Speed measured beside other work: other processes took 50.0 % of the processor."
    assert mark in Reader(html_report.page(rows)).text
    assert "other work" not in Reader(html_report.page(made(("int8",)))).text


def test_everything_of_a_run_is_there():
    rows = made()
    found = Reader(html_report.page(rows))
    for row in rows[1:]:
        assert row["verdict"]["sentence"] in found.text
    for words in (
        "smollm2-135m",
        "Run 20250102-030400-abcdef",
        "python -m qcore compare smollm2-135m --recipes fp32",
        "A test's processor, 2 cores avx2",
        "25.0 GB/s",
        "torch 2.13.0",
        "a text, SHA-256 1111111111111111…",
        "512 and 512 tokens",
        "prompt of 128 tokens, 32 new tokens, median of 3",
        "4-bit integers",
        "model.layers.0.mlp.up_proj.weight",
        "a vector, which the recipe keeps",
        "The capital of France is",
        "identical for 4 tokens",
        "32.8 kB",
    ):
        assert words in found.text, words


def test_the_file_opens_alone():
    """No script, and nothing that a browser would fetch."""
    page = html_report.page(made())
    found = Reader(page)
    assert not {"script", "link", "img", "iframe", "object", "embed", "form", "base", "a"} & set(found.tags)
    assert not [name for name, _ in found.attributes if name in ("src", "href", "srcset") or name[:2] == "on"]
    assert "default-src 'none'" in page and "url(" not in page and "@import" not in page


def test_the_margin_is_that_of_the_verdicts():
    assert "the margin of 5 %" in Reader(html_report.page(made(margin=0.05))).text


def spoiled():
    """Rows with a hostile string in every place that a user, a model or a text fills."""
    rows = made(("fp32", "int8", "int4-g64"))
    for row in rows[1:]:
        row["recipe"] = row["recipe"] + HOSTILE
    for row in rows:
        record = row["record"]
        for name in ("model", "model_description", "revision", "digest", "run_id", "command", "device"):
            record[name] = HOSTILE
        record |= {"text": {"name": HOSTILE, "sha256": HOSTILE}, "notes": [HOSTILE], "execution": [HOSTILE]}
        record["recipe"] = {"name": HOSTILE, "modules": {"skip": [HOSTILE]}}
        record["environment"] |= {"cpu": HOSTILE, "flags": [HOSTILE], "libraries": {HOSTILE: HOSTILE}}
        record["ledger"]["rows"][0] |= {"name": HOSTILE, "format": HOSTILE, "reason": HOSTILE}
        record["ledger"]["calibration"] = {"tokens": 5, "text": {"name": HOSTILE}}
        for answer in record["generations"]:
            answer |= {"prompt": HOSTILE, "text": HOSTILE}
    failed = samples.row("nf4-g64", status="failed", error=HOSTILE)
    return [*rows, {**failed, "recipe": HOSTILE}]


@pytest.mark.row("16")
def test_hostile_strings_are_text():
    usual = [*made(("fp32", "int8", "int4-g64")), samples.row("nf4-g64", status="failed", error="no")]
    page = html_report.page(spoiled())
    found, harmless = Reader(page), Reader(html_report.page(usual))
    assert set(found.tags) <= {*harmless.tags, "title"}, "no tag of theirs"
    assert {name for name, _ in found.attributes} <= {name for name, _ in harmless.attributes}
    assert "<script" not in page and "{{ 7 * 7 }}" in page, "escaped, and not evaluated"
    assert found.text.count("<img src=x onerror=alert(2)>") > 25, "shown as it is"
    page.encode("utf-8")
    assert not re.search("[\x00-\x08\x0b-\x1f\u202e]", page), "control characters are spelled out"


@pytest.mark.parametrize("rows", [made(), spoiled()], ids=["usual", "hostile"])
def test_pictures_are_well_formed(rows):
    found = re.findall(r"<svg.*?</svg>", html_report.page(rows), re.DOTALL)
    assert len(found) == 5
    for picture in found:
        ElementTree.fromstring(picture)


def shapes(picture, tag):
    return [shape for shape in picture.shapes if shape.tag == tag]


def test_bars_have_the_ratio_of_their_figures_unless_cut():
    rows = made(("fp32", "int8", "int4-g64", "nf4-g64"))
    stored = shapes(pictures.bars(rows, "Memory", "stored_bytes"), "rect")
    widths = [shape.attributes["width"] for shape in stored]
    for row, width in zip(rows, widths, strict=True):
        assert width / widths[0] == pytest.approx(row["stored_bytes"] / rows[0]["stored_bytes"], abs=1e-3)
    quality = pictures.bars(made(), "Quality", "perplexity")
    assert [shape.text for shape in shapes(quality, "text")][-1] == "51,234 (cut off)"


def test_rows_without_figures_say_why():
    rows = [*made(("fp32", "int8")), samples.row("int4-g64", status="failed", error="It was too large.")]
    rows[1] = {**rows[1], "decode_tok_s": None}
    texts = [shape.text for shape in shapes(pictures.bars(rows, "Speed", "decode_tok_s"), "text")]
    assert texts.count("not measured") == 1 and texts.count("failed") == 1
    assert "failed: It was too large." in Reader(html_report.page(rows)).text


def test_every_point_lies_on_the_picture():
    rows = made()
    drawn = pictures.trade_off(rows)
    points = shapes(drawn, "circle")
    assert len(points) == len(rows)
    assert all(0 <= p.attributes["cx"] <= pictures.WIDTH for p in points)
    assert all(0 <= p.attributes["cy"] <= drawn.height for p in points)
    smaller = [point.attributes["cx"] for point in points]
    assert sorted(smaller) == [
        x for _, x in sorted(zip((row["stored_bytes"] for row in rows), smaller, strict=True))
    ]


@pytest.mark.parametrize("names", [("fp32",), ("int8",)], ids=["baseline alone", "no baseline"])
def test_a_single_row_has_a_report(names):
    rows = made(names)
    assert pictures.trade_off(rows) is None
    assert names[0] in Reader(html_report.page(rows)).text


def test_a_run_without_results_has_no_report():
    with pytest.raises(InputError, match="at least one finished recipe"):
        html_report.page([])
