"""Plots of the page Learn. Pure functions from results of `qcore.verbs.lessons` to Plotly figures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import plotly.graph_objects as go
from plotly.subplots import make_subplots

from ui import families
from ui.charts import FAINT, MUTED
from ui.text import digits, percent

if TYPE_CHECKING:
    from qcore.verbs.lesson_types import Group, Pruned, Rounded, Taught

BLUE, VIOLET, ORANGE, GREEN, RED = "#3d7fdb", "#9161d4", "#dc7d2a", "#2a9d7c", "#d64550"
PARTS = {
    "codes": ("codes", BLUE),
    "scale": ("scales", ORANGE),
    "zero_point": ("zero points", GREEN),
    "codebook": ("table", VIOLET),
    "scale_codes": ("8-bit scales", ORANGE),
    "scale_range": ("scales of scales", RED),
}
LEGEND = {"orientation": "h", "y": 1.02, "yanchor": "bottom", "x": 0, "xanchor": "left"}
SPACE = 1.3  # between two number lines; the weights are drawn 0.55 above each
MARGIN = {"l": 4, "r": 12, "t": 30, "b": 4}


def lines(groups: Mapping[str, Group], colors: Mapping[str, str]) -> go.Figure:
    """Draw a number line per group: the weights above it, the grid as ticks, and a thin line from each weight
    to its quantized value. `groups` and `colors` are by title."""
    figure, titles = go.Figure(), list(groups)
    for row, (title, group) in enumerate(groups.items()):
        base, color = SPACE * (len(titles) - 1 - row), colors[title]
        x = [
            value
            for before, after in zip(group.before, group.after, strict=True)
            for value in (before, after, None)
        ]
        y = [place for _ in group.before for place in (base + 0.55, base + 0.06, None)]
        figure.add_scatter(
            x=x, y=y, mode="lines", line={"color": FAINT, "width": 1}, hoverinfo="skip", showlegend=False
        )
        figure.add_scatter(
            x=list(group.grid),
            y=[base] * len(group.grid),
            mode="markers",
            name="grid",
            legendgroup="grid",
            showlegend=False,
            marker={
                "symbol": "line-ns",
                "size": 16,
                "line": {"width": 2 if len(group.grid) < 40 else 1, "color": color},
            },
            hovertemplate="value of a code: %{x:.4f}<extra></extra>",
        )
        figure.add_scatter(
            x=list(group.before),
            y=[base + 0.55] * len(group.before),
            mode="markers",
            showlegend=False,
            marker={"size": 6, "color": color, "opacity": 0.75},
            customdata=list(group.after),
            hovertemplate="%{x:.4f} becomes %{customdata:.4f}<extra></extra>",
        )
        figure.add_annotation(
            x=0, xref="paper", xanchor="left", y=base + 0.9, text=title, showarrow=False, font={"size": 13}
        )
    figure.update_yaxes(visible=False, range=[-0.25, SPACE * (len(titles) - 1) + 1.05])
    figure.update_xaxes(title="value of the weight", showgrid=False, zeroline=True, zerolinecolor=FAINT)
    figure.update_layout(height=70 + 145 * len(titles), margin={**MARGIN, "t": 6})
    return figure


def bars(
    values: Mapping[str, float], chosen: str | None, title: str, colors: Mapping[str, str] | None = None
) -> go.Figure:
    """Draw relative errors in percent by name; the `chosen` bar has full color."""
    names = list(values)
    tint = [(colors or {}).get(name) or families.color(name) for name in names]
    figure = go.Figure()
    figure.add_bar(
        x=[100 * value for value in values.values()],
        y=names,
        orientation="h",
        width=0.6,
        marker={
            "color": tint,
            "cornerradius": 3,
            "opacity": [1.0 if chosen in (None, name) else 0.4 for name in names],
        },
        text=[percent(value) for value in values.values()],
        textposition="outside",
        cliponaxis=False,
        hovertemplate="%{y}: %{text}<extra></extra>",
    )
    figure.update_xaxes(visible=False, range=[0, 125 * max(values.values())])
    figure.update_yaxes(autorange="reversed", showgrid=False, ticks="", ticksuffix="  ")
    figure.update_layout(
        height=60 + 32 * len(names),
        margin=MARGIN,
        title={"text": title, "font": {"size": 13}, "x": 0, "y": 0.98},
    )
    return figure


def curves(
    x: Sequence,
    series: Mapping[str, tuple[Sequence[float], str]],
    chosen: float | str,
    x_title: str,
    *,
    log: bool = False,
    labels: Sequence[str] | None = None,
    line: tuple[float, str] | None = None,
) -> go.Figure:
    """Draw relative errors in percent over `x` as lines, with a mark at the `chosen` x. `series`: title ->
    (shares, color). `labels`: names of the x, if they are not numbers. `line`: (level, name) of a
    reference."""
    figure, places = go.Figure(), list(x) if labels is None else list(range(len(x)))
    at = list(x).index(chosen)
    few = len(places) <= 24
    for title, (values, color) in series.items():
        figure.add_scatter(
            x=places,
            y=[100 * value for value in values],
            name=title,
            mode="lines+markers" if few else "lines",
            line={"color": color, "width": 2},
            marker={"size": 5},
            hovertemplate=f"{title}: %{{y:.3g}} %<extra></extra>",
        )
        figure.add_scatter(
            x=[places[at]],
            y=[100 * values[at]],
            mode="markers",
            marker={"size": 13, "color": color},
            showlegend=False,
            hoverinfo="skip",
        )
    if line is not None:
        figure.add_hline(
            100 * line[0],
            line={"color": MUTED, "width": 1.5, "dash": "dot"},
            annotation={"text": line[1], "font": {"size": 12}},
        )
    figure.add_vline(places[at], line={"color": FAINT, "width": 1})
    ticks = {} if labels is None else {"tickvals": places, "ticktext": list(labels)}
    ticks |= {"tickvals": list(x), "ticktext": [f"{value:g}" for value in x]} if log else {}
    figure.update_xaxes(
        title=x_title, showgrid=False, zeroline=False, type="log" if log else "linear", **ticks
    )
    figure.update_yaxes(title="relative error, %", gridcolor=FAINT, rangemode="tozero", zeroline=False)
    figure.update_layout(height=330, margin=MARGIN, legend=LEGEND, showlegend=len(series) > 1)
    return figure


def bits(found: Mapping[str, Rounded], chosen: str) -> go.Figure:
    """Draw the stored bits per weight by part, per format."""
    figure, names = go.Figure(), list(found)
    for part, (title, color) in PARTS.items():
        values = [found[name].parts.get(part, 0.0) for name in names]
        if any(values):
            figure.add_bar(
                x=values,
                y=names,
                orientation="h",
                name=title,
                width=0.62,
                marker={"color": color, "opacity": [1.0 if name == chosen else 0.45 for name in names]},
                hovertemplate=f"%{{y}}: %{{x:.3f}} bits per weight for {title}<extra></extra>",
            )
    totals = [found[name].bits_per_weight for name in names]
    figure.add_scatter(
        x=totals,
        y=names,
        mode="text",
        text=[f" {digits(total)}" for total in totals],
        textposition="middle right",
        showlegend=False,
        hoverinfo="skip",
        cliponaxis=False,
    )
    figure.update_layout(
        barmode="stack", height=90 + 32 * len(names), margin=MARGIN, legend={**LEGEND, "traceorder": "normal"}
    )
    figure.update_xaxes(title="stored bits per weight", showgrid=False, range=[0, 1.12 * max(totals)])
    figure.update_yaxes(autorange="reversed", showgrid=False, ticks="", ticksuffix="  ")
    return figure


def pruned(found: Pruned, storage: Sequence[Pruned], bits: int) -> go.Figure:
    """Draw, at the left, the magnitudes of kept and pruned weights; at the right, bits per weight over the
    share of zeros, dense and sparse. `storage`: the weight pruned by 0 %, 10 %, … 90 %."""
    figure = make_subplots(1, 2, column_widths=[0.5, 0.5], horizontal_spacing=0.17)
    for name, values, color in (("pruned", found.went, RED), ("kept", found.stayed, BLUE)):
        figure.add_histogram(
            x=list(values),
            name=name,
            marker={"color": color},
            xbins={"size": max(found.stayed) / 60},
            row=1,
            col=1,
            hovertemplate=f"%{{y:,}} weights {name}<extra></extra>",
        )
    shares = [100 * each.amount for each in storage]
    for name, values, color in (
        ("dense", [each.dense_bits for each in storage], MUTED),
        ("sparse", [each.sparse_bits for each in storage], GREEN),
    ):
        figure.add_scatter(
            x=shares,
            y=values,
            name=name,
            mode="lines",
            line={"color": color, "width": 2},
            row=1,
            col=2,
            hovertemplate=f"{name}: %{{y:.3g}} bits<extra></extra>",
        )
    figure.add_scatter(
        x=[100 * found.amount],
        y=[found.sparse_bits],
        mode="markers",
        marker={"size": 12, "color": GREEN},
        showlegend=False,
        hoverinfo="skip",
        row=1,
        col=2,
    )
    figure.update_layout(
        barmode="stack", height=330, margin=MARGIN, legend={**LEGEND, "traceorder": "normal"}, bargap=0.02
    )
    figure.update_xaxes(title="magnitude of the weight", showgrid=False, row=1, col=1)
    figure.update_yaxes(title="weights (a sample)", gridcolor=FAINT, row=1, col=1)
    figure.update_xaxes(title="zeros, %", showgrid=False, zeroline=False, row=1, col=2)
    figure.update_yaxes(title=f"bits per weight of {bits}", gridcolor=FAINT, rangemode="tozero", row=1, col=2)
    return figure


def taught(found: Taught, words: Sequence[str]) -> go.Figure:
    """Draw the next-token probabilities of teacher and student; `words` are the tokens as text."""
    figure = go.Figure()
    names = [f"{place}. {word}" for place, word in enumerate(words, 1)]
    for name, values, color in (("teacher", found.teacher, BLUE), ("student", found.student, ORANGE)):
        figure.add_bar(
            x=[100 * value for value in values],
            y=names,
            orientation="h",
            name=name,
            marker={"color": color},
            hovertemplate=f"{name}: %{{x:.3g}} %<extra></extra>",
        )
    figure.update_layout(
        barmode="group",
        height=80 + 34 * len(names),
        margin=MARGIN,
        legend={**LEGEND, "traceorder": "normal"},
        bargap=0.25,
    )
    figure.update_xaxes(title="probability of the next token, %", gridcolor=FAINT, zeroline=False)
    figure.update_yaxes(autorange="reversed", showgrid=False, ticks="", ticksuffix="  ")
    return figure
