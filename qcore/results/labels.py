"""Place the names of a scatter plot's points so that they cover neither points nor each other."""

from collections.abc import Collection

# (Plotly text position, horizontal and vertical offset of the text from the point in half widths and heights)
POSITIONS = (
    ("middle right", 1, 0),
    ("middle left", -1, 0),
    ("top center", 0, 1),
    ("bottom center", 0, -1),
    ("top right", 1, 1),
    ("bottom right", 1, -1),
    ("top left", -1, 1),
    ("bottom left", -1, -1),
)
# pixels: width and height of a character of the 12-pixel font; distance of a text from its point's center
CHARACTER, LINE, GAP = 6.6, 14.0, 9.0


def place(
    points: list[tuple[float, float]],
    texts: list[str],
    width: float,
    height: float,
    first: Collection[int] = (),
) -> list[str | None]:
    """Return a text position for each of `points`, or None where every position is taken. A point is (x, y)
    in 0 … 1 of a plot of `width` x `height` pixels, y upward. Greedy: the points `first` choose first, then
    the most crowded ones."""
    pixels = [(x * width, y * height) for x, y in points]
    order = sorted(range(len(pixels)), key=lambda i: (i not in first, -_crowd(i, pixels)))
    taken = [(x - 6, y - 6, x + 6, y + 6) for x, y in pixels]
    chosen: list[str | None] = [None] * len(pixels)
    for i in order:
        for name, dx, dy in POSITIONS:
            box = _box(*pixels[i], dx, dy, len(texts[i]) * CHARACTER)
            inside = box[0] >= 0 and box[1] >= -LINE and box[2] <= width and box[3] <= height + LINE
            if inside and not any(_overlap(box, other) for k, other in enumerate(taken) if k != i):
                taken.append(box)
                chosen[i] = name
                break
    return chosen


def _crowd(i: int, pixels: list[tuple[float, float]]) -> int:
    x, y = pixels[i]
    return sum(abs(x - a) < 80 and abs(y - b) < 30 for a, b in pixels) - 1


def _box(x: float, y: float, dx: int, dy: int, width: float) -> tuple[float, float, float, float]:
    gap = 6 if dx and dy else GAP  # a corner's text starts nearer to the point than a side's
    center_x, center_y = x + dx * (gap + width / 2), y + dy * (gap + LINE / 2)
    return center_x - width / 2, center_y - LINE / 2, center_x + width / 2, center_y + LINE / 2


def _overlap(a: tuple, b: tuple) -> bool:
    return a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3]
