"""Plot size or speed against quality, with the Pareto frontier: the recipes that no other beats on both
axes."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import plotly.graph_objects as go

from qcore.results import labels
from qcore.results.rows import FIGURE, Figure
from qcore.results.scales import fraction, frontier, limits_of, on_axis, ticks
from ui import families
from ui.charts import FAINT, MUTED
from ui.text import digits, drawn_labels

HEIGHT = 430
WIDTH = 900  # pixels assumed when names are placed; a wider plot leaves more room


@dataclass(frozen=True)
class Axis:
    """A figure of a row, its `name` in the menu, and the `title` of its axis."""

    figure: Figure
    name: str
    title: str
    log: bool = False

    def value(self, row: dict) -> float | None:
        """Return the figure in its unit; None if the row lacks it."""
        found = row.get(self.figure.key)
        return None if found is None else found * self.figure.scale


COSTS = {
    axis.name: axis
    for axis in (
        Axis(FIGURE["stored_bytes"], "Stored size", "Stored size, MB", log=True),
        Axis(FIGURE["bits_per_weight"], "Bits per weight", "Bits per quantized weight"),
        Axis(FIGURE["peak_run_bytes"], "Peak memory", "Peak memory while running, MB"),
        Axis(FIGURE["decode_tok_s"], "Decode speed", "Decode, tokens per second"),
        Axis(FIGURE["prefill_tok_s"], "Prefill speed", "Prefill, tokens per second"),
    )
}
QUALITIES = {
    axis.name: axis
    for axis in (
        Axis(FIGURE["kl_mean"], "KL divergence", "Mean KL divergence from fp32, nats per token", log=True),
        Axis(FIGURE["perplexity"], "Perplexity", "Perplexity", log=True),
        Axis(FIGURE["top1_agreement"], "Top-1 agreement", "Same top token as fp32, %"),
    )
}


def pareto(rows: Sequence[dict], cost: Axis, quality: Axis) -> go.Figure:
    """Draw one point per row that has both figures. On a logarithmic axis a value of zero (the baseline's
    divergence) lies on the lower edge, and its hover text shows 0."""
    kept = drawn_labels(
        [row for row in rows if cost.value(row) is not None and quality.value(row) is not None]
    )
    x, y = [cost.value(row) for row in kept], [quality.value(row) for row in kept]
    x_range, y_range = limits_of(x, cost.log), limits_of(y, quality.log)
    drawn = [on_axis(value, y_range, quality.log) for value in y]
    front = frontier(list(zip(x, y, strict=True)), cost.figure.smaller, quality.figure.smaller)
    figure = go.Figure()
    figure.add_scatter(
        x=[x[i] for i in front],
        y=[drawn[i] for i in front],
        mode="lines",
        showlegend=False,
        hoverinfo="skip",
        line={"color": FAINT, "width": 2, "shape": "hv"},
    )
    unit = [
        (fraction(a, x_range, cost.log), fraction(b, y_range, quality.log))
        for a, b in zip(x, drawn, strict=True)
    ]
    places = labels.place(unit, [row["label"] for row in kept], WIDTH, HEIGHT - 70, first=front)
    for family in dict.fromkeys(families.family(row["recipe"]) for row in kept):
        mine = [i for i, row in enumerate(kept) if families.family(row["recipe"]) == family]
        figure.add_scatter(
            x=[x[i] for i in mine],
            y=[drawn[i] for i in mine],
            mode="markers+text",
            name=family.name,
            showlegend=False,
            marker={
                "color": family.color,
                "size": [13 if i in front else 9 for i in mine],
                "opacity": [1.0 if i in front else 0.65 for i in mine],
                "line": {"width": 0},
            },
            text=[kept[i]["label"] if places[i] else "" for i in mine],
            textposition=[places[i] or "middle right" for i in mine],
            textfont={"size": 12},
            cliponaxis=False,
            customdata=[_hover(kept[i], cost, quality, i in front) for i in mine],
            hovertemplate="%{customdata}<extra></extra>",
        )
    _draw_axis(figure.update_xaxes, cost, x_range, "←" if cost.figure.smaller else "→")
    _draw_axis(figure.update_yaxes, quality, y_range, "↓" if quality.figure.smaller else "↑")
    figure.update_layout(
        height=HEIGHT, margin={"l": 8, "r": 24, "t": 16, "b": 8}, hoverlabel={"align": "left"}
    )
    return figure


def _draw_axis(update: Callable, axis: Axis, limits: list[float], arrow: str) -> None:
    title = f"{axis.title}   <span style='color:{MUTED}'>{arrow} better</span>"
    update(
        title=title,
        type="log" if axis.log else "linear",
        range=limits,
        showgrid=True,
        gridcolor=FAINT,
        zeroline=False,
    )
    if axis.log:
        marks = ticks(limits)
        update(tickvals=marks, ticktext=[f"{tick:g}" for tick in marks])


def _hover(row: dict, cost: Axis, quality: Axis, on_frontier: bool) -> str:
    values = "<br>".join(
        f"{axis.name}: {digits(axis.value(row))} {axis.figure.unit}".rstrip() for axis in (cost, quality)
    )
    return f"<b>{row['label']}</b><br>{values}" + ("<br>on the frontier" if on_frontier else "")
