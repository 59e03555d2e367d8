"""Families of recipes, see `qcore.results.families`, and their names on a page."""

from qcore.results.families import FAILED, OTHER, SAVED, color, family
from ui.text import shielded

__all__ = ["FAILED", "OTHER", "SAVED", "badge", "color", "family"]


def badge(recipe: str) -> str:
    """Return Markdown: a dot in the family's color, then the recipe's name."""
    return f':color[●]{{foreground="{color(recipe)}"}}&nbsp;{shielded(recipe)}'
