"""Recipes by name, what a run is asked for, and the ledger of what a recipe did to each tensor.

recipe.py    Recipe and its parts
names.py     names both ways
methods.py   what is known of the methods; engines.py of the engines; declared.py reads it from their files
spec.py      RunSpec: what one comparison is asked for
ledger.py    the account of every tensor
"""

from qcore.recipes.engines import ENGINES, EngineInfo, Variant
from qcore.recipes.methods import METHODS, MethodInfo
from qcore.recipes.names import SAVED, common, describe, names, parse, parse_row, with_text
from qcore.recipes.recipe import ACTIVATIONS, PREPARATIONS, Engine, Float, Modules, Recipe, Saved, Weights

__all__ = [
    "ACTIVATIONS",
    "ENGINES",
    "METHODS",
    "PREPARATIONS",
    "SAVED",
    "Engine",
    "EngineInfo",
    "Float",
    "MethodInfo",
    "Modules",
    "Recipe",
    "Saved",
    "Variant",
    "Weights",
    "common",
    "describe",
    "names",
    "parse",
    "parse_row",
    "with_text",
]
