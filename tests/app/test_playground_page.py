"""The page Playground in Streamlit's test runner: writing, a saved model beside its original, bad input."""

import json

import pytest
import streamlit
import tiny
from opened import PATIENCE, calm, open_page, words

pytestmark = pytest.mark.usefixtures("home")


@pytest.mark.slow
def test_playground_writes_and_compares(tmp_path):
    folder = tiny.checkpoint("llama", tmp_path / "tiny")
    at = open_page("playground")
    calm(at.segmented_control(key="playground.source").set_value("Folder or file").run())
    calm(at.text_input(key="playground.path").set_value(str(folder)).run())
    calm(at.multiselect(key="playground.recipes").set_value(["fp32", "int4-g64"]).run())
    calm(at.slider(key="playground.new_tokens").set_value(8).run())
    calm(at.button(key="playground.write").click().run())
    session = at.session_state["playground.session"]
    session.join(PATIENCE)
    calm(at.run())
    assert not at.error and list(session.panes) == ["fp32", "int4-g64"]
    assert all(pane.state == "done" for pane in session.panes.values())
    assert "tok/s" in words(at) and "8 tokens" in words(at)
    streamlit.cache_resource.clear()


@pytest.mark.slow
@pytest.mark.parametrize("origin_known", [True, False])
def test_playground_shows_a_quantized_model_beside_its_original(tmp_path, origin_known):
    """The quantized model is not shown as fp32 or int8. It is shown alone if its original is unknown."""
    import qcore

    folder = tiny.checkpoint("llama", tmp_path / "tiny")
    small = qcore.save(qcore.quantize(str(folder), "int4-g32"), tmp_path / "small")
    if not origin_known:
        manifest = json.loads((small / "qcore.json").read_text())
        (small / "qcore.json").write_text(json.dumps(manifest | {"from": None}))
    at = open_page("playground")
    calm(at.segmented_control(key="playground.source").set_value("Folder or file").run())
    calm(at.text_input(key="playground.path").set_value(str(small)).run())
    calm(at.multiselect(key="playground.recipes").set_value(["fp32", "int8"]).run())
    calm(at.slider(key="playground.new_tokens").set_value(8).run())
    calm(at.button(key="playground.write").click().run())
    session = at.session_state["playground.session"]
    session.join(PATIENCE)
    calm(at.run())
    expected = ["fp32", "int8", "saved:small"] if origin_known else ["saved:small"]
    assert not at.error and list(session.panes) == expected
    assert all(pane.state == "done" for pane in session.panes.values())
    streamlit.cache_resource.clear()


@pytest.mark.parametrize(
    "key, value, sentence", [("prompt", " ", "The prompt is empty"), ("recipes", [], "at least one recipe")]
)
def test_playground_says_what_is_missing(key, value, sentence):
    at = open_page("playground")
    widget = (
        at.text_area(key="playground.prompt") if key == "prompt" else at.multiselect(key="playground.recipes")
    )
    calm(widget.set_value(value).run())
    calm(at.button(key="playground.write").click().run())
    assert sentence in at.error[0].value


def test_playground_shows_a_models_error(tmp_path):
    at = open_page("playground")
    calm(at.segmented_control(key="playground.source").set_value("Folder or file").run())
    calm(at.text_input(key="playground.path").set_value(str(tmp_path / "nothing")).run())
    calm(at.button(key="playground.write").click().run())
    assert len(at.error) >= 1
