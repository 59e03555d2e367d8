"""A plan that knows what was run here before: `planning.plan` with the rows of the store."""

from qcore.base.errors import QcoreError
from qcore.base.turn import heavy_turn
from qcore.planning import Plan, hindsight, plan
from qcore.recipes.spec import absolute_path
from qcore.results.store import Store

ROWS = 60  # newest rows that are looked through


def plan_here(model, recipes=None, *, probe: bool = False, progress=None, **needs) -> Plan:
    """`planning.plan` with measured quality from the runs of this cache folder. A probe waits for its turn
    like any run."""
    rows = known_rows(str(getattr(model, "name", model)))
    if not probe:
        return plan(model, recipes, runs=rows, progress=progress, **needs)

    def waiting() -> None:
        if progress is not None:
            progress(0, 0, "waiting for another run to end")

    with heavy_turn(waiting):
        return plan(model, recipes, probe=True, runs=rows, progress=progress, **needs)


def known_rows(model: str | None = None) -> list[dict]:
    """The newest finished rows of `model` (None: of all); none if there is no database that can be read."""
    try:
        return Store().latest(absolute_path(model), limit=ROWS)  # runs keep absolute paths
    except QcoreError:
        return []


def error_bands() -> list[hindsight.Band]:
    """By how much the plan was wrong for the runs of this cache folder."""
    return hindsight.bands(known_rows())
