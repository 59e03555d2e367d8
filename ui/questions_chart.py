"""Plot multiple-choice accuracy: a point with its 95 % interval per recipe, and guessing as a dotted line."""

from collections.abc import Sequence

import plotly.graph_objects as go

from ui import families
from ui.charts import FAINT, MUTED
from ui.forest import one_line_each, whiskers
from ui.text import drawn_labels, percent


def picture(rows: Sequence[dict]) -> go.Figure:
    """Draw one line per row; each needs "choices". A full point with its interval is the accuracy of plain
    scores, an open point that of scores divided by length."""
    figure = go.Figure()
    rows = drawn_labels(rows)
    for row in rows:
        plain, by_length, color = (
            row["choices"]["accuracy"],
            row["choices"]["accuracy_by_length"],
            families.color(row["recipe"]),
        )
        center = 100 * plain["estimate"]
        head, asked = f"<b>{row['label']}</b><br>", f"{row['choices']['questions']:,}"
        figure.add_scatter(
            x=[100 * by_length["estimate"]],
            y=[row["label"]],
            mode="markers",
            marker={"symbol": "circle-open", "color": color, "size": 15, "line": {"width": 2}},
            customdata=[f"{head}{by_length['right']} of {asked} correct, scores divided by length"],
            hovertemplate="%{customdata}<extra></extra>",
        )
        figure.add_scatter(
            x=[center],
            y=[row["label"]],
            mode="markers",
            marker={"color": color, "size": 9},
            error_x=whiskers(100 * plain["low"], center, 100 * plain["high"], color),
            customdata=[f"{head}{plain['right']} of {asked} correct, plain scores"],
            hovertemplate="%{customdata}<extra></extra>",
        )
        figure.add_annotation(
            text=percent(plain["estimate"]),
            x=102,
            y=row["label"],
            xanchor="left",
            showarrow=False,
            font={"color": MUTED},
        )
    figure.add_vline(100 * rows[0]["choices"]["chance"], line={"color": MUTED, "width": 1, "dash": "dot"})
    title = f"Accuracy, %, 95 % interval   <span style='color:{MUTED}'>● plain score  ○ by length</span>"
    figure.update_xaxes(
        range=[0, 114],
        tickvals=list(range(0, 101, 20)),
        showgrid=True,
        gridcolor=FAINT,
        zeroline=False,
        fixedrange=True,
        title=title,
    )
    return one_line_each(figure, [row["label"] for row in rows])
