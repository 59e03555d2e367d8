"""Plots of layers: error by block and kind of module; values of one weight before and after. Pure
functions."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from typing import TYPE_CHECKING

import plotly.graph_objects as go
from plotly.subplots import make_subplots

from ui import families
from ui.charts import FAINT, MUTED
from ui.text import digits, drawn, percent

if TYPE_CHECKING:
    from qcore.verbs.layer_types import Histogram, LayerError

# from transparent to red, for light and dark backgrounds
SCALE = [[0.0, "rgba(214,69,80,0.03)"], [1.0, "rgba(214,69,80,1)"]]
_BLOCK = re.compile(r"(?:^|\.)(?:layers|h|blocks|block)\.(\d+)\.(.+)$")


def where(name: str) -> tuple[int | None, str]:
    """Return (block, kind of module) of a tensor: "model.layers.3.self_attn.q_proj.weight" -> (3,
    "self_attn.q_proj"). The block of a tensor outside the blocks is None."""
    name = name.removesuffix(".weight")
    found = _BLOCK.search(name)
    return (int(found[1]), found[2]) if found else (None, name.removeprefix("model."))


def error_map(errors: Sequence[LayerError], recipe: str) -> go.Figure:
    """Draw the relative errors in percent as a heat map, block x kind of module, with the mean per kind as
    bars.

    Tensors outside the blocks (head, embedding) have a bar alone.
    """
    kinds = list(dict.fromkeys(where(error.name)[1] for error in errors))
    blocks = sorted({where(error.name)[0] for error in errors} - {None})
    by_place = {where(error.name)[::-1]: error for error in errors}
    cells = [[by_place.get((kind, block)) for block in blocks] for kind in kinds]
    means = [
        _mean([error.relative_error for error in errors if where(error.name)[1] == kind]) for kind in kinds
    ]
    figure = make_subplots(1, 2, shared_yaxes=True, column_widths=[0.74, 0.26], horizontal_spacing=0.02)
    figure.add_heatmap(
        z=[[100 * cell.relative_error if cell else None for cell in row] for row in cells],
        x=blocks,
        y=kinds,
        colorscale=SCALE,
        xgap=1,
        ygap=1,
        customdata=[[_hover(cell) if cell else "" for cell in row] for row in cells],
        hoverongaps=False,
        hovertemplate="%{customdata}<extra></extra>",
        row=1,
        col=1,
        colorbar={
            "title": {"text": "relative error, %", "side": "right"},
            "thickness": 10,
            "outlinewidth": 0,
            "x": 1.01,
            "len": 1.0,
        },
    )
    figure.add_bar(
        x=[100 * mean for mean in means],
        y=kinds,
        orientation="h",
        marker={"color": families.color(recipe), "cornerradius": 3},
        width=0.6,
        text=[f"{digits(100 * mean)} %" for mean in means],
        textposition="outside",
        cliponaxis=False,
        showlegend=False,
        hovertemplate="%{y}: mean relative error %{x:.3g} %<extra></extra>",
        row=1,
        col=2,
    )
    figure.update_xaxes(
        title="block", row=1, col=1, showgrid=False, zeroline=False, dtick=1 if len(blocks) <= 16 else 5
    )
    figure.update_xaxes(
        title="mean over blocks",
        showticklabels=False,
        showgrid=False,
        zeroline=False,
        range=[0, 145 * max(means)],
        row=1,
        col=2,
    )
    figure.update_yaxes(autorange="reversed", showgrid=False, ticks="")
    figure.update_layout(
        height=90 + 34 * len(kinds), margin={"l": 4, "r": 4, "t": 8, "b": 4}, hoverlabel={"align": "left"}
    )
    return figure


def histogram(found: Histogram, recipe: str) -> go.Figure:
    """Draw the values of a weight before (filled) and after (line), with logarithmic counts, and the grid of
    one group as ticks below."""
    centers = [(low + high) / 2 for low, high in zip(found.edges[:-1], found.edges[1:], strict=True)]
    decades = [10**power for power in range(len(str(max(found.before))))]
    figure = make_subplots(2, 1, shared_xaxes=True, row_heights=[0.88, 0.12], vertical_spacing=0.02)
    for name, counts, color, fill in (
        ("before", found.before, MUTED, "tozeroy"),
        ("after", found.after, families.color(recipe), None),
    ):
        figure.add_scatter(
            x=centers,
            y=[count or 0.5 for count in counts],
            name=name,
            mode="lines",
            line={"color": color, "width": 1.5, "shape": "hvh"},
            fill=fill,
            fillcolor=FAINT,
            hovertemplate=f"{name}: %{{y:,}} weights near %{{x:.4f}}<extra></extra>",
            row=1,
            col=1,
        )
    figure.add_scatter(
        x=list(found.grid),
        y=[0] * len(found.grid),
        mode="markers",
        name="grid of one group",
        row=2,
        col=1,
        marker={"symbol": "line-ns", "size": 14, "line": {"width": 1.5, "color": families.color(recipe)}},
        hovertemplate="value of a code: %{x:.5f}<extra></extra>",
    )
    figure.update_yaxes(
        title="weights per bin",
        type="log",
        gridcolor=FAINT,
        range=[math.log10(0.6), math.log10(2 * max(found.before))],
        tickvals=decades,
        ticktext=[f"{decade:,}" for decade in decades],
        row=1,
        col=1,
    )
    figure.update_yaxes(visible=False, row=2, col=1)
    figure.update_xaxes(showgrid=False, zeroline=False, row=1, col=1)
    figure.update_xaxes(title="value of the weight", showgrid=False, zeroline=False, row=2, col=1)
    figure.update_layout(
        height=360,
        margin={"l": 4, "r": 4, "t": 30, "b": 4},
        legend={"orientation": "h", "y": 1.02, "yanchor": "bottom", "x": 0, "xanchor": "left"},
    )
    return figure


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def _hover(error: LayerError) -> str:
    shape = " × ".join(str(length) for length in error.shape)
    return (
        f"<b>{drawn(error.name)}</b><br>{shape}<br>relative error {percent(error.relative_error)}<br>"
        f"signal to noise {error.snr_db:.1f} dB<br>{digits(error.bits_per_weight)} bits per weight"
    )
