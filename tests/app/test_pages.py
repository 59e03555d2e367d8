"""Each page in Streamlit's test runner, without server and browser: empty, partly filled, full, failed;
hostile texts; public mode."""

import json
import os

import pytest
import samples
import tiny
from opened import calm, open_page, plots, words

from qcore.base.errors import InputError
from qcore.jobs import jobs
from qcore.results.store import Store
from ui.forms import recipes

pytestmark = pytest.mark.usefixtures("home")


@pytest.fixture
def submitted(monkeypatch, home):
    """The submitted runs; none is started."""
    specs = []

    def submit(spec, **_):
        specs.append(spec)
        return samples.write_run(
            home, [], state="done", pending=[recipe.name for recipe in spec.recipes], second=len(specs)
        )

    monkeypatch.setattr(jobs, "submit", submit)
    return specs


@pytest.mark.parametrize("name", ["home", "quantize", "compare", "playground", "layers"])
def test_empty(name):
    at = open_page(name)
    assert at.title[0].value and not at.error


@pytest.mark.parametrize("name", ["home", "quantize", "compare", "playground", "layers"])
def test_full(name, home):
    samples.write_run(home, [samples.row(recipe) for recipe in samples.FIGURES])
    assert not open_page(name).error


@pytest.mark.row("F15")
def test_home_checks_the_database_once(home, monkeypatch):
    open_page("home")
    os.utime(home / "qcore.db")
    monkeypatch.setattr(Store, "_prepare", lambda self: 1 / 0)
    open_page("home")


@pytest.mark.parametrize("name", ["home", "compare"])
def test_the_first_comparison_is_one_click_away(submitted, name):
    at = open_page(name)
    calm(at.button(key=f"{name}.first").click().run())
    (spec,) = submitted
    assert spec.model == "smollm2-135m" and [recipe.name for recipe in spec.recipes] == [
        "fp32",
        "int8",
        "int4-g64",
    ]


def test_home_shows_the_latest_results(home):
    samples.write_run(home, [samples.row("fp32"), samples.row("int8")])
    at = open_page("home")
    assert plots(at) == 1 and "home.first" not in [button.key for button in at.button]


@pytest.mark.row("36")
def test_a_replaced_database_is_told_until_seen(home):
    samples.write_run(home, [samples.row("fp32")])
    (home / "qcore.db").write_bytes(b"no database" * 1000)
    at = open_page("home")
    assert len(at.warning) == 1 and plots(at) == 1
    assert not calm(at.button(key="notice.seen").click().run()).warning


def test_compare_draws_memory_throughput_quality_and_the_trade_off(home):
    samples.write_run(home, [samples.row(recipe) for recipe in ("fp32", "int8", "int4-g64")])
    at = open_page("compare")
    assert plots(at) == 6  # and the answers
    assert [subheader.value for subheader in at.subheader][:5] == [
        "Memory",
        "Throughput",
        "Quality",
        "Verdicts",
        "The trade-off",
    ]
    assert [metric.label.replace("\\", "") for metric in at.metric] == [
        "Smallest · int4-g64",
        "Fastest decode · int8",
        "Closest to fp32 · int8",
    ]


def test_compare_says_whether_a_loss_is_real_and_within_what(home):
    samples.write_run(home, [samples.row(recipe) for recipe in ("fp32", "int8", "int4-g64", "bnb-int8")])
    at = open_page("compare")
    found = {
        line.split("**")[1]: line
        for line in (each.value.replace("\\", "") for each in at.markdown)
        if "-badge[" in line
    }
    assert {name: value.split("[")[1].split("]")[0] for name, value in found.items()} == {
        "int8": "equivalent",
        "int4-g64": "worse",
        "bnb-int8": "undecided",
    }
    assert "Perplexity is 27 % higher than the baseline's (95 % interval" in found["int4-g64"]
    assert (
        "80 harmful and 63 beneficial flips (McNemar p = 0.18)" in found["int8"]
        and "tokens would decide" in found["bnb-int8"]
    )
    calm(at.segmented_control(key="compare.margin").set_value(0.05).run())
    assert words(at).count("green-badge[equivalent]") == 2 and "red-badge[worse]" in words(at)


def test_the_margin_of_the_run_is_the_one_shown_first(home):
    rows = [samples.row("fp32"), samples.row("int4-g64")]
    rows[1]["record"]["spec"]["margin"] = 0.5
    samples.write_run(home, rows)
    at = open_page("compare")
    assert at.segmented_control(key="compare.margin").value == 0.5 and "green-badge[equivalent]" in words(at)


def test_compare_shows_the_questions_if_they_were_asked(home):
    run = samples.write_run(
        home, [samples.row(name, choices=samples.choices(name)) for name in ("fp32", "int4-g64")]
    )
    text = words(open_page("compare", run=run)).replace("\\", "")
    assert (
        "Questions" in text
        and "**int4-g64**: 45 of 64 questions right (70 %" in text
        and "broken model" in text
    )
    assert "against the baseline 9 lost and 1 gained" in text
    run = samples.write_run(home, [samples.row("fp32"), samples.row("int8")], second=1)
    assert "questions right" not in words(open_page("compare", run=run))


def test_a_baseline_alone_has_no_verdicts_and_recipes_without_one_say_why(home):
    samples.write_run(home, [samples.row("fp32")])
    at = open_page("compare")
    assert "Verdicts" not in [subheader.value for subheader in at.subheader] and "no verdicts" not in words(
        at
    )
    lonely = samples.row("int8")
    lonely["record"]["evaluation"] |= {"divergence": None}
    run = samples.write_run(home, [lonely, samples.row("int4-g64", status="failed", error="No.")], second=1)
    assert "There are no verdicts" in words(open_page("compare", run=run))


def test_compare_half_filled(home):
    samples.write_run(home, [samples.row("fp32")], state="interrupted", pending=["int8", "int4-g64"])
    at = open_page("compare")
    assert plots(at) >= 3 and "2 recipes have not finished" in words(at)


def test_compare_with_nothing_finished(home):
    samples.write_run(home, [], state="interrupted", pending=["fp32"])
    assert "No recipe of this run has finished" in words(open_page("compare"))


def test_a_failed_recipe_is_red_with_its_sentence(home):
    samples.write_run(
        home, [samples.row("fp32"), samples.row("int8", status="failed", error="It does not fit. Take int4.")]
    )
    at = open_page("compare")
    assert len(at.error) == 1 and at.error[0].value == "**int8** failed: It does not fit\\. Take int4\\."


def test_all_failed(home):
    samples.write_run(
        home, [samples.row("int8", status="failed", error="No.")], state="failed", error="No recipe worked."
    )
    assert [error.value for error in open_page("compare").error] == ["**int8** failed: No\\."]


def test_several_runs_are_joined_and_differing_conditions_named(home):
    first = samples.write_run(home, [samples.row("fp32"), samples.row("int8")])
    other = samples.row("fp32", model="other")
    other["record"]["threads"] = 8
    second = samples.write_run(home, [other], model="other", second=1)
    at = open_page("compare", run=[first, second])
    assert "model, threads" in at.warning[0].value and len(at.dataframe[0].value) == 3


def test_an_unknown_run_in_the_address_does_no_harm(home):
    samples.write_run(home, [samples.row("fp32")])
    assert plots(open_page("compare", run="../../etc/passwd")) >= 3
    assert "no run" in words(open_page("quantize", run="../../etc/passwd")) or "Unknown run" in words(
        open_page("quantize", run="../../x")
    )


def test_the_trade_off_follows_its_axes(home):
    samples.write_run(home, [samples.row(recipe) for recipe in samples.FIGURES])
    at = open_page("compare")
    for cost in ("Decode speed", "Bits per weight"):
        calm(at.segmented_control(key="compare.cost").set_value(cost).run())
    for quality in ("Perplexity", "Top-1 agreement"):
        calm(at.segmented_control(key="compare.quality_axis").set_value(quality).run())


@pytest.mark.row("16")
def test_hostile_texts_are_shown_and_not_obeyed(home):
    samples.write_run(home, [samples.row("fp32"), samples.row("int4-g64")], model="owner/<b>*x*")
    at = open_page("compare")
    calm(at.selectbox(key="compare.prompt").set_value("language-2").run())
    text = words(at)
    assert (
        "\\<b\\>" in text
        and "<b>&amp" not in text
        and "⟨U\\+202E⟩" in text
        and "⟨U\\+0000⟩" in text
        and "[link](" not in text
    )


def test_record_and_downloads(home):
    samples.write_run(home, [samples.row("fp32")])
    at = open_page("compare")
    assert "python -m qcore compare smollm2-135m --recipes fp32" in [code.value for code in at.code]
    assert [button.label for button in at.get("download_button")] == ["CSV", "JSON", "Report"]


@pytest.mark.parametrize(
    "state, shown",
    [
        ("done", "Finished in 3 min 20 s"),
        ("failed", "No model\\."),
        ("cancelled", "Finished results were kept"),
        ("interrupted", "killed"),
    ],
)
def test_run_panel(home, state, shown):
    error = {"failed": "No model.", "interrupted": "The run's process was killed from outside."}.get(state)
    run = samples.write_run(home, [samples.row("fp32")], state=state, error=error, pending=["int8"])
    assert shown in words(open_page("quantize", run=run))


def test_run_panel_of_a_run_under_way(home, monkeypatch):
    run = samples.write_run(
        home,
        [samples.row("fp32")],
        state="running",
        phase="int8: quantizing",
        done=3,
        total=12,
        fraction=0.4,
        eta_s=90.0,
        pending=["int8"],
    )
    monkeypatch.setattr(jobs, "_alive", lambda folder, about: True)
    cancelled = []
    monkeypatch.setattr(jobs, "cancel", cancelled.append)
    at = open_page("quantize", run=run)
    text = words(at)
    assert "about 1 min 30 s left" in text and "See the finished recipes" not in text
    calm(at.button(key=f"cancel.{run}").click().run())
    assert cancelled == [run]


@pytest.mark.row("37")
def test_a_queued_run_shows_its_place(home, monkeypatch):
    monkeypatch.setattr(jobs, "_alive", lambda folder, about: True)
    samples.write_run(home, [], state="running", pending=["fp32"])
    run = samples.write_run(home, [], state="queued", pending=["fp32"], second=1)
    assert "1 ahead" in words(open_page("quantize", run=run))


@pytest.mark.row("45")
def test_a_run_that_is_chosen_many_times_is_read_once(home):
    """A browser may send any list, and the rows of 1,000 runs took minutes of the process that all share."""
    run = samples.write_run(home, [samples.row("fp32"), samples.row("int8")])
    at = open_page("compare", run=run)
    once = [len(each.value) for each in at.dataframe]
    calm(at.multiselect(key="compare.runs").set_value([run] * 30).run())
    assert [len(each.value) for each in at.dataframe] == once and once


@pytest.mark.row("45")
def test_more_patterns_than_a_recipe_may_have_are_refused_before_anything_is_matched():
    at = open_page("quantize")
    calm(at.text_input(key="quantize.skip").set_value("x," * 200_000).run())
    assert "200,000 patterns of modules to skip were given, but at most 300" in words(at).replace("\\", "")
    assert at.button(key="quantize.start").disabled


def test_start_sends_what_was_chosen(submitted):
    at = open_page("quantize")
    calm(at.number_input(key="quantize.tokens").set_value(512).run())
    calm(at.toggle(key="quantize.ask").set_value(True).run())
    calm(at.toggle(key="quantize.chat").set_value(False).run())
    calm(at.text_input(key="quantize.more").set_value("int4-g32-dq").run())
    calm(at.text_input(key="quantize.skip").set_value("layers.0").run())
    calm(at.selectbox(key="quantize.kv").set_value("int8").run())
    calm(at.button(key="quantize.start").click().run())
    (spec,) = submitted
    assert (spec.tokens, spec.choices, spec.kv) == (512, "default", "int8") and [
        recipe.name for recipe in spec.recipes
    ] == ["fp32", "int8", "int4-g64", "int4-g32-dq"]
    assert spec.generate and not spec.chat
    assert spec.recipes[3].modules.skip == ("layers.0",) and spec.recipes[0].modules.skip == ()


def test_presets_set_the_recipes(submitted):
    at = open_page("quantize")
    calm(at.button(key="quantize.preset.Decreasing bits").click().run())
    calm(at.button(key="quantize.start").click().run())
    assert [recipe.name for recipe in submitted[0].recipes] == ["fp32", "int8", "int4-g64", "int3", "int2"]


def test_a_typo_is_answered_and_nothing_is_lost(submitted):
    at = open_page("quantize")
    calm(at.text_input(key="quantize.more").set_value("int4-g46x").run())
    assert "Did you mean" in words(at) and at.button(key="quantize.start").disabled
    calm(at.text_input(key="quantize.more").set_value("int4-g128").run())
    calm(at.button(key="quantize.start").click().run())
    assert submitted[0].recipes[-1].name == "int4-g128"


def test_a_local_model_is_estimated_before_it_runs(tmp_path, submitted):
    folder = tiny.checkpoint("llama", tmp_path / "tiny")
    at = open_page("quantize")
    calm(at.segmented_control(key="quantize.source").set_value("Folder or file").run())
    assert "Choose a model first" in words(at)
    calm(at.text_input(key="quantize.path").set_value(str(folder)).run())
    assert plots(at) == 1 and not at.error
    calm(at.button(key="quantize.start").click().run())
    assert submitted[0].model == str(folder)


def test_what_does_not_fit_is_said_before_it_runs(tmp_path, submitted, monkeypatch):
    monkeypatch.setenv("QCORE_MEMORY_LIMIT", "1000000")
    folder = tiny.checkpoint("llama", tmp_path / "tiny")
    at = open_page("quantize")
    calm(at.segmented_control(key="quantize.source").set_value("Folder or file").run())
    calm(at.text_input(key="quantize.path").set_value(str(folder)).run())
    assert len(at.warning) == 3 and "does not fit" in at.warning[0].value
    calm(at.button(key="quantize.start").click().run())
    assert at.error and not submitted


def test_the_device_is_a_question_on_machines_with_a_gpu_and_refused_in_one_sentence(submitted, monkeypatch):
    assert [radio.key for radio in open_page("quantize").radio] == ["quantize.default"]
    monkeypatch.setattr("ui.forms.text.gpu_name", lambda: "Some GPU")
    monkeypatch.setattr("torch.accelerator.is_available", lambda: False)  # such as torch built for CPUs
    at = open_page("quantize")
    calm(at.radio(key="quantize.device").set_value("cuda").run())
    calm(at.button(key="quantize.start").click().run())
    assert [error.value.replace("\\", "") for error in at.error] == [
        "The device 'cuda' is not available on this machine; use cpu."
    ] and not submitted


@pytest.mark.parametrize("content", ["missing", "empty", "pickle"])
def test_a_folder_that_is_no_model_is_refused_with_a_sentence(tmp_path, content):
    folder = tmp_path / "model"
    if content != "missing":
        folder.mkdir()
    if content == "pickle":
        (folder / "config.json").write_text(json.dumps({"model_type": "llama"}))
        (folder / "pytorch_model.bin").write_bytes(b"x")
    at = open_page("quantize")
    calm(at.segmented_control(key="quantize.source").set_value("Folder or file").run())
    calm(at.text_input(key="quantize.path").set_value(str(folder)).run())
    assert len(at.error) == 1 and at.error[0].value.endswith("\\.")


@pytest.mark.row("2")
def test_public_mode_takes_no_paths_and_caps_sizes(monkeypatch):
    monkeypatch.setenv("QCORE_PUBLIC", "1")
    at = open_page("quantize")
    assert "Folder or file" not in at.segmented_control(key="quantize.source").options
    assert "File" not in at.segmented_control(key="quantize.text").options
    assert at.number_input(key="quantize.tokens").max == 4096
    calm(at.segmented_control(key="quantize.source").set_value("Hugging Face hub").run())
    calm(at.text_input(key="quantize.hub").set_value("/etc/passwd").run())
    assert "is not accepted here" in words(at)


@pytest.mark.row("19")
def test_uploads_are_kept_once_and_checked(home, monkeypatch):
    from ui.forms import text

    path = text.keep_upload("a.txt", b"Ein Text.")
    assert path.read_text() == "Ein Text." and text.keep_upload("b.txt", b"Ein Text.") == path
    assert list(path.parent.iterdir()) == [path]
    with pytest.raises(InputError):
        text.keep_upload("x.txt", b"\xff\xfe\x00\xd8")
    monkeypatch.setenv("QCORE_PUBLIC", "1")
    with pytest.raises(InputError, match="limited to 5 MB"):
        text.keep_upload("x.txt", b"a" * 6_000_000)


@pytest.mark.row("45")
@pytest.mark.parametrize("skip", [("x",) * 200_000, ("x" * 10_000,)], ids=["many", "long"])
def test_public_mode_caps_patterns_to_skip(monkeypatch, skip):
    """Matching 200,000 of them takes the worker that all visitors share for hours."""
    monkeypatch.setenv("QCORE_PUBLIC", "1")
    with pytest.raises(InputError, match="allows 100 patterns of 300 characters"):
        recipes.build(["int8"], skip, "keep")
