"""Recipes and their names, the specification of a run, and the ledger of all tensors.

recipe.py    Recipe and its parts
names.py     names to recipes and back
methods.py   facts about methods; engines.py about engines; declared.py reads them from their files
spec.py      RunSpec, the specification of one comparison
ledger.py    the account of every tensor
"""

from qcore.recipes.engines import ENGINES, EngineInfo, Variant
from qcore.recipes.methods import METHODS, MethodInfo
from qcore.recipes.names import FILE, SAVED, common, describe, names, parse, parse_all, parse_row, with_text
from qcore.recipes.recipe import ACTIVATIONS, PREPARATIONS, Engine, Float, Modules, Recipe, Saved, Weights

__all__ = [
    "ACTIVATIONS",
    "ENGINES",
    "METHODS",
    "PREPARATIONS",
    "FILE",
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
    "parse_all",
    "parse_row",
    "with_text",
]
