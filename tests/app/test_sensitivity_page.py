"""The sensitivity page in Streamlit's test runner: empty, predicted only, measured, failed; mixed precision
on the compare page."""

import time
from dataclasses import replace

import pytest
import samples
from opened import calm, open_page, plots, words
from streamlit.testing.v1 import AppTest

from qcore.base.files import write_json
from qcore.formats.budget import CANDIDATES
from qcore.jobs import jobs
from qcore.jobs.kind_sensitivity import SensitivityRequest
from qcore.quantization.sensitivity.store import TableStore
from qcore.quantization.sensitivity.table import Layer, Sensitivities
from ui import sensitivity_charts

pytestmark = pytest.mark.usefixtures("home")

KINDS = {"self_attn.q_proj": (64, 64), "mlp.up_proj": (128, 64), "mlp.down_proj": (64, 128)}


def table(measured: bool = False, formats=CANDIDATES, model: str = "a model") -> Sensitivities:
    """Return invented figures for a model of four blocks."""
    layers = []
    for block in range(4):
        for place, (kind, shape) in enumerate(KINDS.items()):
            loss = tuple(0.01 * (block + 1) * (place + 1) * 4.0**-k for k in range(len(formats)))
            nbytes = tuple(shape[0] * shape[1] * (24 + 4 * k) // 64 for k in range(len(formats)))
            kl = tuple(1.1 * value for value in loss) if measured else None
            layers.append(
                Layer(
                    f"model.layers.{block}.{kind}.weight",
                    block,
                    kind,
                    shape,
                    shape[0] * shape[1],
                    nbytes,
                    loss,
                    loss,
                    kl,
                )
            )
    about = {
        "model": model,
        "digest": "0" * 64,
        "method": "rtn",
        "prepare": "none",
        "text": {"name": "a text", "sha256": "1" * 64},
        "tokens": 4096,
        "window": 512,
        "samples": 2,
        "seconds": 61.0,
        "made_at": time.time(),
    }
    about |= {"measured_tokens": 512, "measured_window": 256, "measured_seconds": 600.0} if measured else {}
    return Sensitivities(tuple(formats), tuple(layers), about)


def keep(found: Sensitivities, name: str = "a") -> str:
    store = TableStore({"name": name})
    store.write(found)
    return store.key


def test_empty():
    at = open_page("sensitivity")
    assert (
        "Nothing has been computed yet" in words(at)
        and plots(at) == 0
        and not at.button(key="sensitivity.compute").disabled
    )


def test_predicted_only():
    key = keep(table())
    at = open_page("sensitivity")
    assert (
        plots(at) == 3
        and "No allocation within the budget has a lower predicted loss" in words(at)
        and "auto-4.25bpw" in words(at)
    )
    assert list(at.segmented_control(key=f"sensitivity.measure.{key}").options) == [
        "Predicted loss",
        "Error of the output",
    ]
    calm(at.segmented_control(key=f"sensitivity.format.{key}").set_value("int4-g64").run())
    assert "alone in int4-g64" in words(at)
    calm(at.segmented_control(key=f"sensitivity.measure.{key}").set_value("Error of the output").run())
    calm(at.slider(key=f"sensitivity.bits.{key}").set_value(4.0).run())
    assert "auto-4bpw" in words(at)
    assert len(at.dataframe[0].value) == 12 and "chosen" in at.dataframe[0].value


def test_measured():
    keep(table(measured=True))
    at = open_page("sensitivity")
    assert plots(at) == 4 and "rank correlation with the measured KL: predicted loss 1.000" in words(at)
    assert "int4-g64, measured" in at.dataframe[0].value


def test_one_format_leaves_nothing_to_choose():
    keep(table(formats=CANDIDATES[:1]))
    at = open_page("sensitivity")
    assert plots(at) == 1 and "nothing to choose" in words(at) and "chosen" not in at.dataframe[0].value


def test_a_strange_name_is_shown_as_it_is():
    keep(table(model=samples.STRANGE))
    assert "http://example.com" not in [
        link.proto.url for link in open_page("sensitivity").get("link_button")
    ]


def test_several_tables_are_offered_newest_first():
    keep(table(), "a")
    keep(replace(table(), conditions=table().conditions | {"model": None}), "b")
    at = open_page("sensitivity")
    assert len(at.selectbox(key="sensitivity.table").options) == 2


def test_runs_of_the_model_are_drawn_as_measured(home):
    keep(table())
    samples.write_run(home, [samples.row(name) for name in ("fp32", "int4-g64", "int8")])
    at = open_page("sensitivity")
    assert plots(at) == 3
    figure = sensitivity_charts.frontier(
        [(4.0, 0.1), (5.0, 0.01)], {"int4-g64": (4.3, 0.2)}, (4.2, 0.08), [("int4-g64", 4.3, 0.21)]
    )
    assert [trace.name for trace in figure.data] == [
        "best allocations",
        "all layers in one format",
        "measured in runs",
        "chosen",
    ]


def test_what_is_asked_for_is_submitted(monkeypatch):
    asked = []
    monkeypatch.setattr(jobs, "submit", lambda request, **_: asked.append(request))
    at = open_page("sensitivity")
    calm(at.segmented_control(key="sensitivity.method").set_value("gptq").run())
    calm(at.toggle(key="sensitivity.measure").set_value(True).run())
    calm(at.button(key="sensitivity.compute").click().run())
    (request,) = asked
    assert (request.model, request.method, request.measure_tokens) == ("smollm2-135m", "gptq", 512)


@pytest.mark.parametrize(
    ("about", "message"),
    [
        ({"state": "failed", "error": "There is no such model."}, "There is no such model"),
        ({"state": "running", "phase": "block 3", "started_at": 0.0}, "was killed from outside"),
        ({"state": "cancelled"}, "Run it again to resume"),
    ],
    ids=["failed", "killed", "cancelled"],
)
def test_how_the_last_computation_ended(about, message, home):
    place = home / "runs" / "20261125-100000-aaaaaa"
    write_json(place / "spec.json", SensitivityRequest(model="a/model").to_dict())
    write_json(place / "status.json", about)
    assert message in words(open_page("sensitivity"))


def test_a_public_server_takes_no_paths_and_measures_nothing(monkeypatch):
    monkeypatch.setenv("QCORE_PUBLIC", "1")
    at = open_page("sensitivity")
    assert not at.get("text_input") and not at.get("toggle")


@pytest.mark.parametrize(
    ("changes", "proof"),
    [
        ({}, "optimal within the budget"),
        ({"exact": False, "bound": 0.15}, "at most 0.0500 above the minimum"),
        (
            {"exact": False, "bound": 1e6, "budget": {"amount": 0.2, "unit": "kl"}},
            "a smaller allocation within the loss may exist",
        ),
    ],
    ids=["exact", "a bound of the loss", "a bound of bytes"],
)
def test_compare_shows_the_frontier_of_a_mixed_recipe(home, changes, proof):
    row = samples.row("int4-g64")
    row["recipe"] = row["record"]["recipe"]["name"] = "auto-4.25bpw"
    row["record"]["ledger"]["allocation"] = {
        "budget": {"amount": 4.25, "unit": "bpw"},
        "candidates": ["int3-g64", "int8-sym"],
        "method": "rtn",
        "predicted_kl": 0.2,
        "bits_per_weight": 4.249,
        "exact": True,
        "bound": 0.2,
        "layers_by_format": {"int3-g64": 150, "int8-sym": 60},
        "frontier": [[3.3, 0.9], [4.249, 0.2], [8.0, 0.001]],
        "single": {"int3-g64": [3.3, 0.9], "int8-sym": [8.0, 0.001]},
        "measure": {"tokens": 4096, "text": {"name": "a text"}},
    } | changes
    samples.write_run(home, [samples.row("fp32"), row])
    at = open_page("compare")
    assert proof in words(at)
    assert isinstance(at, AppTest) and "Mixed precision" in words(at)
    assert "predicted 0.200 nats" in words(at) and "measured 0.213" in words(at)
