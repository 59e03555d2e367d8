"""Arguments and options that several commands share, each defined once."""

from pathlib import Path
from typing import Annotated, overload

import typer

from qcore.base.errors import InputError
from qcore.recipes import Recipe, parse, parse_row

Model = Annotated[
    str,
    typer.Argument(
        metavar="MODEL", help="smollm2-135m, a hub id, a folder, or a GGUF file", show_default=False
    ),
]
Revision = Annotated[str | None, typer.Option(help="Branch, tag or commit on the hub")]
Device = Annotated[str, typer.Option(help="cpu, or an accelerator such as cuda")]
Threads = Annotated[int | None, typer.Option(help="Processor threads (default: one per core)")]
Json = Annotated[
    str | None,
    typer.Option("--json", help="Write the result there as JSON; - is standard output", metavar="OUT"),
]
Out = Annotated[Path, typer.Option(help="Folder to save into", metavar="DIR", show_default=False)]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace a model that qcore saved there")]

RecipeNames = Annotated[
    str | None, typer.Option(help="Comma-separated names (default: a selection)", metavar="A,B")
]
Skip = Annotated[
    list[str] | None,
    typer.Option(
        help="Do not quantize these modules: layers.0, *.down_proj, … (repeatable)", metavar="PATTERN"
    ),
]
Calibration = Annotated[
    str | None,
    typer.Option(
        help="Calibration text of methods such as gptq (default: the packaged text)", metavar="FILE"
    ),
]
CalibrationTokens = Annotated[int, typer.Option(help="Number of calibration tokens")]
Imatrix = Annotated[
    str | None, typer.Option(help="Importance matrix of llama.cpp, for recipes with -imatrix", metavar="FILE")
]
CalibrationMinutes = Annotated[
    float | None,
    typer.Option(help="Minutes for learned rounding (default: a fixed number of steps)", metavar="MINUTES"),
]

Text = Annotated[
    str | None,
    typer.Option(help="UTF-8 text file, or wikitext-2 (default: the packaged text)", metavar="FILE"),
]
Window = Annotated[int, typer.Option(help="Tokens per window")]
Stride = Annotated[int | None, typer.Option(help="Tokens by which the window moves (default: the window)")]
Choices = Annotated[
    str | None,
    typer.Option(
        help="Ask multiple-choice questions: a file, or default for the packaged ones", metavar="FILE"
    ),
]
Kv = Annotated[str, typer.Option(help="Format of the key-value cache: none, int8 or int4", metavar="FORM")]
PromptTokens = Annotated[int, typer.Option(help="Prompt length of the speed measurement, tokens")]
NewTokens = Annotated[int, typer.Option(help="New tokens of the speed measurement")]
Repeats = Annotated[int, typer.Option(help="Repetitions of the speed measurement; medians are reported")]
Seed = Annotated[int, typer.Option(help="Seed of the prompt of the speed measurement")]

EngineName = Annotated[
    str, typer.Option(help="local, or ray: spread over the machines of a Ray cluster", metavar="ENGINE")
]
Address = Annotated[
    str | None,
    typer.Option(
        help="Address of the cluster, such as 10.0.0.1:6379 (default: the one on this machine)",
        metavar="HOST:PORT",
    ),
]


@overload
def split(names: str) -> list[str]: ...


@overload
def split(names: str | None) -> list[str] | None: ...


def split(names: str | None) -> list[str] | None:
    """Return the names of a comma-separated list; None for None."""
    return None if names is None else [name.strip() for name in names.split(",") if name.strip()]


@overload
def one_recipe(name: str, skip: list[str] | None = None) -> Recipe: ...


@overload
def one_recipe(name: str | None, skip: list[str] | None = None) -> Recipe | None: ...


def one_recipe(name: str | None, skip: list[str] | None = None) -> Recipe | None:
    """Return the recipe called `name` with the skip patterns; None for None. Raises `InputError` for several
    names."""
    if name is None:
        return None
    if "," in name or not name.strip():
        raise InputError(f"--recipe takes one recipe, but got {name!r}.")
    return several(name, skip)[0]


def several(names: str, skip: list[str] | None = None, *, saved: bool = False) -> tuple[Recipe, ...]:
    """Return the recipes called `names`, with the skip patterns on those that quantize; with `saved`, saved
    models may stand among them. Raises `InputError` for a name that is unknown."""
    parsed = [(parse_row if saved else parse)(name) for name in split(names) or ()]
    return tuple(
        recipe.with_modules(skip=tuple(skip)) if skip and recipe.quantizes else recipe for recipe in parsed
    )
