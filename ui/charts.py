"""Bars side by side: memory, throughput, quality, and the estimate before a run. Pure functions from rows to
Plotly figures.

A row is what `qcore.jobs.jobs.rows` returns, with a "label" that is unique among the rows drawn. A figure has
one panel per quantity. The panels share the names at the left, and each bar carries its number with unit, so
there are no axes.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import plotly.graph_objects as go
from plotly.subplots import make_subplots

from qcore.base.other_work import share_of
from qcore.results.report import beside_other_work, human_perplexity
from qcore.results.rows import FIGURE
from qcore.results.scales import LONGEST, cut_at
from ui import families
from ui.text import digits, drawn, drawn_labels, percent, seconds, size

ROOMY, TIGHT, HEAD = 30, 25, 26  # pixels per row of few and of many rows; above the first row
MUTED = "rgba(128,134,144,0.95)"  # secondary text and lines, readable on white and on black
FAINT = "rgba(128,134,144,0.28)"
LONGEST_LABEL = 20  # characters of a name beside a narrow plot

Value = Callable[[dict], float | None]


@dataclass(frozen=True)
class Panel:
    """A column of bars. `value` returns a row's figure and `text` formats it; `hover` returns further lines
    of the hover text; `limit` places a mark on the row's bar; `reference` is (value, name) of a line through
    all bars."""

    title: str
    hint: str
    value: Value
    text: Callable[[float], str]
    hover: Callable[[dict], str] = lambda row: ""
    limit: Value | None = None
    limit_name: str = ""
    reference: tuple[float, str] | None = None


def memory(rows: Sequence[dict]) -> go.Figure:
    """Draw stored bytes, and the peak memory of a fresh process that ran the model."""
    return bars(
        rows,
        [
            Panel("Stored", FIGURE["stored_bytes"].direction, _get("stored_bytes"), size, _stored_hover),
            Panel(
                "Peak memory while running",
                FIGURE["peak_run_bytes"].direction,
                _get("peak_run_bytes"),
                size,
                _peak_hover,
            ),
        ],
    )


def throughput(rows: Sequence[dict]) -> go.Figure:
    """Draw decode speed with the memory limit of the machine, and prefill speed, in tokens per second."""
    limited = any(memory_limit(row) for row in rows)
    return bars(
        rows,
        [
            Panel(
                "Decode",
                FIGURE["decode_tok_s"].direction + (", ▏memory limit" if limited else ""),
                _get("decode_tok_s"),
                _rate,
                _decode_hover,
                memory_limit,
                "limit",
            ),
            Panel("Prefill", FIGURE["prefill_tok_s"].direction, _get("prefill_tok_s"), _rate, _prefill_hover),
        ],
    )


def quality(rows: Sequence[dict]) -> go.Figure:
    """Draw perplexity, the baseline's as a line, and mean KL divergence from the baseline in nats per
    token."""
    baseline = next(
        (row["perplexity"] for row in rows if row["recipe"] == "fp32" and row.get("perplexity")), None
    )
    line = (baseline, "fp32") if baseline and len(rows) > 1 else None
    return bars(
        rows,
        [
            Panel(
                "Perplexity",
                FIGURE["perplexity"].direction,
                _get("perplexity"),
                human_perplexity,
                _quality_hover,
                reference=line,
            ),
            Panel(
                "KL divergence from fp32", FIGURE["kl_mean"].direction, _get("kl_mean"), _nats, _quality_hover
            ),
        ],
    )


def overview(rows: Sequence[dict]) -> go.Figure:
    """Draw stored bytes, decode speed and perplexity in one small plot."""
    return bars(
        rows,
        [
            Panel("Stored", FIGURE["stored_bytes"].direction, _get("stored_bytes"), size, _stored_hover),
            Panel("Decode", FIGURE["decode_tok_s"].direction, _get("decode_tok_s"), _rate, _decode_hover),
            Panel(
                "Perplexity",
                FIGURE["perplexity"].direction,
                _get("perplexity"),
                human_perplexity,
                _quality_hover,
            ),
        ],
    )


def bars(rows: Sequence[dict], panels: Sequence[Panel]) -> go.Figure:
    """Draw one horizontal bar per row in each panel, first row on top. A failed row has its status instead of
    a bar."""
    rows = drawn_labels(rows)
    labels = [row["label"] for row in rows]
    pitch = ROOMY if len(rows) <= 6 else TIGHT
    figure = make_subplots(1, len(panels), shared_yaxes=True, horizontal_spacing=0.035)
    for column, panel in enumerate(panels, start=1):
        values = [panel.value(row) if row.get("status", "ok") == "ok" else None for row in rows]
        cut = cut_at(values)
        shown = [None if value is None else min(value, cut) for value in values]
        top = max((value for value in shown if value is not None), default=1.0) or 1.0
        limits = [
            panel.limit(row) if panel.limit and value is not None else None
            for row, value in zip(rows, values, strict=True)
        ]
        reach = max([top, *(limit for limit in limits if limit is not None and limit <= LONGEST * top)])
        figure.add_bar(
            x=shown,
            y=labels,
            orientation="h",
            width=0.62,
            row=1,
            col=column,
            showlegend=False,
            marker={"color": [families.color(row["recipe"]) for row in rows], "cornerradius": 3},
            text=[_bar_text(panel, row, value, cut) for row, value in zip(rows, values, strict=True)],
            textposition="outside",
            cliponaxis=False,
            customdata=[_hover(panel, row, value) for row, value in zip(rows, values, strict=True)],
            hovertemplate="%{customdata}<extra></extra>",
        )
        _draw_missing(figure, rows, values, column)
        _draw_limits(figure, panel, labels, limits, LONGEST * top, column)
        if panel.reference and panel.reference[0] <= reach:
            figure.add_vline(
                panel.reference[0], line={"color": MUTED, "width": 1, "dash": "dot"}, row=1, col=column
            )
        figure.add_annotation(
            text=f"<b>{panel.title}</b>  <span style='color:{MUTED}'>{panel.hint}</span>",
            showarrow=False,
            x=0,
            y=1,
            yshift=6,
            xref=f"x{column if column > 1 else ''} domain",
            yref="paper",
            xanchor="left",
            yanchor="bottom",
        )
        figure.update_xaxes(visible=False, range=[0, reach * 1.32], fixedrange=True, row=1, col=column)
    figure.update_yaxes(
        range=[len(rows) - 0.5, -0.5],
        showgrid=False,
        showline=False,
        ticks="",
        fixedrange=True,
        zeroline=False,
    )
    figure.update_layout(
        height=HEAD + pitch * len(rows) + 4,
        margin={"l": 4, "r": 4, "t": HEAD, "b": 4},
        bargap=0.3,
        hoverlabel={"align": "left"},
        uniformtext={"minsize": 11, "mode": "show"},
    )
    return figure


def estimate(rows: Sequence[dict], available: float) -> go.Figure:
    """Draw the predicted stored bytes (solid) and peak (pale) of each row {"recipe", "label", "stored_bytes",
    "peak_bytes", "fits"} against the `available` bytes of this machine."""
    shortened = [drawn(_shortened(row["label"])) for row in rows]
    rows = drawn_labels(rows)
    labels = [row["label"] for row in rows]
    peaks = [row["peak_bytes"] for row in rows]
    top = max(peaks)
    inside = available <= 1.8 * top
    reach = max(top, available) if inside else top * 1.25
    figure = go.Figure()
    colors = [families.color(row["recipe"]) if row["fits"] else families.FAILED for row in rows]
    for key, alpha in (("peak_bytes", "55"), ("stored_bytes", "ff")):
        figure.add_bar(
            x=[row[key] for row in rows],
            y=labels,
            orientation="h",
            width=0.6,
            showlegend=False,
            marker={"color": [color + alpha for color in colors], "cornerradius": 3},
            customdata=[
                f"<b>{row['label']}</b><br>stored: {size(row['stored_bytes'])}<br>expected peak: "
                f"{size(row['peak_bytes'])}<br>available here: {size(available)}"
                for row in rows
            ],
            hovertemplate="%{customdata}<extra></extra>",
            textposition="outside",
            cliponaxis=False,
            text=[_estimate_text(row) for row in rows] if key == "peak_bytes" else None,
        )
    if inside:
        figure.add_vline(available, line={"color": families.FAILED, "width": 1.5, "dash": "dash"})
    figure.add_annotation(
        text=f"{size(available)} available" + ("" if inside else " →"),
        showarrow=False,
        yref="paper",
        y=1,
        yanchor="bottom",
        xref="x" if inside else "paper",
        x=available if inside else 1,
        xanchor="right",
        font={"color": MUTED},
    )
    figure.update_xaxes(visible=False, range=[0, reach * 1.8], fixedrange=True)
    names = {"tickvals": labels, "ticktext": shortened}
    figure.update_yaxes(range=[len(rows) - 0.5, -0.5], showgrid=False, ticks="", fixedrange=True, **names)
    figure.update_layout(
        barmode="overlay",
        height=30 + 28 * len(rows),
        margin={"l": 4, "r": 4, "t": 24, "b": 2},
        hoverlabel={"align": "left"},
    )
    return figure


def _shortened(label: str) -> str:
    """Return the two ends of a long name, so that its bar has room. The hover text has the whole name."""
    return label if len(label) <= LONGEST_LABEL else f"{label[:6]}…{label[-LONGEST_LABEL + 7 :]}"


def _estimate_text(row: dict) -> str:
    return f"{size(row['stored_bytes'])} <span style='color:{MUTED}'>/ {size(row['peak_bytes'])}</span>"


def memory_limit(row: dict) -> float | None:
    """Return the tokens per second at which reading the weights of each token takes the whole bandwidth of
    the row's machine; None if the bandwidth was not measured."""
    record = row.get("record") or {}
    bandwidth = (record.get("environment") or {}).get("read_bandwidth")
    read = record.get("bytes_a_token") or row.get(
        "stored_bytes"
    )  # records of earlier versions lack the first
    return bandwidth / read if bandwidth and read else None


def _bar_text(panel: Panel, row: dict, value: float | None, cut: float) -> str:
    if value is None:
        return ""
    return panel.text(value) + (f" <span style='color:{MUTED}'>(bar cut off)</span>" if value > cut else "")


def _draw_missing(
    figure: go.Figure, rows: Sequence[dict], values: Sequence[float | None], column: int
) -> None:
    for row, value in zip(rows, values, strict=True):
        if value is not None:
            continue
        status = row.get("status", "ok")
        figure.add_annotation(
            text="not measured" if status == "ok" else status,
            font={"color": families.FAILED if status == "failed" else MUTED},
            x=0,
            y=row["label"],
            xanchor="left",
            showarrow=False,
            row=1,
            col=column,
        )


def _draw_limits(
    figure: go.Figure, panel: Panel, labels: list[str], limits: list[float | None], reach: float, column: int
) -> None:
    inside = [
        (label, limit)
        for label, limit in zip(labels, limits, strict=True)
        if limit is not None and limit <= reach
    ]
    figure.add_scatter(
        x=[limit for _, limit in inside],
        y=[label for label, _ in inside],
        mode="markers",
        row=1,
        col=column,
        showlegend=False,
        marker={"symbol": "line-ns", "size": 17, "line": {"width": 2, "color": MUTED}},
        hovertemplate=f"{panel.limit_name}: %{{x:.3s}} tok/s<extra></extra>",
    )
    for label, limit in zip(labels, limits, strict=True):
        if limit is not None and limit > reach:
            figure.add_annotation(
                text=f"{panel.limit_name} {digits(limit)} →",
                font={"color": MUTED, "size": 11},
                xref="x domain",
                x=1,
                xanchor="right",
                y=label,
                showarrow=False,
                row=1,
                col=column,
            )


def _get(key: str) -> Value:
    return lambda row: row.get(key)


def _rate(value: float) -> str:
    return f"{digits(value)} tok/s"


def _nats(value: float) -> str:
    return "0 (the baseline)" if value == 0 else f"{digits(value)} nats"


def _hover(panel: Panel, row: dict, value: float | None) -> str:
    head = f"<b>{row['label']}</b><br>{panel.title}: {'–' if value is None else panel.text(value)}"
    return head + panel.hover(row) if value is not None else head


def _stored_hover(row: dict) -> str:
    return (
        f"<br>{digits(row.get('bits_per_weight'))} bits per quantized weight"
        f"<br>{percent(row.get('coverage'))} of the weights quantized"
    )


def _peak_hover(row: dict) -> str:
    return (
        f"<br>while loading and quantizing: {size(row.get('peak_load_bytes'))}<br>Python libraries included"
    )


def _decode_hover(row: dict) -> str:
    limit = memory_limit(row)
    share = f"<br>{percent(row['decode_tok_s'] / limit)} of the memory limit, {_rate(limit)}" if limit else ""
    return share + _speed_conditions(row)


def _prefill_hover(row: dict) -> str:
    return f"<br>time to first token: {seconds(row.get('ttft_s'))}" + _speed_conditions(row)


def _speed_conditions(row: dict) -> str:
    record = row.get("record") or {}
    threads, dtype = record.get("threads"), record.get("compute_dtype")
    words = (f"<br>{threads} threads" if threads else "") + (f", computed in {dtype}" if dtype else "")
    mark = beside_other_work(share_of(record))
    return words + (f"<br>{mark}" if mark else "")


def _quality_hover(row: dict) -> str:
    return (
        f"<br>perplexity: {digits(row.get('perplexity'))}<br>KL: {digits(row.get('kl_mean'))} nats per token"
        f"<br>same top token as fp32: {percent(row.get('top1_agreement'))}"
    )
