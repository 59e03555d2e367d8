"""Plot size or speed against quality, with the Pareto frontier: the recipes that no other beats on both
axes."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import plotly.graph_objects as go

from qcore.results.rows import FIGURE, Figure
from ui import families, labels
from ui.charts import FAINT, MUTED
from ui.text import digits

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


def frontier(points: Sequence[tuple[float, float]], smaller_x: bool, smaller_y: bool) -> list[int]:
    """Return the indices of the points that no other beats on both axes, from the best x to the worst."""
    signed = [(x if smaller_x else -x, y if smaller_y else -y, i) for i, (x, y) in enumerate(points)]
    kept, best = [], math.inf
    for _, y, i in sorted(signed):
        if y < best:
            kept.append(i)
            best = y
    return kept


def pareto(rows: Sequence[dict], cost: Axis, quality: Axis) -> go.Figure:
    """Draw one point per row that has both figures. On a logarithmic axis a value of zero (the baseline's
    divergence) lies on the lower edge, and its hover text shows 0."""
    kept = [row for row in rows if cost.value(row) is not None and quality.value(row) is not None]
    x, y = [cost.value(row) for row in kept], [quality.value(row) for row in kept]
    x_range, y_range = _range(x, cost.log), _range(y, quality.log)
    drawn = [_on_axis(value, y_range, quality.log) for value in y]
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
        (_fraction(a, x_range, cost.log), _fraction(b, y_range, quality.log))
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
        ticks = _ticks(limits)
        update(tickvals=ticks, ticktext=[f"{tick:g}" for tick in ticks])


def _range(values: Sequence[float], log: bool) -> list[float]:
    """Return the range of the axis with room for names; on a logarithmic axis, in powers of ten."""
    known = [math.log10(value) for value in values if value > 0] if log else list(values)
    if not known:
        return [-4.0, 0.0] if log else [0.0, 1.0]
    low, high = min(known), max(known)
    span = (high - low) or (0.5 if log else abs(high) or 1.0)
    if log and any(value <= 0 for value in values):
        low -= 0.25 * span  # room for zero, which a logarithmic axis lacks
    return [low - 0.08 * span, high + 0.12 * span]


def _on_axis(value: float, limits: list[float], log: bool) -> float:
    return 10 ** (limits[0] + 0.05 * (limits[1] - limits[0])) if log and value <= 0 else value


def _fraction(value: float, limits: list[float], log: bool) -> float:
    return ((math.log10(value) if log else value) - limits[0]) / (limits[1] - limits[0])


def _ticks(limits: list[float]) -> list[float]:
    """Return a few round numbers in the range: the more decades, the fewer per decade."""
    span = limits[1] - limits[0]
    steps = (1, 1.5, 2, 3, 4, 5, 6, 8) if span < 0.8 else (1, 2, 5) if span < 3 else (1,)
    decades = range(math.floor(limits[0]), math.ceil(limits[1]) + 1)
    return [
        step * 10.0**decade
        for decade in decades
        for step in steps
        if limits[0] <= math.log10(step) + decade <= limits[1]
    ]


def _hover(row: dict, cost: Axis, quality: Axis, on_frontier: bool) -> str:
    values = "<br>".join(
        f"{axis.name}: {digits(axis.value(row))} {axis.figure.unit}".rstrip() for axis in (cost, quality)
    )
    return f"<b>{row['label']}</b><br>{values}" + ("<br>on the frontier" if on_frontier else "")
