"""Plots of training, pruning and distillation: the loss curve, and the result beside the original."""

from collections.abc import Sequence

import plotly.graph_objects as go

from qcore.results.report import human_perplexity
from qcore.results.rows import FIGURE
from ui import charts
from ui.charts import FAINT, MUTED, Panel, Value
from ui.text import digits, size

BLUE, ORANGE = "#3d7fdb", "#dc7d2a"
SMOOTH = 12  # steps in the running mean of the loss
NAMES = {"before": "original", "rounded": "quantized, untrained", "after": "result"}


def loss(history: dict) -> go.Figure:
    """Draw the loss of each step (pale), its running mean, and the validation loss, over steps."""
    figure = go.Figure()
    steps, values = [each[0] for each in history["curve"]], [each[3] for each in history["curve"]]
    figure.add_scatter(
        x=steps,
        y=values,
        mode="markers",
        name="each step",
        marker={"size": 4, "color": MUTED},
        opacity=0.5,
        hovertemplate="step %{x}: %{y:.4f}<extra></extra>",
    )
    figure.add_scatter(
        x=steps,
        y=_running(values),
        mode="lines",
        name="running mean",
        line={"color": BLUE, "width": 2},
        hovertemplate="step %{x}: mean %{y:.4f}<extra></extra>",
    )
    looks = history["validations"]
    figure.add_scatter(
        x=[each[0] for each in looks],
        y=[each[1] for each in looks],
        mode="lines+markers",
        name="validation",
        line={"color": ORANGE, "width": 2},
        marker={"size": 8},
        customdata=[human_perplexity(each[2]) for each in looks],
        hovertemplate="step %{x}: validation %{y:.4f}, perplexity %{customdata}<extra></extra>",
    )
    if looks and history.get("best_step") is not None:
        best = min(looks, key=lambda each: each[1])
        figure.add_annotation(
            x=best[0],
            y=best[1],
            text=f"best {digits(best[1])}",
            showarrow=True,
            arrowhead=0,
            ax=0,
            ay=-26,
            font={"color": MUTED},
            arrowcolor=MUTED,
        )
    figure.update_xaxes(title="step", gridcolor=FAINT, zeroline=False, rangemode="tozero")
    figure.update_yaxes(title="loss, nats per token", gridcolor=FAINT, zeroline=False, rangemode="tozero")
    legend = {"orientation": "h", "y": 1.02, "yanchor": "bottom", "x": 0, "xanchor": "left"}
    figure.update_layout(
        height=300, margin={"l": 8, "r": 8, "t": 30, "b": 8}, legend=legend, hoverlabel={"align": "left"}
    )
    return figure


def rows(result: dict) -> list[dict]:
    """Return the measurements of `compared` as labeled rows for `charts`."""
    found = result["compared"]
    recipe = result.get("recipe") or "other"
    recipes = {"before": "fp32", "rounded": recipe, "after": recipe}
    return [found[name] | {"label": NAMES[name], "recipe": recipes[name]} for name in NAMES if name in found]


def outcome(result: dict) -> go.Figure:
    """Draw size, perplexity, divergence and decode speed of the models side by side."""
    figure = charts.bars(
        rows(result),
        [
            Panel("Stored", FIGURE["stored_bytes"].direction, _get("stored_bytes"), size),
            Panel("Perplexity", FIGURE["perplexity"].direction, _get("perplexity"), human_perplexity),
            Panel("KL divergence", FIGURE["kl_mean"].direction, _get("kl_mean"), _nats),
            Panel(
                "Decode",
                FIGURE["decode_tok_s"].direction,
                _get("decode_tok_s"),
                lambda value: f"{value:.3g} tok/s",
            ),
        ],
    )
    figure.update_layout(margin={"r": 28})  # four panels leave little room for the last unit
    return figure


def _running(values: Sequence[float]) -> list[float]:
    return [
        sum(part) / len(part) for i in range(len(values)) if (part := values[max(0, i + 1 - SMOOTH) : i + 1])
    ]


def _nats(value: float) -> str:
    return "0" if value < 1e-9 else f"{digits(value)} nats"


def _get(key: str) -> Value:
    return lambda row: row.get(key)
