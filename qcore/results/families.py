"""Families of recipes and their colors: the same everywhere, readable on white and on black."""

from dataclasses import dataclass

from qcore.formats import kinds
from qcore.recipes import engines
from qcore.recipes.names import FLOATS, base_of
from qcore.recipes.names import MIXED as MIXED_BASES
from qcore.recipes.names import SAVED as SAVED_PREFIX


@dataclass(frozen=True)
class Family:
    name: str
    color: str
    help: str = ""


FLOAT = Family("floating point", "#7d8794", "Nothing is quantized. fp32 is the baseline.")
MIXED = Family("mixed formats", "#6b8e23")
SAVED = Family("saved models", "#b5651d")
OTHER = Family("other", "#5f9ea8")

FAILED = "#d64550"


def family(recipe: str) -> Family:
    """Return the family of `recipe`, a recipe's name. A preparation such as rotation does not change it."""
    if recipe.startswith(SAVED_PREFIX):
        return SAVED
    if found := engines.recipes().get(recipe):
        return Family(found[0].title, found[0].color)
    base = base_of(recipe) or ""
    if base in FLOATS:
        return FLOAT
    if base in MIXED_BASES:
        return MIXED
    if kind := kinds.bases().get(base):
        return Family(kind.FAMILY.title, kind.FAMILY.color, kind.FAMILY.help)
    return OTHER


def color(recipe: str) -> str:
    """Return the color of the recipe's family in plots."""
    return family(recipe).color
