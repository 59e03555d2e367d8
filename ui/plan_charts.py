"""Plots of a plan: the parts of each recipe's memory, and the predicted speed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import plotly.graph_objects as go

from ui import families
from ui.charts import FAINT, HEAD, MUTED, ROOMY, Panel, Value, bars
from ui.text import digits, size

if TYPE_CHECKING:
    from qcore.planning.types import PlanRow

# parts of the memory in stacking order; the weights have the color of the recipe's family
PARTS = {
    "weights": None,
    "KV cache": "#2a9d7c",
    "activations": "#dc7d2a",
    "work space": "rgba(128,134,144,0.45)",
    "libraries": FAINT,
}


def memory(rows: Sequence[PlanRow], available: int, memory_is: str) -> go.Figure:
    """Draw the memory of each row while running as stacked bars, against a line at the `available` bytes."""
    labels = [row.recipe for row in rows]
    top = max(row.run_bytes for row in rows)
    inside = available <= 1.8 * top
    reach = max(top, available) if inside else top
    figure = go.Figure()
    for part, color in PARTS.items():
        figure.add_bar(
            x=[row.parts.get(part, 0) for row in rows],
            y=labels,
            orientation="h",
            width=0.6,
            name=part,
            marker={"color": color or [families.color(row.recipe) for row in rows]},
            customdata=[_hover(row) for row in rows],
            hovertemplate="%{customdata}<extra></extra>",
            showlegend=False,
        )
    for row in rows:
        verdict = "" if row.fits else f" <span style='color:{families.FAILED}'>does not fit</span>"
        figure.add_annotation(
            text=size(row.run_bytes) + verdict,
            x=row.run_bytes,
            y=row.recipe,
            showarrow=False,
            xanchor="left",
            xshift=4,
        )
    if inside:
        figure.add_vline(available, line={"color": families.FAILED, "width": 1.5, "dash": "dash"})
    figure.add_annotation(
        text=f"{size(available)} {memory_is}" + ("" if inside else " →"),
        showarrow=False,
        yref="paper",
        y=1,
        yanchor="bottom",
        xref="x" if inside else "paper",
        x=available if inside else 1,
        xanchor="right",
        font={"color": MUTED},
    )
    figure.update_xaxes(visible=False, range=[0, reach * 1.3], fixedrange=True)
    figure.update_yaxes(range=[len(rows) - 0.5, -0.5], showgrid=False, ticks="", fixedrange=True)
    figure.update_layout(
        barmode="stack",
        height=HEAD + ROOMY * len(rows) + 4,
        margin={"l": 4, "r": 4, "t": HEAD, "b": 4},
        hoverlabel={"align": "left"},
    )
    return figure


def legend() -> str:
    """Return Markdown with the colors of the parts."""
    named = [
        f':color[●]{{foreground="{color}"}} {part}'
        for part, color in PARTS.items()
        if color and color.startswith("#")
    ]
    return " &emsp; ".join(["● weights, in the recipe's color", *named, ":gray[●] work space and libraries"])


def speed(rows: Sequence[PlanRow]) -> go.Figure:
    """Draw predicted decode speed with the memory limit, and prefill speed, of the probed `rows`."""
    drawn = [
        {
            "recipe": row.recipe,
            "label": row.recipe,
            "decode": row.decode_tok_s,
            "prefill": row.prefill_tok_s,
            "limit": row.limit_tok_s,
        }
        for row in rows
    ]
    return bars(
        drawn,
        [
            Panel(
                "Decode, predicted",
                "larger is better, ▏memory limit",
                _get("decode"),
                _rate,
                _limit_hover,
                _get("limit"),
                "limit",
            ),
            Panel("Prefill, predicted", "larger is better", _get("prefill"), _rate),
        ],
    )


def _get(key: str) -> Value:
    return lambda row: row[key]


def _rate(value: float) -> str:
    return f"{digits(value)} tok/s"


def _limit_hover(row: dict) -> str:
    return f"<br>memory limit: {_rate(row['limit'])}" if row["limit"] else ""


def _hover(row: PlanRow) -> str:
    lines = [
        f"<b>{row.recipe}</b>, KV cache in {row.kv}",
        *(f"{part}: {size(nbytes)}" for part, nbytes in row.parts.items() if nbytes),
    ]
    return "<br>".join([*lines, f"peak while quantizing in memory: {size(row.load_bytes)}"])
