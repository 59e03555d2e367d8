"""The plan page in Streamlit's test runner: empty, a local model, requirements, accelerators, probe,
hand-over, bad input."""

import opened
import pytest
import samples
import tiny
import wrapped_models
from opened import calm, open_page, plots
from streamlit.testing.v1 import AppTest

from qcore import library, models, recipes
from qcore.jobs import jobs
from qcore.planning import probe
from ui import plan_charts, plan_view

pytestmark = pytest.mark.usefixtures("home")


@pytest.fixture(scope="module")
def llama(tmp_path_factory):
    return tiny.checkpoint("llama", tmp_path_factory.mktemp("models") / "llama")


def planned(folder) -> AppTest:
    at = open_page("plan")
    calm(at.segmented_control(key="plan.source").set_value("Folder or file").run())
    return calm(at.text_input(key="plan.path").set_value(str(folder)).run())


def words(at: AppTest) -> str:
    return opened.words(at).replace("\\", "")


def test_empty_asks_for_a_model():
    at = open_page("plan")
    assert at.button(key="outline.smollm2-135m").label == "Fetch it" and not plots(at)
    calm(at.segmented_control(key="plan.source").set_value("Hugging Face hub").run())
    assert "Choose a model" in words(at)
    calm(at.text_input(key="plan.hub").set_value("owner/name").run())
    assert at.button(key="outline.owner/name").label == "Look it up" and "no weights are downloaded" in words(
        at
    )


def test_a_local_model_is_planned_at_once(llama):
    at = planned(llama)
    assert plots(at) == 1 and not at.error
    text = words(at)
    assert "Take int8 with a fp32 cache" in text or "Take" in text
    assert (
        "0.107 million weights" in text and "2 layers of 64 numbers per token; 512 tokens for 1 user" in text
    )
    assert [subheader.value for subheader in at.subheader] == [
        "Memory while running",
        "Speed on this machine",
        "All figures",
    ]
    assert list(at.dataframe[0].value["recipe"])[:3] == ["fp32", "bf16", "int8"]
    assert (
        "green-badge[counted]" in text
        and "orange-badge[estimated]" in text
        and "gray-badge[not probed]" in text
    )


def test_a_text_model_inside_a_wrapper_is_planned(tmp_path):
    at = planned(wrapped_models.checkpoint("mistral3", tmp_path / "mistral3"))
    assert plots(at) == 1 and not at.error
    assert "Only its text model is quantized: model.vision_tower and model.multi_modal_projector (" in words(
        at
    )
    assert "layers of 64 numbers per token" in words(at)


def test_needs_change_the_plan(llama):
    at = planned(llama)
    before = at.dataframe[0].value["KV cache"][0]
    calm(at.number_input(key="plan.users").set_value(4).run())
    assert at.dataframe[0].value["KV cache"][0] != before and "for 4 users" in words(at)
    calm(at.segmented_control(key="plan.kv").set_value("fp16").run())
    calm(at.selectbox(key="plan.memory").set_value("NVIDIA L4").run())
    assert not at.error and plots(at) == 1
    calm(at.selectbox(key="plan.memory").set_value(plan_view.AMOUNT).run())
    calm(at.text_input(key="plan.amount").set_value("10MB").run())
    assert "None of the recipes meets all of it" in words(at) and set(at.dataframe[0].value["fits"]) == {"no"}
    calm(at.text_input(key="plan.amount").set_value("plenty").run())
    assert "is not an amount of memory" in at.error[0].value.replace("\\", "") and not plots(at)


def test_the_recommendation_is_handed_over(llama):
    at = planned(llama)
    calm(at.multiselect(key="plan.recipes").set_value(["fp32", "int4-g64-gptq"]).run())
    calm(at.number_input(key="plan.kl").set_value(5.0).run())
    calm(at.button(key="plan.go").click().run())
    assert at.title[0].value == "Quantize" and at.text_input(key="quantize.path").value == str(llama)
    chosen = [
        name
        for pills in at.get("button_group")
        for name in (pills.value if isinstance(pills.value, list) else [])
    ]
    assert "fp32" in chosen or at.text_input(key="quantize.more").value


@pytest.mark.slow
def test_the_probe_is_run_shown_and_can_be_cancelled(llama):
    at = planned(llama)
    calm(at.multiselect(key="plan.recipes").set_value(["fp32", "int8"]).run())
    calm(at.button(key="plan.probe").click().run())
    *_, probed = jobs.follow(at.session_state["plan.probing"])
    assert (probed.state, probed.error) == ("done", None)
    calm(at.run())
    model = models.meta_model(library.outline(str(llama)))
    if probe.known(model, recipes.parse("int8")):  # a fresh process may have a different number of threads
        assert (
            plots(at) == 2
            and "read bandwidth" in words(at)
            and "tok/s (probed" in at.dataframe[0].value["decode"][1]  # beside other tests, or not
        )
    calm(at.multiselect(key="plan.recipes").set_value(["fp32", "int8", "int3"]).run())
    calm(at.button(key="plan.probe").click().run())
    running = at.session_state["plan.probing"]
    if jobs.status(running).active:
        calm(at.button(key="plan.cancel").click().run())
    assert not jobs.status(running).active


def test_the_error_band_of_earlier_runs(llama, home):
    row = samples.row("int8", model=str(llama))
    row["record"]["predicted"] = {
        "stored_bytes": row["stored_bytes"],
        "decode_tok_s": 1.1 * row["decode_tok_s"],
    }
    samples.write_run(home, [row], model=str(llama))
    from qcore.results.store import Store

    Store().rebuild()
    text = words(planned(llama))
    assert (
        "1 of 1 within 20.0 %] **decode**: median error 10.0 %" in text
        and "**stored bytes**: median error 0" in text
    )


def test_what_is_no_model_is_answered(tmp_path):
    at = planned(tmp_path / "missing")
    assert (
        len(at.error) == 1
        and "is neither a folder or file here nor a hub id" in at.error[0].value
        and not plots(at)
    )


def test_an_already_quantized_model_is_shown_as_it_is(llama, tmp_path):
    import qcore

    folder = qcore.save(qcore.quantize(str(llama), "int8"), tmp_path / "saved")
    at = planned(folder)
    assert plots(at) == 1 and list(at.dataframe[0].value["recipe"]) == ["as it is"]
    assert not [button for button in at.button if button.key in ("plan.probe", "plan.go")]


def test_charts_draw_the_line_only_where_it_is_near(llama):
    from qcore import planning

    rows = [row for row in planning.plan(str(llama)).rows if row.kv == "fp32"]
    near = plan_charts.memory(rows, 500_000_000, "given")
    far = plan_charts.memory(rows, 50_000_000_000, "given")
    assert len(near.layout.shapes) == 1 and not far.layout.shapes
    assert [trace.name for trace in near.data] == list(plan_charts.PARTS)
    assert any("50.0 GB given →" in note.text for note in far.layout.annotations)
