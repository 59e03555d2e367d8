"""Journeys of a newcomer in Chromium against the real server, with a tiny model in place of the default
model."""

import dashboard
import gguf
import gguf_models
import pytest
import samples
from playwright.sync_api import Page, expect
from transformers import LlamaForCausalLM

pytestmark = pytest.mark.browser
expect.set_options(timeout=dashboard.PATIENCE * 1000)
RUN = 240_000  # milliseconds for a whole run of a tiny model on a busy machine


def plots(page: Page):
    return page.locator(".js-plotly-plot")


def test_the_first_run(page, address):
    """Home -> one click -> progress -> comparison with its plots."""
    dashboard.visit(page, address)
    page.get_by_role("button", name="Run the first comparison").click()
    page.wait_for_url("**/quantize?run=*")
    expect(page.get_by_text("elapsed").or_(page.get_by_text("Finished in")).first).to_be_visible()
    expect(page.get_by_text("Finished in")).to_be_visible(timeout=RUN)
    page.get_by_role("link", name="See the comparison").click()
    page.wait_for_url("**/compare?run=*")
    dashboard.settle(page, 3)
    for heading in ("Memory", "Throughput", "Quality", "The trade-off", "All figures", "Answers"):
        expect(page.get_by_role("heading", name=heading)).to_be_visible()
    assert plots(page).count() >= 4
    for name in ("fp32", "int8", "int4-g64"):
        expect(plots(page).first.get_by_text(name, exact=True)).to_be_visible()
    dashboard.visit(page, address)
    expect(page.get_by_text("Latest results")).to_be_visible()


@pytest.mark.row("37")
def test_a_run_is_cancelled_and_found_again_in_another_tab(page, address, home):
    """A double click, a reload and the back button start nothing twice and lose nothing."""
    before = len(list((home / "runs").glob("*/spec.json")))
    dashboard.visit(page, f"{address}/quantize")
    page.get_by_role("button", name="Decreasing bits").click()
    dashboard.settle(page)
    page.get_by_role("button", name="Start", exact=True).dblclick()
    page.wait_for_url("**/quantize?run=*")
    expect(page.get_by_role("button", name="Cancel")).to_be_visible()
    page.reload()
    expect(page.get_by_role("button", name="Cancel")).to_be_visible()
    page.go_back()
    page.go_forward()
    page.wait_for_url("**/quantize?run=*")
    expect(page.get_by_role("button", name="Cancel")).to_be_visible()
    assert len(list((home / "runs").glob("*/spec.json"))) == before + 1
    other = page.context.new_page()
    dashboard.visit(other, f"{address}/layers")
    expect(other.get_by_test_id("stSidebar").get_by_role("link", name="smollm2-135m")).to_be_visible()
    dashboard.visit(other, page.url)
    other.get_by_role("button", name="Cancel").click()
    expect(other.get_by_text("Cancelled. Finished results were kept")).to_be_visible()
    expect(page.get_by_text("Cancelled. Finished results were kept")).to_be_visible()


def test_a_deep_link_to_a_fresh_server_has_menu_and_settings(page, address):
    dashboard.visit(page, f"{address}/layers")
    expect(page.get_by_role("heading", name="Layers")).to_be_visible()
    names = page.get_by_test_id("stSidebarNavLink").all_inner_texts()
    menu = [
        "Home",
        "Plan",
        "Quantize",
        "Compare",
        "Playground",
        "Layers",
        "Audit",
        "Sensitivity",
        "Train & prune",
        "Export",
        "Learn",
    ]
    assert [name.split("\n")[-1] for name in names] == menu
    page.get_by_test_id("stSidebarNavLink").filter(has_text="Compare").click()
    expect(page.get_by_role("heading", name="Compare", exact=True)).to_be_visible()


def test_layers_are_measured(page, address):
    dashboard.visit(page, f"{address}/layers")
    page.get_by_role("button", name="Measure the layers").click()
    expect(page.get_by_role("heading", name="Error of each layer")).to_be_visible()
    dashboard.settle(page, 2)
    assert plots(page).count() == 2


def test_the_playground_writes_and_stops(page, address):
    dashboard.visit(page, f"{address}/playground")
    page.get_by_role("button", name="Generate").click()
    expect(page.get_by_text("64 tokens, length limit reached").first).to_be_visible(timeout=RUN)
    expect(page.get_by_text("64 tokens, length limit reached")).to_have_count(3, timeout=RUN)
    expect(page.get_by_text("tok/s").first).to_be_visible()


@pytest.mark.row("16")
def test_texts_of_strangers_are_shown_verbatim(page, address, home):
    samples.write_run(home, [samples.row("fp32"), samples.row("int4-g64")], model="owner/*x*<i>y</i>:smile:")
    dashboard.visit(page, f"{address}/compare", 2.5)
    box = page.get_by_role("combobox", name="Prompt")
    box.click()
    box.fill("language-2")  # the list shows only what fits; typing finds the rest
    page.get_by_role("option", name="language: language-2").click()
    dashboard.settle(page)
    text = page.get_by_test_id("stMain").inner_text().replace("\N{WORD JOINER}", "")
    assert "<b>&amp; *bold* $x$ [link](http://example.com) ![](x.png) :smile: ⟨U+202E⟩right⟨U+0000⟩" in text
    assert (
        page.locator('a[href="http://example.com"]').count() == 0
        and page.locator("img[src='x.png']").count() == 0
    )


@pytest.mark.parametrize("size", [dashboard.LAPTOP, dashboard.DESKTOP], ids=["laptop", "desktop"])
def test_nothing_is_wider_than_the_window(address, home, size):
    samples.write_run(home, [samples.row(name) for name in samples.FIGURES])
    with dashboard.browser(size, "dark") as page:
        for name in ("", "quantize", "compare", "playground", "layers", "audit"):
            dashboard.visit(page, f"{address}/{name}")
            wide = page.evaluate(
                "(main => main.scrollWidth - "
                "main.clientWidth)(document.querySelector('[data-testid=stMain]'))"
            )
            assert wide <= 0, f"{name or 'home'} is {wide} pixels too wide"


def test_learning_on_a_real_weight(page, address):
    """Choosing a lesson and moving a control changes plot and number."""
    dashboard.visit(page, f"{address}/learn")
    expect(page.get_by_role("heading", name="Grids")).to_be_visible()
    before = page.get_by_test_id("stMetricValue").first.inner_text()
    page.get_by_test_id("stMain").get_by_text("fp4-g64", exact=True).first.click()
    expect(page.get_by_test_id("stMetricValue").first).not_to_have_text(before)
    dashboard.settle(page)
    assert plots(page).count() == 2
    page.get_by_test_id("stMain").get_by_text("Clipping", exact=True).click()
    expect(page.get_by_role("heading", name="Clipping")).to_be_visible()
    before = page.get_by_test_id("stMetricValue").first.inner_text()
    slider = page.get_by_role("slider").nth(1)
    slider.focus()
    slider.press("ArrowLeft")
    slider.press("ArrowLeft")
    expect(page.get_by_test_id("stMetricValue").first).not_to_have_text(before)
    expect(page.get_by_role("link", name="arXiv 2306.00978")).to_have_attribute(
        "href", "https://arxiv.org/abs/2306.00978"
    )
    page.get_by_role("link", name="Run int4-g64-hqq").click()
    page.wait_for_url("**/quantize")


def test_a_file_is_audited(page, address, tmp_path):
    """A GGUF file whose header promises more than it has: answer, finding and ledger."""
    model = LlamaForCausalLM(gguf_models.CONFIG)
    gguf_models.write(tmp_path / "model.gguf", model, gguf.GGMLQuantizationType.Q8_0)
    (tmp_path / "model.gguf").write_bytes((tmp_path / "model.gguf").read_bytes()[:-99])
    dashboard.visit(page, f"{address}/audit")
    page.get_by_role("button", name="Model", exact=True).click()
    page.get_by_text("Folder or file", exact=True).click()
    page.get_by_role("textbox", name="Folder or GGUF file").fill(str(tmp_path / "model.gguf"))
    page.keyboard.press("Enter")
    page.keyboard.press("Escape")
    page.get_by_test_id("stMain").get_by_role("button", name="Audit", exact=True).click()
    page.wait_for_url("**/audit?run=*")
    expect(page.get_by_text("Broken: 1 finding breaks the model.")).to_be_visible(timeout=RUN)
    expect(page.get_by_text("A weight file is shorter than its header promises")).to_be_visible()
    expect(page.get_by_text("What to do:")).to_be_visible()
    dashboard.settle(page)
    assert plots(page).count() == 1
    page.reload()
    expect(page.get_by_text("Broken: 1 finding breaks the model.")).to_be_visible()
