"""`plan`: `qcore.planning.plan`, with the quality measured in the runs of this cache folder."""

from pathlib import Path

from qcore.base.errors import QcoreError
from qcore.base.progress import Progress
from qcore.base.turn import heavy_turn
from qcore.models import Checkpoint
from qcore.planning import Plan, plan
from qcore.recipes.spec import absolute_model
from qcore.results.store import Store
from qcore.verbs.checks import check_device

ROWS = 60  # newest rows read


def run(
    model: str | Path | Checkpoint,
    recipes: list | None = None,
    *,
    probe: bool = False,
    device: str = "cpu",
    progress: Progress | None = None,
    **needs,
) -> Plan:
    """Return the plan for `model` under `recipes`; `needs` are the other arguments of `planning.plan`. A
    probe waits for its turn, as a run does. Raise `InputError` or `UnavailableError` for a `device` that
    cannot be used."""
    check_device(device)
    needs["device"] = device
    rows = known_rows(model.name if isinstance(model, Checkpoint) else str(model))
    if not probe:
        return plan(model, recipes, runs=rows, progress=progress, **needs)
    with heavy_turn(progress):
        return plan(model, recipes, probe=True, runs=rows, progress=progress, **needs)


def known_rows(model: str | None = None) -> list[dict]:
    """Return the newest finished rows of `model` (None: of all models); an empty list without a readable
    database."""
    try:
        # runs keep absolute paths
        return Store().latest(None if model is None else absolute_model(model), limit=ROWS)
    except QcoreError:
        return []
