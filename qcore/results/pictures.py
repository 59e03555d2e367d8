"""Pictures of a run as SVG, for reports that open without scripts and without a network.

A picture is a list of shapes in a box of `WIDTH` pixels; the report's template writes them. The same figures
are drawn with Plotly on the page Compare, with the scales of `qcore.results.scales`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

from qcore.evaluation.phrases import percent
from qcore.results import labels, report
from qcore.results.families import FAILED, color
from qcore.results.rows import FIGURE, ResultRow
from qcore.results.scales import (
    OUTCOMES,
    cut_at,
    fraction,
    frontier,
    limits_of,
    on_axis,
    ratio_name,
    ratio_place,
    ratio_ticks,
    ticks,
)

WIDTH = 900
_NAMES, _ROW, _HEAD, _FOOT = 190, 24, 30, 34  # pixels: the column of names, and heights
_NUMBER = 96  # pixels beside the longest bar, for its number
_LONGEST_NAME = 28  # characters of a name; the title of the shape has the whole name
_MUTED, _FAINT, _BAND = "#667080", "#d5d9de", "#e3f3e9"


@dataclass(frozen=True)
class Shape:
    """An SVG element: its tag, attributes, text, and `title`, shown when the pointer is on it."""

    tag: str
    attributes: dict[str, str | float]
    text: str = ""
    title: str = ""


@dataclass
class Picture:
    """A picture of `height` pixels. `title` names it, `hint` says how to read it."""

    title: str
    hint: str
    height: float
    shapes: list[Shape] = field(default_factory=list)

    def text(self, x: float, y: float, text: str, *, anchor: str = "start", **more: str | float) -> None:
        """Add text whose baseline starts, or ends, at (x, y)."""
        title = text if len(text) > _LONGEST_NAME and more.pop("short", False) else ""
        more.pop("short", None)
        shown = text[: _LONGEST_NAME - 1] + "…" if title else text
        self.shapes.append(
            Shape("text", {"x": round(x, 1), "y": round(y, 1), "text-anchor": anchor, **more}, shown, title)
        )

    def line(self, x1: float, y1: float, x2: float, y2: float, stroke: str, **more: str | float) -> None:
        """Add a line."""
        ends = {"x1": x1, "y1": y1, "x2": x2, "y2": y2}
        places = {name: round(value, 1) for name, value in ends.items()}
        self.shapes.append(Shape("line", {**places, "stroke": stroke, **more}))

    def rect(self, x: float, y: float, width: float, height: float, fill: str) -> None:
        """Add a filled rectangle."""
        box = {"x": x, "y": y, "width": width, "height": height}
        self.shapes.append(
            Shape("rect", {**{name: round(value, 1) for name, value in box.items()}, "fill": fill})
        )

    def point(self, x: float, y: float, radius: float, fill: str, title: str = "") -> None:
        """Add a filled circle."""
        self.shapes.append(
            Shape("circle", {"cx": round(x, 1), "cy": round(y, 1), "r": radius, "fill": fill}, "", title)
        )


def pictures(rows: Sequence[ResultRow]) -> list[Picture]:
    """Return the pictures of a run: memory, speed, quality and the trade-off. Pictures without any figure are
    left out."""
    drawn = [
        bars(rows, "Memory", "stored_bytes", "peak_run_bytes"),
        bars(rows, "Speed", "decode_tok_s", "prefill_tok_s"),
        bars(rows, "Quality", "perplexity", "kl_mean"),
        trade_off(rows),
    ]
    return [picture for picture in drawn if picture is not None]


def bars(rows: Sequence[ResultRow], title: str, *keys: str) -> Picture | None:
    """Draw a bar per row for each figure of `keys`, in columns side by side; None without any figure."""
    figures = [FIGURE[key] for key in keys if any(FIGURE[key].of(row) is not None for row in rows)]
    if not figures:
        return None
    picture = Picture(title, "", _HEAD + _ROW * len(rows))
    column = (WIDTH - _NAMES) / len(figures)
    for i, row in enumerate(rows):
        picture.text(_NAMES - 8, _HEAD + _ROW * i + 16, row["recipe"], anchor="end", short=True)
    for number, figure in enumerate(figures):
        left = _NAMES + number * column
        picture.text(left, 18, f"{figure.title}, {figure.direction}", fill=_MUTED)
        values = [figure.of(row) for row in rows]
        cut = cut_at(values)
        longest = max((min(value, cut) for value in values if value is not None), default=0.0) or 1.0
        for i, (row, value) in enumerate(zip(rows, values, strict=True)):
            top = _HEAD + _ROW * i
            if value is None:
                words = "not measured" if row["status"] == "ok" else row["status"]
                picture.text(left, top + 16, words, fill=FAILED if row["status"] == "failed" else _MUTED)
                continue
            width = min(value, cut) / longest * (column - _NUMBER - 10)
            picture.rect(left, top + 4, width, _ROW - 8, color(row["recipe"]))
            words = report.human_figure(figure, value)
            words += "" if figure.unit in ("MB", "%", "s", "ms") else f" {figure.unit}".rstrip()
            picture.text(left + width + 6, top + 16, words + (" (cut off)" if value > cut else ""))
    return picture


def verdicts(rows: Sequence[ResultRow]) -> Picture | None:
    """Draw the 95 % interval of the ratio of perplexities, recipe / fp32, of each row with a verdict, and the
    margin as a band. None without verdicts, or if they have several margins."""
    judged = [(row, verdict) for row in rows if (verdict := row.get("verdict"))]
    margins = {verdict["margin"] for _, verdict in judged}
    if len(margins) != 1 or not min(margins):
        return None
    (margin,) = margins
    edge = math.log1p(margin)
    found = [
        ratio_place(value, edge)
        for _, verdict in judged
        for value in verdict["ratio"].values()
        if value is not None
    ]
    low, high = min([*found, -1.6]), max([*found, 1.6])
    bottom = 8 + _ROW * len(judged)
    right = WIDTH - 190

    def at(ratio: float) -> float:
        place = (ratio_place(ratio, edge) - low) / (high - low)
        return _NAMES + 12 + place * (right - _NAMES - 24)

    picture = Picture(
        "Perplexity against fp32",
        f"Points with 95 % intervals. The green band is the margin of {percent(margin)}; the axis is "
        "logarithmic beyond it.",
        bottom + _FOOT,
    )
    picture.rect(at(1 / (1 + margin)), 4, at(1 + margin) - at(1 / (1 + margin)), bottom - 4, _BAND)
    for tick in ratio_ticks(low, high, edge, margin):
        picture.line(at(tick), 4, at(tick), bottom, _MUTED if tick == 1 else _FAINT)
        picture.text(at(tick), bottom + 16, ratio_name(tick), anchor="middle", fill=_MUTED)
    for i, (row, verdict) in enumerate(judged):
        middle, ratio, paint = 4 + _ROW * i + _ROW / 2, verdict["ratio"], color(row["recipe"])
        picture.text(_NAMES - 8, middle + 4, row["recipe"], anchor="end", short=True)
        if ratio["low"] is not None:
            ends = at(ratio["low"]), at(ratio["high"])
            picture.line(ends[0], middle, ends[1], middle, paint, **{"stroke-width": 2.5})
            for end in ends:
                picture.line(end, middle - 5, end, middle + 5, paint, **{"stroke-width": 2.5})
        picture.point(at(ratio["estimate"]), middle, 5, paint)
        words = f"{verdict['outcome']}  {ratio_name(ratio['estimate'])}"
        picture.text(right + 8, middle + 4, words, fill=OUTCOMES[verdict["outcome"]])
    return picture


def trade_off(rows: Sequence[ResultRow]) -> Picture | None:
    """Draw stored size against divergence from fp32, both logarithmic, with the frontier: the rows that no
    other beats on both. None with fewer than two rows that have both figures."""
    size, quality = FIGURE["stored_bytes"], FIGURE["kl_mean"]
    kept = [row for row in rows if size.of(row) and quality.of(row) is not None]
    if len(kept) < 2:
        return None
    x = [(size.of(row) or 0.0) * size.scale for row in kept]
    y = [quality.of(row) or 0.0 for row in kept]
    x_limits, y_limits = limits_of(x, True), limits_of(y, True)
    left, right, top, bottom = 70, WIDTH - 12, 10, 350
    units = [
        (fraction(a, x_limits, True), fraction(on_axis(b, y_limits, True), y_limits, True))
        for a, b in zip(x, y, strict=True)
    ]
    places = [(left + a * (right - left), bottom - b * (bottom - top)) for a, b in units]
    picture = Picture(
        "The trade-off",
        "Stored size against divergence from fp32. Large points joined by the line are on the frontier: no "
        "other recipe is better in both. A divergence of 0 lies at the lower edge.",
        bottom + 44,
    )
    for tick in ticks(x_limits):
        place = left + fraction(tick, x_limits, True) * (right - left)
        picture.line(place, top, place, bottom, _FAINT)
        picture.text(place, bottom + 16, f"{tick:g}", anchor="middle", fill=_MUTED)
    for tick in ticks(y_limits):
        place = bottom - fraction(tick, y_limits, True) * (bottom - top)
        picture.line(left, place, right, place, _FAINT)
        picture.text(left - 6, place + 4, f"{tick:g}", anchor="end", fill=_MUTED)
    picture.text((left + right) / 2, bottom + 36, "← stored, MB", anchor="middle", fill=_MUTED)
    turned = {"transform": f"rotate(-90 12 {(top + bottom) / 2})", "fill": _MUTED}
    picture.text(12, (top + bottom) / 2, "← KL to fp32, nats per token", anchor="middle", **turned)
    front = frontier(list(zip(x, y, strict=True)), True, True)
    for i, j in zip(front, front[1:], strict=False):
        (x1, y1), (x2, y2) = places[i], places[j]
        picture.line(x1, y1, x2, y1, _MUTED)
        picture.line(x2, y1, x2, y2, _MUTED)
    names = [row["recipe"][:_LONGEST_NAME] for row in kept]
    written = labels.place(units, names, right - left, bottom - top, first=front)
    for i, row in enumerate(kept):
        picture.point(
            *places[i], 6 if i in front else 4, color(row["recipe"]), f"{row['recipe']}: {_pair(row)}"
        )
        if written[i] is not None:
            _write(picture, places[i], names[i], str(written[i]))
    return picture


def _pair(row: ResultRow) -> str:
    figures = (FIGURE["stored_bytes"], FIGURE["kl_mean"])
    return ", ".join(f"{each.title} {report.human_figure(each, each.of(row))}" for each in figures)


def _write(picture: Picture, point: tuple[float, float], text: str, place: str) -> None:
    """Write `text` beside a point, at one of the places of `labels.place`."""
    vertical, horizontal = place.split()
    anchor = {"left": "end", "right": "start", "center": "middle"}[horizontal]
    across = {"left": -1, "right": 1, "center": 0}[horizontal]
    gap = 6 if across and vertical != "middle" else 9
    down = {"top": -gap, "bottom": gap + 9, "middle": 4}[vertical]
    picture.text(point[0] + across * gap, point[1] + down, text, anchor=anchor)
