"""The page Layers in Streamlit's test runner: a local model, the ledger of an earlier run."""

import shutil

import pytest
import samples
import tiny
from opened import calm, open_page, plots

from qcore import library

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


@pytest.mark.row("44")
def test_errors_of_a_copy_with_other_weights_are_not_those_of_the_original(tmp_path):
    """The digest samples each tensor, and the copy is changed between the samples. Before, the page showed
    the copy's errors for the original."""
    honest, evil = tiny.checkpoint("llama", tmp_path / "honest"), tmp_path / "evil"
    shutil.copytree(honest, evil)
    tensor = library.resolve(str(evil)).tensors["model.layers.0.mlp.up_proj.weight"]
    with (evil / tensor.file).open("r+b") as file:
        file.seek(tensor.start + tensor.nbytes // 4)
        file.write(b"\x00\x00\x80\x3f" * 100)
    assert library.resolve(str(evil)).digest == library.resolve(str(honest)).digest
    at = open_page("layers")
    calm(at.segmented_control(key="layers.source").set_value("Folder or file").run())
    calm(at.text_input(key="layers.path").set_value(str(evil)).run())
    calm(at.button(key="layers.measure").click().run())
    calm(at.text_input(key="layers.path").set_value(str(honest)).run())
    assert at.button(key="layers.measure") and not at.metric, "nothing was measured on this one"


def test_ledger_of_an_earlier_run(tmp_path, home):
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
