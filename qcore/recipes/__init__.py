"""Recipes by name, what a run is asked for, and the ledger of what a recipe did to each tensor.

recipe.py   Recipe and its parts, names both ways
spec.py     RunSpec: what one comparison is asked for
ledger.py   the account of every tensor
"""

from qcore.recipes.recipe import (
    ACTIVATIONS,
    BASES,
    CALIBRATED,
    COMMON,
    DEFAULT_GROUP,
    ENGINES,
    PREPARATIONS,
    SAVED,
    WITH_TEXT,
    Engine,
    Float,
    Modules,
    Recipe,
    Saved,
    Weights,
    describe,
    names,
    parse,
    parse_row,
)

__all__ = [
    "ACTIVATIONS",
    "BASES",
    "CALIBRATED",
    "COMMON",
    "DEFAULT_GROUP",
    "ENGINES",
    "PREPARATIONS",
    "SAVED",
    "WITH_TEXT",
    "Engine",
    "Float",
    "Modules",
    "Recipe",
    "Saved",
    "Weights",
    "describe",
    "names",
    "parse",
    "parse_row",
]
