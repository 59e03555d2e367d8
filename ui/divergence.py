"""A heat map of prompts against recipes: the tokens of each answer before its first divergence."""

from collections.abc import Sequence

import plotly.graph_objects as go

from ui.text import drawn, drawn_labels

SCALE = [[0.0, "rgba(61,127,219,0.04)"], [1.0, "rgba(61,127,219,1)"]]


def picture(rows: Sequence[dict]) -> go.Figure:
    """Draw the share of each answer before its first divergence, in percent: one row per recipe, one column
    per prompt. A cell contains the number of tokens, or = if the whole answer is identical."""
    rows = [row for row in rows if row["recipe"] != "fp32"] or list(rows)
    rows = drawn_labels(rows)
    prompts = [answer["id"] for answer in rows[0]["record"]["generations"]]
    cells, texts, marks = [], [], []
    for row in rows:
        by_id = {answer["id"]: answer for answer in row["record"]["generations"]}
        answers = [by_id.get(name) for name in prompts]
        cells.append([None if answer is None else 100 * share(answer) for answer in answers])
        texts.append([_hover(row, answer) for answer in answers])
        marks.append(["" if answer is None else _mark(answer) for answer in answers])
    figure = go.Figure()
    figure.add_heatmap(
        z=cells,
        x=[drawn(name) for name in prompts],
        y=[row["label"] for row in rows],
        colorscale=SCALE,
        zmin=0,
        zmax=100,
        xgap=2,
        ygap=2,
        customdata=texts,
        text=marks,
        texttemplate="%{text}",
        textfont={"size": 11},
        hovertemplate="%{customdata}<extra></extra>",
        colorbar={"title": {"text": "identical, %", "side": "right"}, "thickness": 10, "outlinewidth": 0},
    )
    figure.update_yaxes(autorange="reversed", showgrid=False, ticks="")
    figure.update_xaxes(showgrid=False, tickangle=-40, ticks="")
    figure.update_layout(
        height=130 + 28 * len(rows), margin={"l": 4, "r": 4, "t": 8, "b": 4}, hoverlabel={"align": "left"}
    )
    return figure


def share(answer: dict) -> float:
    """Return tokens before the first divergence / tokens of the answer; 1 if the answer never diverges."""
    at, count = answer["first_divergence"], len(answer["tokens"])
    return 1.0 if at is None else min(1.0, at / count) if count else 0.0


def _mark(answer: dict) -> str:
    return "=" if answer["first_divergence"] is None else str(answer["first_divergence"])


def _hover(row: dict, answer: dict | None) -> str:
    if answer is None:
        return "no answer"
    at = answer["first_divergence"]
    what = "identical" if at is None else f"first difference: token {at + 1} of {len(answer['tokens'])}"
    return f"<b>{row['label']}</b><br>{drawn(answer['kind'])}: {drawn(answer['id'])}<br>{what}"
