"""`plan`: `qcore.planning.plan` with the quality that was measured in the runs of this cache folder."""

from pathlib import Path

from qcore.base.errors import QcoreError
from qcore.base.progress import Progress
from qcore.base.turn import heavy_turn
from qcore.models import Checkpoint
from qcore.planning import Plan, hindsight, plan
from qcore.recipes.spec import absolute_model
from qcore.results.store import Store

ROWS = 60  # newest rows that are read


def run(
    model: str | Path | Checkpoint,
    recipes: list | None = None,
    *,
    probe: bool = False,
    progress: Progress | None = None,
    **needs,
) -> Plan:
    """Return the plan for `model` under `recipes`; `needs` are the other arguments of `planning.plan`. A probe
    waits for its turn like any run."""
    rows = known_rows(model.name if isinstance(model, Checkpoint) else str(model))
    if not probe:
        return plan(model, recipes, runs=rows, progress=progress, **needs)
    with heavy_turn(progress):
        return plan(model, recipes, probe=True, runs=rows, progress=progress, **needs)


def known_rows(model: str | None = None) -> list[dict]:
    """Return the newest finished rows of `model` (None: of all models); none if there is no database that can
    be read."""
    try:
        # runs keep absolute paths
        return Store().latest(None if model is None else absolute_model(model), limit=ROWS)
    except QcoreError:
        return []


def error_bands() -> list[hindsight.Band]:
    """Return by how much the plan was wrong for the runs of this cache folder."""
    return hindsight.bands(known_rows())
