"""Plots of sensitivity: by block and kind of module, predicted against measured, frontier, allocation."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import plotly.graph_objects as go
from plotly.subplots import make_subplots

from qcore.results import labels
from ui import families
from ui.charts import FAINT, MUTED
from ui.layer_charts import SCALE
from ui.text import digits, drawn

if TYPE_CHECKING:
    from qcore.quantization.sensitivity.table import Layer, Sensitivities

MEASURES = {
    "loss": "predicted loss, nats",
    "kl": "measured KL, nats",
    "output_error": "relative error of the output",
}
CHOSEN, MEASURED = "#dc7d2a", "#2a9d7c"
BLUE = "61,127,219"
WIDTH, HEIGHT = 900, 400  # pixels assumed when names are placed
SMALLEST = 1e-9  # nats; smaller values are drawn here


def sensitivity_map(table: Sensitivities, measure: str, format_index: int) -> go.Figure:
    """Draw `measure` ("loss", "kl" or "output_error") in one format as a heat map, block x kind of module, on
    a logarithmic scale. Bars beside it show the sum over blocks, for output errors the mean."""
    kinds, blocks, by_place = _places(table)
    cells = [[by_place.get((kind, block)) for block in blocks] for kind in kinds]
    logs = [_log(getattr(layer, measure)[format_index]) for layer in table.layers]
    low, high = min(logs), max(logs)
    sums = []
    for row in cells:
        values = [getattr(cell, measure)[format_index] for cell in row if cell]
        sums.append(sum(values) / (len(values) if measure == "output_error" else 1))
    figure = make_subplots(1, 2, shared_yaxes=True, column_widths=[0.76, 0.24], horizontal_spacing=0.02)
    ticks = _decades(low, high)
    figure.add_heatmap(
        z=[[_log(getattr(cell, measure)[format_index]) if cell else None for cell in row] for row in cells],
        x=blocks,
        y=kinds,
        zmin=low,
        zmax=max(high, low + 1e-6),
        colorscale=SCALE,
        xgap=1,
        ygap=1,
        hoverongaps=False,
        customdata=[[_hover(table, cell) if cell else "" for cell in row] for row in cells],
        hovertemplate="%{customdata}<extra></extra>",
        colorbar={
            "title": {"text": MEASURES[measure], "side": "right"},
            "thickness": 10,
            "outlinewidth": 0,
            "x": 1.01,
            "len": 1.0,
            "tickvals": ticks,
            "ticktext": [f"{10**tick:.1g}" for tick in ticks],
        },
        row=1,
        col=1,
    )
    figure.add_bar(
        x=sums,
        y=kinds,
        orientation="h",
        marker={"color": families.FAILED, "cornerradius": 3},
        width=0.6,
        opacity=0.85,
        text=[digits(value) for value in sums],
        textposition="outside",
        cliponaxis=False,
        showlegend=False,
        hovertemplate="%{y}: %{x:.3g}<extra></extra>",
        row=1,
        col=2,
    )
    title = "mean over blocks" if measure == "output_error" else "sum over blocks, nats"
    figure.update_xaxes(
        title="block", row=1, col=1, showgrid=False, zeroline=False, dtick=1 if len(blocks) <= 16 else 5
    )
    figure.update_xaxes(
        title=title,
        showticklabels=False,
        showgrid=False,
        zeroline=False,
        range=[0, 1.5 * (max(sums) or 1)],
        row=1,
        col=2,
    )
    figure.update_yaxes(autorange="reversed", showgrid=False, ticks="")
    figure.update_layout(
        height=90 + 34 * len(kinds), margin={"l": 4, "r": 4, "t": 8, "b": 4}, hoverlabel={"align": "left"}
    )
    return figure


def agreement(table: Sensitivities) -> go.Figure:
    """Draw predicted against measured divergence, a point per layer and format, with the line of equality."""
    figure = go.Figure()
    values = [max(SMALLEST, value) for layer in table.layers for value in (*layer.loss, *layer.kl)]
    ends = [min(values), max(values)]
    figure.add_scatter(
        x=ends, y=ends, mode="lines", line={"color": FAINT, "width": 2}, hoverinfo="skip", showlegend=False
    )
    colors = ("#d64550", "#dc7d2a", "#ab8f12", "#2a9d7c", "#3d7fdb", "#9161d4", "#d0558f", "#7d8794")
    for k, label in enumerate(table.labels):
        figure.add_scatter(
            x=[max(SMALLEST, layer.loss[k]) for layer in table.layers],
            y=[max(SMALLEST, layer.kl[k]) for layer in table.layers],
            mode="markers",
            name=label,
            marker={"size": 6, "opacity": 0.7, "color": colors[k % len(colors)]},
            customdata=[drawn(layer.name.removesuffix(".weight")) for layer in table.layers],
            hovertemplate=f"<b>%{{customdata}}</b><br>{label}: predicted %{{x:.3g}}, measured %{{y:.3g}} nats"
            "<extra></extra>",
        )
    for update, title in (
        (figure.update_xaxes, "predicted loss, nats per token"),
        (figure.update_yaxes, "measured KL, nats per token"),
    ):
        update(title=title, type="log", gridcolor=FAINT, zeroline=False, exponentformat="power", dtick=1)
    figure.update_layout(height=380, margin={"l": 8, "r": 8, "t": 30, "b": 8}, legend=_legend())
    return figure


def frontier(
    points: Sequence, singles: dict, chosen: Sequence, measured: Sequence[tuple[str, float, float]] = ()
) -> go.Figure:
    """Draw predicted loss against bits per weight, on a logarithmic loss axis.

    `points`: the solver's (bits, loss), as a line. `singles`: {format: (bits, loss)} with all layers in one
    format. `chosen`: (bits, loss). `measured`: (recipe, bits, KL) of finished runs.
    """
    figure = go.Figure()
    figure.add_scatter(
        x=[bits for bits, _ in points],
        y=[max(SMALLEST, loss) for _, loss in points],
        mode="lines",
        name="best allocations",
        line={"color": "#3d7fdb", "width": 2},
        hovertemplate="%{x:.3f} bits per weight<br>predicted %{y:.3g} nats<extra></extra>",
    )
    named = [(name, bits, loss) for name, (bits, loss) in singles.items()] + list(measured)
    places = _names(points, named, chosen)
    count = len(singles)
    for name, words, part, where, marker in (
        ("all layers in one format", "predicted", named[:count], places[:count], {"color": MUTED, "size": 9}),
        (
            "measured in runs",
            "measured KL",
            named[count:],
            places[count:],
            {"color": MEASURED, "size": 11, "symbol": "diamond"},
        ),
    ):
        if part:
            figure.add_scatter(
                x=[bits for _, bits, _ in part],
                y=[max(SMALLEST, loss) for _, _, loss in part],
                mode="markers+text",
                name=name,
                text=[
                    drawn(label) if place else "" for (label, _, _), place in zip(part, where, strict=True)
                ],
                textposition=[place or "top right" for place in where],
                textfont={"size": 12},
                cliponaxis=False,
                marker=marker,
                customdata=[drawn(label) for label, _, _ in part],
                hovertemplate="%{customdata}<br>%{x:.3f} bits per weight<br>"
                f"{words} %{{y:.3g}} nats<extra></extra>",
            )
    figure.add_scatter(
        x=[chosen[0]],
        y=[max(SMALLEST, chosen[1])],
        mode="markers",
        name="chosen",
        marker={"color": CHOSEN, "size": 14},
        hovertemplate="chosen: %{x:.3f} bits per weight<br>predicted %{y:.3g} nats<extra></extra>",
    )
    figure.update_xaxes(title="stored bits per weight", gridcolor=FAINT, zeroline=False)
    figure.update_yaxes(
        title="loss, nats per token",
        type="log",
        gridcolor=FAINT,
        zeroline=False,
        dtick=1,
        exponentformat="power",
    )
    figure.update_layout(height=HEIGHT, margin={"l": 8, "r": 60, "t": 30, "b": 8}, legend=_legend())
    return figure


def allocation_map(table: Sensitivities, options: Sequence[int]) -> go.Figure:
    """Draw the format of each layer, block x kind of module; more bits are darker."""
    kinds, blocks, by_place = _places(table)
    picked = {layer.name: k for layer, k in zip(table.layers, options, strict=True)}
    cells = [[by_place.get((kind, block)) for block in blocks] for kind in kinds]
    count = len(table.labels)
    shades = [f"rgba({BLUE},{0.08 + 0.92 * i / max(1, count - 1):.3f})" for i in range(count)]
    scale = [[edge, shade] for i, shade in enumerate(shades) for edge in (i / count, (i + 1) / count)]
    figure = go.Figure()
    figure.add_heatmap(
        z=[[picked[cell.name] if cell else None for cell in row] for row in cells],
        x=blocks,
        y=kinds,
        zmin=-0.5,
        zmax=count - 0.5,
        colorscale=scale,
        xgap=1,
        ygap=1,
        hoverongaps=False,
        hovertemplate="%{customdata}<extra></extra>",
        customdata=[
            [
                f"<b>{drawn(cell.name)}</b><br>{table.labels[picked[cell.name]]}" if cell else ""
                for cell in row
            ]
            for row in cells
        ],
        colorbar={
            "thickness": 10,
            "outlinewidth": 0,
            "x": 1.01,
            "len": 1.0,
            "tickvals": list(range(count)),
            "ticktext": list(table.labels),
        },
    )
    figure.update_xaxes(title="block", showgrid=False, zeroline=False, dtick=1 if len(blocks) <= 16 else 5)
    figure.update_yaxes(autorange="reversed", showgrid=False, ticks="")
    figure.update_layout(
        height=90 + 30 * len(kinds), margin={"l": 4, "r": 4, "t": 8, "b": 4}, hoverlabel={"align": "left"}
    )
    return figure


def _names(points: Sequence, named: Sequence[tuple[str, float, float]], chosen: Sequence) -> list[str | None]:
    """Return positions for the names of points: no name covers another name or the chosen point."""
    spots = [(bits, _log(loss)) for _, bits, loss in named] + [(chosen[0], _log(chosen[1]))]
    everything = spots + [(bits, _log(loss)) for bits, loss in points]
    low_x, high_x = min(x for x, _ in everything), max(x for x, _ in everything)
    low_y, high_y = min(y for _, y in everything), max(y for _, y in everything)
    edge = 0.06  # share of the axis beside the outermost points
    unit = [
        (
            edge + (1 - 2 * edge) * (x - low_x) / ((high_x - low_x) or 1),
            edge + (1 - 2 * edge) * (y - low_y) / ((high_y - low_y) or 1),
        )
        for x, y in spots
    ]
    return labels.place(unit, [name for name, _, _ in named] + [""], WIDTH, HEIGHT - 110)[: len(named)]


def _places(table: Sensitivities) -> tuple[list[str], list[int], dict]:
    kinds = list(dict.fromkeys(layer.kind for layer in table.layers))
    blocks = sorted({layer.block for layer in table.layers})
    return kinds, blocks, {(layer.kind, layer.block): layer for layer in table.layers}


def _log(value: float) -> float:
    return math.log10(max(SMALLEST, value))


def _decades(low: float, high: float) -> list[float]:
    """Return the logarithms of round numbers between two logarithms: powers of ten, and 2 and 5 times those
    if the range is small."""
    powers = range(math.floor(low), math.ceil(high) + 1)
    steps = (1, 2, 5) if high - low < 2 else (1,)
    return [tick for power in powers for step in steps if low <= (tick := power + math.log10(step)) <= high]


def _legend() -> dict:
    return {"orientation": "h", "y": 1.02, "yanchor": "bottom", "x": 0, "xanchor": "left"}


def _hover(table: Sensitivities, layer: Layer) -> str:
    shape = " × ".join(str(length) for length in layer.shape)
    lines = [f"<b>{drawn(layer.name)}</b>", shape]
    for k, label in enumerate(table.labels):
        measured = f", measured {digits(layer.kl[k])}" if layer.kl is not None else ""
        lines.append(f"{label}: predicted {digits(layer.loss[k])}{measured} nats")
    return "<br>".join(lines)
