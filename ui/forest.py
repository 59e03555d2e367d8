"""Forest plots: the interval of the ratio of perplexities, recipe / baseline, and the margin as a band.

The axis is that of `qcore.results.scales`.
"""

import math
from collections.abc import Sequence

import plotly.graph_objects as go

from qcore.evaluation.phrases import percent
from qcore.evaluation.verdict import details
from qcore.results.scales import OUTCOMES, ratio_name, ratio_place, ratio_ticks
from ui import families
from ui.charts import FAINT, MUTED
from ui.text import drawn_labels

BAND = "rgba(46,160,94,0.16)"
ROW, HEAD, FOOT = 30, 12, 46


def picture(rows: Sequence[dict], margin: float) -> go.Figure:
    """Draw one line per row: an interval for a row with a verdict, its status otherwise. The verdicts must
    have been taken with the same `margin`."""
    rows = [row for row in rows if row["recipe"] != "fp32" or row.get("verdict")]
    rows = drawn_labels(rows)
    edge = math.log1p(margin)
    figure = go.Figure()
    judged = [row for row in rows if row.get("verdict")]
    places = [
        ratio_place(value, edge)
        for row in judged
        for value in row["verdict"]["ratio"].values()
        if value is not None
    ]
    low, high = min([*places, -1.6]), max([*places, 1.6])
    room = 0.30 * (high - low)
    figure.add_vrect(
        ratio_place(1 / (1 + margin), edge),
        ratio_place(1 + margin, edge),
        fillcolor=BAND,
        line_width=0,
        layer="below",
    )
    figure.add_vline(0, line={"color": MUTED, "width": 1, "dash": "dot"})
    for row in rows:
        _draw(figure, row, edge, high + 0.03 * room)
    ticks, hint = ratio_ticks(low, high, edge, margin), f"green: within {percent(margin)}, logarithmic beyond"
    figure.update_xaxes(
        range=[low - 0.06 * (high - low), high + room],
        tickvals=[ratio_place(tick, edge) for tick in ticks],
        ticktext=[ratio_name(t) for t in ticks],
        showgrid=True,
        gridcolor=FAINT,
        zeroline=False,
        fixedrange=True,
        title=f"Perplexity against fp32, 95 % interval   <span style='color:{MUTED}'>{hint}</span>",
    )
    return one_line_each(figure, [row["label"] for row in rows])


def one_line_each(figure: go.Figure, labels: Sequence[str]) -> go.Figure:
    """Give `figure` one line per label, from the top down, and the height for them. Return `figure`."""
    figure.update_yaxes(
        range=[len(labels) - 0.5, -0.5],
        tickvals=labels,
        categoryorder="array",
        categoryarray=labels,
        showgrid=False,
        ticks="",
        fixedrange=True,
        zeroline=False,
    )
    figure.update_layout(
        height=HEAD + ROW * len(labels) + FOOT,
        margin={"l": 4, "r": 4, "t": HEAD, "b": 4},
        hoverlabel={"align": "left"},
        showlegend=False,
    )
    return figure


def whiskers(low: float, center: float, high: float, color: str) -> dict:
    """Return Plotly error bars from `low` to `high` around a point at `center`."""
    return {
        "type": "data",
        "symmetric": False,
        "thickness": 2.5,
        "width": 5,
        "color": color,
        "array": [high - center],
        "arrayminus": [center - low],
    }


def _draw(figure: go.Figure, row: dict, edge: float, right: float) -> None:
    verdict = row.get("verdict")
    if not verdict:
        failed = row["status"] == "failed"
        words = row["status"] if row["status"] != "ok" else "no baseline to compare with"
        color = families.FAILED if failed else MUTED
        figure.add_scatter(x=[None], y=[row["label"]], mode="markers")  # reserves the line of the row
        figure.add_annotation(
            text=words, x=0, y=row["label"], xanchor="left", showarrow=False, font={"color": color}
        )
        return
    ratio, color = verdict["ratio"], families.color(row["recipe"])
    center = ratio_place(ratio["estimate"], edge)
    known = ratio["low"] is not None
    bars = (
        whiskers(ratio_place(ratio["low"], edge), center, ratio_place(ratio["high"], edge), color)
        if known
        else None
    )
    figure.add_scatter(
        x=[center],
        y=[row["label"]],
        mode="markers",
        marker={"color": color, "size": 10},
        error_x=bars,
        customdata=[_hover(row)],
        hovertemplate="%{customdata}<extra></extra>",
    )
    figure.add_annotation(
        text=f"<b>{verdict['outcome']}</b>  "
        f"<span style='color:{MUTED}'>{ratio_name(ratio['estimate'])}</span>",
        x=right,
        y=row["label"],
        xanchor="left",
        showarrow=False,
        font={"color": OUTCOMES[verdict["outcome"]]},
    )


def _hover(row: dict) -> str:
    verdict = row["verdict"]
    words = [f"<b>{row['label']}</b>", f"{verdict['claim']}: {verdict['finding']}"]
    words += [verdict[name] for name in ("interval", "advice") if verdict[name]]
    return "<br>".join([*words, *details(verdict)])
