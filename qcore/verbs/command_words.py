"""The command that makes a model again, in words, for its card. Models, texts and folders of this machine
appear by their last name only."""

from collections.abc import Iterable
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any

from qcore.library.saving import made_from
from qcore.models import Checkpoint
from qcore.quantization.calibration.text import DOCSTRINGS
from qcore.recipes import Recipe
from qcore.recipes.ledger import Ledger


def words_of(verb: str, model: str, folder: Path, *options: Any, **more: Any) -> list[str]:
    """Return the words of a command after `qcore`: `verb` and model, the fields of `options` (dataclasses)
    and `more` that are set, and the output folder. Recipes are written by name, with the modules that they
    skip; folders and files by their last name.

    >>> words_of("prune", "/data/tiny", Path("/out/small"), method="wanda", sparse=True, text=None)
    ['prune', 'tiny', '--method', 'wanda', '--sparse', '--out', 'small']
    """
    words = [verb, last_part(model)]
    for name, value in [*(pair for each in options for pair in _flat(each)), *more.items()]:
        option = f"--{name.replace('_', '-')}"
        if isinstance(value, Recipe):
            words += [option, value.name]
            words += [word for each in value.modules.skip for word in ("--skip", each)]
        elif value is True:
            words.append(option)
        elif value is not None and value is not False:
            words += [option, last_part(str(value))]
    return [*words, "--out", folder.name]


def words_of_ledger(base: Checkpoint, recipe: Recipe, ledger: Ledger, folder: Path) -> list[str]:
    """Return the words of the command that quantizes `base` as the `ledger` says. The packaged calibration
    text is not named."""
    text = ledger.calibration or {}
    packaged = text.get("text", {}).get("name") == DOCSTRINGS
    return words_of(
        "quantize",
        (made_from(base.folder) or base.origin)["model"],
        folder,
        recipe=recipe,
        revision=base.revision if base.source == "hub" else None,
        calibration=None if packaged else text.get("text", {}).get("name"),
        calibration_tokens=text.get("tokens"),
        calibration_minutes=text.get("minutes"),
    )


def _flat(options: Any) -> Iterable[tuple[str, Any]]:
    for each in fields(options):
        value = getattr(options, each.name)
        if is_dataclass(value) and not isinstance(value, Recipe):
            for name, inner in _flat(value):
                yield each.name if name == "name" else name, inner
        elif not (each.name == "steps" and getattr(options, "minutes", None)):
            yield each.name, value


def last_part(name: str) -> str:
    """Return the last part of a path of this machine; everything else as it is."""
    path = Path(name)
    return path.name if path.is_absolute() or name.startswith(("~", "./", "../")) else name
