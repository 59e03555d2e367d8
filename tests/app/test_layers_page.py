"""The page Layers in Streamlit's test runner: a local model, the ledger of an earlier run."""

import pytest
import samples
import tiny
from opened import calm, open_page, plots

pytestmark = pytest.mark.usefixtures("home")


def test_layers_of_a_local_model(tmp_path):
    folder = tiny.checkpoint("llama", tmp_path / "tiny")
    at = open_page("layers")
    calm(at.segmented_control(key="layers.source").set_value("Folder or file").run())
    calm(at.text_input(key="layers.path").set_value(str(folder)).run())
    calm(at.button(key="layers.measure").click().run())
    assert plots(at) == 2 and at.metric[0].value == "14"
    calm(at.selectbox(key="layers.recipe").set_value("int8").run())
    assert plots(at) == 0 and at.button(key="layers.measure")


def test_ledger_of_an_earlier_run(tmp_path, home):
    from qcore import library
    from qcore.results.store import Store

    folder = tiny.checkpoint("llama", tmp_path / "tiny")
    row = samples.row("int4-g64", model=str(folder))
    row["record"]["digest"] = library.resolve(str(folder)).digest
    samples.write_run(home, [row], model=str(folder))
    Store().rebuild()
    at = open_page("layers")
    calm(at.segmented_control(key="layers.source").set_value("Folder or file").run())
    calm(at.text_input(key="layers.path").set_value(str(folder)).run())
    assert list(at.dataframe[0].value["tensor"]) == ["model.layers.0.mlp.up_proj.weight", "model.norm.weight"]
    assert "a vector" in at.dataframe[0].value["why it was kept"][1]
