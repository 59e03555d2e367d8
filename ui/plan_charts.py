"""Pictures of a plan: what fills the memory under each recipe, and the decode speed to expect."""

from collections.abc import Sequence

import plotly.graph_objects as go

from ui import families
from ui.charts import FAINT, HEAD, MUTED, ROOMY, Panel, bars
from ui.text import digits, size

# Parts of the memory beside the weights, which have their family's colour, in the order in which they are
# stacked
PARTS = {
    "weights": None,
    "KV cache": "#2a9d7c",
    "activations": "#dc7d2a",
    "work space": "rgba(128,134,144,0.45)",
    "libraries": FAINT,
}


def memory(rows: Sequence, available: int, memory_is: str) -> go.Figure:
    """Stacked bars of what `rows` (`planning.Row`) hold while they run, against the line of the `available`
    bytes."""
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
    """Markdown: the colours of the parts."""
    named = [
        f':color[●]{{foreground="{color}"}} {part}'
        for part, color in PARTS.items()
        if color and color.startswith("#")
    ]
    return " &emsp; ".join(["● weights, in the recipe's colour", *named, ":gray[●] work space and libraries"])


def speed(rows: Sequence) -> go.Figure:
    """Predicted decode with the memory limit, and prefill, of the `rows` that were probed."""
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


def _get(key: str):
    return lambda row: row[key]


def _rate(value: float) -> str:
    return f"{digits(value)} tok/s"


def _limit_hover(row: dict) -> str:
    return f"<br>memory limit: {_rate(row['limit'])}" if row["limit"] else ""


def _hover(row) -> str:
    lines = [
        f"<b>{row.recipe}</b>, KV cache in {row.kv}",
        *(f"{part}: {size(nbytes)}" for part, nbytes in row.parts.items() if nbytes),
    ]
    return "<br>".join([*lines, f"while it is quantized in memory: {size(row.load_bytes)}"])
