"""The audit page in Streamlit's test runner: empty, a sound model, a damaged one, headers alone, public mode,
bad input."""

import shutil

import foreign_models
import pytest
import samples
import tiny
from opened import calm, open_page, plots, words
from streamlit.testing.v1 import AppTest

from qcore.base.files import write_json
from qcore.jobs import jobs
from qcore.jobs.kind_audit import AuditRequest
from qcore.verbs import audit

pytestmark = pytest.mark.usefixtures("home")


@pytest.fixture(scope="module")
def llama(tmp_path_factory):
    return tiny.checkpoint("llama", tmp_path_factory.mktemp("models") / "llama")


@pytest.fixture
def at_once(home, monkeypatch):
    """Audits run in this process and end before `submit` returns; one real job is tested below."""

    def submit(request, **_):
        record = request.absolute().to_dict()
        run_id = samples.write_run(home, [], model=request.model)
        write_json(home / "runs" / run_id / "spec.json", record)
        found = audit.run(record["model"], values=record["values"])
        write_json(home / "runs" / run_id / "outcome.json", found.to_dict())
        return run_id

    monkeypatch.setattr(jobs, "submit", submit)


def audited(folder, *, values: bool = True) -> AppTest:
    at = open_page("audit")
    calm(at.segmented_control(key="audit.source").set_value("Folder or file").run())
    calm(at.text_input(key="audit.path").set_value(str(folder)).run())
    if not values:
        calm(at.toggle(key="audit.values").set_value(False).run())
    return calm(at.button(key="audit.start").click().run())


def told(at: AppTest) -> str:
    return words(at).replace("\\", "")


def test_empty():
    at = open_page("audit")
    assert "Choose a model above" in words(at) and plots(at) == 0
    assert at.title[0].value == "Audit" and not at.button(key="audit.start").disabled
    calm(at.segmented_control(key="audit.source").set_value("Folder or file").run())
    assert at.button(key="audit.start").disabled


@pytest.mark.slow  # a job is three processes
def test_a_sound_model(llama):
    at = audited(llama)
    (status,) = jobs.list_runs("audit")
    *_, ended = jobs.follow(status.run_id)
    assert (ended.state, ended.error) == ("done", None)
    calm(at.run())
    assert "Sound: no check found anything wrong." in told(at) and plots(at) == 1 and not at.error
    assert "107,072 weights of a llama model" in told(at)
    ledger = at.dataframe[0].value
    assert len(ledger) == 21 and set(ledger["form"]) == {"F32"} and ledger["shape"][0] == "258 × 64"


def test_a_damaged_model_of_another_project(at_once, llama, tmp_path):
    folder = foreign_models.write("gptq", llama, tmp_path / "gptq")
    config = (folder / "config.json").read_text().replace('"gptq_v2"', '"gptq"')
    (folder / "config.json").write_text(config)
    at = audited(folder)
    text = told(at)
    assert (
        "Broken: 1 finding breaks the model." in text
        and "zero points are stored in another convention" in text
    )
    assert "What it does:" in text and "What to do:" in text and "down_proj.qzeros" in text
    places, ledger = at.dataframe[0].value, at.dataframe[1].value
    assert len(places) > 3 and set(ledger["form"]) == {"F32", "GPTQ int4 g32"}
    calm(at.toggle(key="audit.plain").set_value(True).run())
    assert set(at.dataframe[1].value["form"]) == {"F32"}


def test_headers_alone(at_once, llama):
    at = audited(llama, values=False)
    assert "in the headers" in told(at) and "values of weights and scales were not looked at" in told(at)


def test_names_from_files_are_shown_verbatim(at_once, llama, tmp_path):
    from safetensors.torch import load_file, save_file

    folder = shutil.copytree(llama, tmp_path / "model")
    held = load_file(folder / "model.safetensors")
    held["**b** [x](http://a.b) $y$ <i>"] = held["lm_head.weight"].clone()
    save_file(held, folder / "model.safetensors", {"format": "pt"})
    shown = "\n".join(element.value for element in audited(folder).markdown)
    assert r"\*\*b\*\* \[x\]\(http" in shown


def test_failed_audits_and_runs_of_other_kinds(home):
    failed = samples.write_run(home, [], state="failed", error="model has no weights to audit.")
    write_json(home / "runs" / failed / "spec.json", AuditRequest(model="model").to_dict())
    assert "no weights to audit" in told(open_page("audit", run=failed))
    other = samples.write_run(home, [samples.row("fp32")], second=1)
    assert "is not an audit" in told(open_page("audit", run=other))
    assert "20200101-000000-abcdef" in told(open_page("audit", run="20200101-000000-abcdef"))


def test_on_a_public_server_only_the_hub_is_read(monkeypatch):
    monkeypatch.setenv("QCORE_PUBLIC", "1")
    at = open_page("audit")
    assert at.segmented_control(key="audit.source").options == ["Built in", "Hugging Face hub"]
    assert not [toggle for toggle in at.toggle if toggle.key == "audit.values"]
    calm(at.segmented_control(key="audit.source").set_value("Hugging Face hub").run())
    calm(at.text_input(key="audit.hub").set_value("../../etc").run())
    calm(at.button(key="audit.start").click().run())
    assert "is not accepted here" in told(at) and jobs.list_runs() == []
