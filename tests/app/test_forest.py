"""Forest plots: positions of intervals, the band of the margin, rows without a verdict."""

import math

import pytest
import samples

from qcore.evaluation.questions import load_questions
from qcore.results.verdicts import with_verdicts
from ui import families, forest, questions_chart
from ui.forms import text


def judged(names, margin=0.01, more=()):
    return with_verdicts([*samples.labeled(names), *more], margin)


def points(figure):
    return {trace.y[0]: trace for trace in figure.data if trace.x[0] is not None}


def test_intervals_lie_where_the_verdicts_say():
    rows = judged(("fp32", "int8", "int4-g64"))
    found = points(forest.picture(rows, 0.01))
    assert list(found) == ["int8", "int4-g64"]  # the baseline is the dotted line
    for row in rows[1:]:
        trace, ratio = found[row["label"]], row["verdict"]["ratio"]
        ends = trace.x[0] - trace.error_x.arrayminus[0], trace.x[0], trace.x[0] + trace.error_x.array[0]
        back = [math.exp(math.sinh(end) * math.log1p(0.01)) for end in ends]
        assert back == pytest.approx([ratio["low"], ratio["estimate"], ratio["high"]])
        assert trace.marker.color == families.color(row["recipe"])


@pytest.mark.parametrize("margin", [0.001, 0.01, 0.5])
def test_the_band_is_the_margin(margin):
    figure = forest.picture(judged(("fp32", "int8", "int4-g64"), margin), margin)
    band = next(shape for shape in figure.layout.shapes if shape.type == "rect")
    assert (band.x0, band.x1) == pytest.approx((-math.asinh(1), math.asinh(1)))
    at = dict(zip(figure.layout.xaxis.ticktext, figure.layout.xaxis.tickvals, strict=True))
    assert at[f"+{100 * margin:g} %"] == pytest.approx(band.x1) and at["±0"] == 0


def test_everything_fits_and_ticks_keep_their_distance():
    figure = forest.picture(judged(samples.FIGURES), 0.01)
    low, high = figure.layout.xaxis.range
    assert all(low < value < high for trace in points(figure).values() for value in trace.x)
    ticks = list(figure.layout.xaxis.tickvals)
    assert all(b - a > 0.05 * (high - low) for a, b in zip(ticks, ticks[1:], strict=False))
    assert any("3,485×" in note.text for note in figure.layout.annotations)


def test_rows_without_a_verdict_say_why():
    failed = {**samples.row("nf4-g64", status="failed", error="No."), "label": "nf4-g64"}
    lonely = {**samples.row("int2"), "label": "int2"}
    lonely["record"]["evaluation"] = {}
    figure = forest.picture(judged(("fp32", "int8"), more=[failed, lonely]), 0.01)
    notes = {note.y: note for note in figure.layout.annotations}
    assert notes["nf4-g64"].text == "failed" and notes["nf4-g64"].font.color == families.FAILED
    assert notes["int2"].text == "no baseline to compare with" and "equivalent" in notes["int8"].text
    assert list(figure.layout.yaxis.categoryarray) == ["int8", "nf4-g64", "int2"]


def test_questions_are_points_with_intervals():
    rows = [
        {**row, "choices": samples.choices(row["recipe"])} for row in samples.labeled(("fp32", "int4-g64"))
    ]
    figure = questions_chart.picture(rows)
    full = {trace.y[0]: trace for trace in figure.data if trace.error_x.array is not None}
    for row in rows:
        share, trace = row["choices"]["accuracy"], full[row["label"]]
        assert trace.x[0] == 100 * share["estimate"]
        assert trace.x[0] + trace.error_x.array[0] == pytest.approx(100 * share["high"])
        assert trace.x[0] - trace.error_x.arrayminus[0] == pytest.approx(100 * share["low"])
    assert figure.layout.shapes[0].x0 == 25


def test_the_form_says_how_many_questions_there_are():
    assert text.QUESTIONS.split()[1] == str(len(load_questions().questions))


def test_one_window_has_a_point_and_no_interval():
    rows = samples.labeled(("fp32", "int8"))
    for row in rows:
        evaluation = row["record"]["evaluation"]
        row["record"]["evaluation"] = {
            **{key: value[:1] if isinstance(value, list) else value for key, value in evaluation.items()},
            "divergence": evaluation["divergence"]
            and {"window_base_nll": evaluation["divergence"]["window_base_nll"][:1]},
        }
    (trace,) = points(forest.picture(with_verdicts(rows, 0.01), 0.01)).values()
    assert (
        trace.error_x.array is None
        and "undecided" in forest.picture(with_verdicts(rows, 0.01), 0.01).layout.annotations[-1].text
    )
