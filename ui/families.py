"""Families of recipes and their colours: the same everywhere, readable on white and on black."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Family:
    """`color` is for plots, `badge` the name of Streamlit's nearest colour."""

    name: str
    color: str
    badge: str


FLOAT = Family("floating point", "#7d8794", "gray")
INTEGER = Family("integers", "#3d7fdb", "blue")
TABLE = Family("tables of values", "#9161d4", "violet")
BITSANDBYTES = Family("bitsandbytes", "#dc7d2a", "orange")
TORCHAO = Family("torchao", "#2a9d7c", "green")
TORCH = Family("torch.ao", "#ab8f12", "yellow")
QUANTO = Family("optimum-quanto", "#d0558f", "red")
OTHER = Family("other", "#5f9ea8", "gray")

FAILED = "#d64550"

_PREFIXES = (
    ("fp32", FLOAT), ("bf16", FLOAT), ("fp16", FLOAT), ("int", INTEGER), ("nf4", TABLE), ("fp4", TABLE), ("kmeans", TABLE),
    ("bnb-", BITSANDBYTES), ("torchao-", TORCHAO), ("torch-", TORCH), ("quanto-", QUANTO),
)  # fmt: skip
OWN = (FLOAT, INTEGER, TABLE)


def family(recipe: str) -> Family:
    """The family of the recipe called `recipe`."""
    return next((found for prefix, found in _PREFIXES if recipe.startswith(prefix)), OTHER)


def color(recipe: str) -> str:
    """The colour of the recipe's family in plots."""
    return family(recipe).color


def badge(recipe: str) -> str:
    """The recipe's name as a small Markdown badge in its family's colour."""
    return f":{family(recipe).badge}-badge[{recipe}]"
