"""Families of recipes and their colours: the same everywhere, readable on white and on black."""

from dataclasses import dataclass

from ui.text import shielded


@dataclass(frozen=True)
class Family:
    name: str
    color: str


FLOAT = Family("floating point", "#7d8794")
INTEGER = Family("integers", "#3d7fdb")
TABLE = Family("tables of values", "#9161d4")
BITSANDBYTES = Family("bitsandbytes", "#dc7d2a")
TORCHAO = Family("torchao", "#2a9d7c")
TORCH = Family("torch.ao", "#ab8f12")
QUANTO = Family("optimum-quanto", "#d0558f")
ONNX = Family("ONNX Runtime", "#4b9bab")
MIXED = Family("mixed formats", "#6b8e23")
SAVED = Family("made before", "#b5651d")
OTHER = Family("other", "#5f9ea8")

FAILED = "#d64550"

_PREFIXES = (
    ("fp32", FLOAT),
    ("bf16", FLOAT),
    ("fp16", FLOAT),
    ("int", INTEGER),
    ("nf4", TABLE),
    ("fp4", TABLE),
    ("kmeans", TABLE),
    ("auto", MIXED),
    ("bnb-", BITSANDBYTES),
    ("torchao-", TORCHAO),
    ("torch-", TORCH),
    ("quanto-", QUANTO),
    ("onnx-", ONNX),
    ("saved:", SAVED),
)


def family(recipe: str) -> Family:
    """The family of the recipe called `recipe`; a preparation such as rotation does not change it."""
    return next(
        (found for prefix, found in _PREFIXES if recipe.removeprefix("rot-").startswith(prefix)), OTHER
    )


def color(recipe: str) -> str:
    """The colour of the recipe's family in plots."""
    return family(recipe).color


def badge(recipe: str) -> str:
    """The recipe's name in Markdown, after a dot in its family's colour."""
    name = (
        shielded(recipe) if family(recipe) is SAVED else recipe
    )  # a folder's name may hold anything, a known recipe's does not
    return f':color[●]{{foreground="{color(recipe)}"}}&nbsp;{name}'
