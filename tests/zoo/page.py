"""docs/models.md, from the rows of a whole run."""

from pathlib import Path

from tests.zoo.rows import Row


def write(rows: list[Row]) -> Path:
    """Write the page."""
    path = Path(__file__).parents[2] / "docs" / "models.md"
    return path
