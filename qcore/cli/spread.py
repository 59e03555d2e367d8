"""The options that spread work over machines, and several models in one go."""

from typing import Annotated

import typer

from qcore.cli.output import check_output, write_output
from qcore.cli.runs import follow

EngineName = Annotated[
    str, typer.Option(help="local, or ray: spread over the machines of a Ray cluster", metavar="ENGINE")
]
Address = Annotated[
    str | None,
    typer.Option(
        help="The cluster's address, such as 10.0.0.1:6379; without it, the one here", metavar="HOST:PORT"
    ),
]
Also = Annotated[
    list[str] | None,
    typer.Option(help="Another model to measure the same recipes on (may be given again)", metavar="MODEL"),
]


def follow_all(run_ids: list[str], json: str | None) -> int:
    """Show the runs until they end, one after another, write the rows of all, and return the worst exit
    status."""
    from qcore.jobs import jobs

    if len(run_ids) == 1:
        return follow(run_ids[0], json)
    check_output(json)
    worst = 0
    try:
        for run_id in run_ids:
            worst = max(worst, follow(run_id, None))
            if worst == 130:
                break
    finally:
        for run_id in run_ids:
            if jobs.status(run_id).active:
                jobs.cancel(run_id)
    write_output([row for run_id in run_ids for row in jobs.rows(run_id)], json, "")
    return worst
