"""Charts are pure functions from rows to figures, so the tests read the figures."""

import math
from dataclasses import dataclass

import pytest
import samples

from qcore import recipes
from qcore.results import labels
from qcore.results.rows import FIGURES
from qcore.results.scales import frontier
from ui import charts, divergence, families, glossary, layer_charts, pareto


def bar_traces(figure):
    return [trace for trace in figure.data if trace.type == "bar"]


def test_every_recipe_has_a_family():
    assert all(families.family(name) is not families.OTHER for name in recipes.names())


def test_one_family_has_one_color_in_every_figure():
    rows = samples.labeled()
    for figure in (charts.memory(rows), charts.throughput(rows), charts.quality(rows), charts.overview(rows)):
        for trace in bar_traces(figure):
            assert list(trace.marker.color) == [families.color(row["recipe"]) for row in rows]


@pytest.mark.parametrize(
    "draw, keys",
    [
        (charts.memory, ("stored_bytes", "peak_run_bytes")),
        (charts.throughput, ("decode_tok_s", "prefill_tok_s")),
        (charts.quality, ("perplexity", "kl_mean")),
    ],
    ids=["memory", "throughput", "quality"],
)
def test_bars_are_the_rows_figures(draw, keys):
    rows = samples.labeled(("fp32", "int8", "int4-g64"))
    traces = bar_traces(draw(rows))
    assert [list(trace.x) for trace in traces] == [[row[key] for row in rows] for key in keys]
    assert all(list(trace.y) == ["fp32", "int8", "int4-g64"] for trace in traces)


def test_labels_carry_units():
    rows = samples.labeled(("fp32", "int8"))
    assert list(bar_traces(charts.memory(rows))[0].text) == ["538 MB", "220 MB"]
    assert list(bar_traces(charts.throughput(rows))[0].text) == ["13.1 tok/s", "14.9 tok/s"]
    assert list(bar_traces(charts.quality(rows))[1].text) == ["0 (the baseline)", "0.00210 nats"]


def test_a_bar_off_by_orders_of_magnitude_is_cut_and_says_so():
    rows = samples.labeled()
    trace = bar_traces(charts.quality(rows))[0]
    at = [row["recipe"] for row in rows].index("int2")
    assert trace.x[at] < 100 and "51,234" in trace.text[at] and "cut" in trace.text[at]


@pytest.mark.row("40")
def test_failed_rows_have_no_bar_and_are_named():
    rows = [
        *samples.labeled(("fp32",)),
        {**samples.row("int8", status="failed", error="No."), "label": "int8"},
    ]
    figure = charts.memory(rows)
    assert [list(trace.x)[1] for trace in bar_traces(figure)] == [None, None]
    red = [note for note in figure.layout.annotations if note.text == "failed"]
    assert len(red) == 2 and all(note.font.color == families.FAILED for note in red)


def test_all_rows_failed():
    rows = [{**samples.row("int8", status="failed", error="No."), "label": "int8"}]
    for draw in (charts.memory, charts.throughput, charts.quality):
        draw(rows)


def test_missing_numbers_are_not_measured():
    rows = [{**samples.row("int8", kl_mean=None, top1_agreement=None), "label": "int8"}]
    assert "not measured" in [note.text for note in charts.quality(rows).layout.annotations]


def test_memory_limit_is_bandwidth_over_the_bytes_of_a_token():
    row = samples.row("fp32")
    assert charts.memory_limit(row) == 25e9 / row["stored_bytes"]
    assert charts.memory_limit({**row, "record": {**row["record"], "bytes_a_token": 1e8}}) == 250
    assert charts.memory_limit({**row, "record": {}}) is None


def test_memory_limits_are_drawn_inside_and_named_outside():
    figure = charts.throughput(samples.labeled(("fp32", "int4-g64", "torch-dynamic-int8")))
    marks = next(trace for trace in figure.data if trace.type == "scatter")
    assert list(marks.y) == ["fp32"]
    assert sum("limit" in note.text and "→" in note.text for note in figure.layout.annotations) == 2


def test_no_limit_without_a_bandwidth():
    rows = samples.labeled(("fp32",))
    del rows[0]["record"]["environment"]["read_bandwidth"]
    figure = charts.throughput(rows)
    assert not any("limit" in note.text for note in figure.layout.annotations)


def test_estimate_marks_what_does_not_fit():
    rows = [
        {"recipe": "fp32", "label": "fp32", "stored_bytes": 5e9, "peak_bytes": 9e9, "fits": False},
        {"recipe": "int8", "label": "int8", "stored_bytes": 2e9, "peak_bytes": 6e9, "fits": True},
    ]
    figure = charts.estimate(rows, 8e9)
    assert figure.data[1].marker.color[0].startswith(families.FAILED) and figure.data[1].marker.color[
        1
    ].startswith(families.color("int8"))
    assert any("8.00 GB available" in note.text for note in figure.layout.annotations)


def test_a_long_name_leaves_room_for_its_bar():
    rows = [
        {"recipe": name, "label": name, "stored_bytes": 5e8, "peak_bytes": 1e9, "fits": True}
        for name in ("fp32", "saved:a-model-with-neurons-25")
    ]
    axis = charts.estimate(rows, 8e9).layout.yaxis
    assert axis.ticktext == ("fp32", "saved:…th-neurons-25") and axis.tickvals == (
        "fp32",
        "saved:a-model-with-neurons-25",
    )


@pytest.mark.parametrize(
    "smaller_x, expected",
    [(True, [1, 0, 3]), (False, [3])],
    ids=["size: small and good", "speed: one point is best at both"],
)
def test_frontier(smaller_x, expected):
    points = [(2.0, 5.0), (1.0, 9.0), (3.0, 6.0), (4.0, 1.0)]
    assert frontier(points, smaller_x, smaller_y=True) == expected


def test_frontier_is_what_no_point_beats():
    points = [((i * 37) % 17 / 3, (i * 53) % 29 / 5) for i in range(40)]
    front = set(frontier(points, True, True))
    for i, (x, y) in enumerate(points):
        beaten = any(a <= x and b <= y and (a, b) != (x, y) for a, b in points)
        twin = any(points[k] == (x, y) for k in front)
        assert (i in front) != beaten or (not beaten and twin)


@pytest.mark.parametrize("cost", pareto.COSTS.values(), ids=pareto.COSTS)
@pytest.mark.parametrize("quality", pareto.QUALITIES.values(), ids=pareto.QUALITIES)
def test_pareto_draws_every_row_once(cost, quality):
    rows = samples.labeled()
    figure = pareto.pareto(rows, cost, quality)
    points = [hover for trace in figure.data if trace.mode == "markers+text" for hover in trace.customdata]
    assert sorted(hover.split("</b>")[0][3:] for hover in points) == sorted(samples.FIGURES)
    assert all(
        math.isfinite(value) and (value > 0 or not quality.log) for trace in figure.data for value in trace.y
    )


def test_pareto_leaves_out_rows_without_numbers():
    rows = [*samples.labeled(("fp32", "int8")), {**samples.row("nf4-g64", kl_mean=None), "label": "nf4-g64"}]
    figure = pareto.pareto(rows, pareto.COSTS["Stored size"], pareto.QUALITIES["KL divergence"])
    assert not any(
        "nf4" in hover for trace in figure.data if trace.customdata is not None for hover in trace.customdata
    )


def test_names_do_not_cover_each_other():
    points = [(0.5, 0.5), (0.505, 0.5), (0.5, 0.51), (0.2, 0.9), (0.98, 0.5)]
    texts = ["int4-g64", "nf4-g64", "kmeans4", "fp32", "torch-dynamic-int8"]
    places = labels.place(points, texts, 800, 400)
    boxes = []
    for (x, y), text, place in zip(points, texts, places, strict=True):
        if place:
            _, dx, dy = next(position for position in labels.POSITIONS if position[0] == place)
            boxes.append(labels._box(x * 800, y * 400, dx, dy, len(text) * labels.CHARACTER))
    assert len(boxes) >= 4
    assert not any(labels._overlap(a, b) for i, a in enumerate(boxes) for b in boxes[:i])
    assert "left" in places[4]


@dataclass(frozen=True)
class LayerError:
    name: str
    shape: tuple
    relative_error: float
    snr_db: float
    bits_per_weight: float


@pytest.mark.parametrize(
    "name, expected",
    [
        ("model.layers.3.self_attn.q_proj.weight", (3, "self_attn.q_proj")),
        ("transformer.h.11.mlp.c_fc.weight", (11, "mlp.c_fc")),
        ("h.0.attn.c_attn.weight", (0, "attn.c_attn")),
        ("lm_head.weight", (None, "lm_head")),
        ("model.layers.1.mlp.experts.gate_up_proj", (1, "mlp.experts.gate_up_proj")),
    ],
)
def test_where_a_tensor_belongs(name, expected):
    assert layer_charts.where(name) == expected


def test_error_map_puts_each_layer_in_its_cell():
    errors = [
        LayerError(f"model.layers.{i}.mlp.{kind}.weight", (4, 4), 0.01 * (i + 1), 40.0, 4.3)
        for i in range(3)
        for kind in ("up", "down")
    ]
    errors.append(LayerError("lm_head.weight", (8, 4), 0.5, 6.0, 4.3))
    heat, bars = layer_charts.error_map(errors, "int4-g64").data
    assert list(heat.y) == ["mlp.up", "mlp.down", "lm_head"] and list(heat.x) == [0, 1, 2]
    assert list(heat.z[0]) == pytest.approx([1.0, 2.0, 3.0]) and list(heat.z[2]) == [None, None, None]
    assert list(bars.x) == pytest.approx([2.0, 2.0, 50.0])


def test_histogram_draws_counts_and_grid():
    @dataclass(frozen=True)
    class Histogram:
        edges = (-1.0, 0.0, 1.0, 2.0)
        before = (10, 0, 5)
        after = (0, 15, 0)
        grid = (-0.5, 0.5)

    before, after, grid = layer_charts.histogram(Histogram, "int4-g64").data
    assert (
        list(before.x) == [-0.5, 0.5, 1.5]
        and before.y[0] == 10
        and after.y[1] == 15
        and list(grid.x) == [-0.5, 0.5]
    )


def test_divergence_picture():
    rows = samples.labeled(("fp32", "int8", "int4-g64"))
    heat = divergence.picture(rows).data[0]
    assert list(heat.y) == ["int8", "int4-g64"]
    assert (
        list(heat.z[0]) == [100, 100, 100]
        and list(heat.z[1]) == [40, 100, 60]
        and list(heat.text[1]) == ["4", "=", "6"]
    )


def test_glossary_knows_what_the_tables_need():
    assert all(glossary.explain(figure.term) for figure in FIGURES if figure.term)
