"""`qcore card`, `qcore push` and `qcore report`: the model card of a folder that qcore wrote, its
upload to the hub, and the report of a run."""

from pathlib import Path
from typing import Annotated

import typer

from qcore.base.errors import InputError
from qcore.cli.output import check_output, write_file, write_output
from qcore.cli.runs import Margin, RunId
from qcore.jobs.status import COMPARE

Folder = Annotated[Path, typer.Argument(help="A folder that qcore wrote", show_default=False)]


def card(
    folder: Folder,
    run: Annotated[
        str | None,
        typer.Option(help="A run that measured the model (default: the newest one)", metavar="RUN_ID"),
    ] = None,
) -> int:
    """Write the perplexity, KL divergence and verdict of a comparison into the model card, README.md, of
    FOLDER."""
    from qcore.verbs import card as verb

    measured = verb.from_run(folder, run)
    verb.measure(folder, measured)
    return write_output(None, None, f"{folder / verb.CARD}: figures of {measured.source}")


def push(
    folder: Folder,
    repo_id: Annotated[str, typer.Argument(help="OWNER/NAME on the hub", show_default=False)],
    public: Annotated[
        bool, typer.Option("--public", help="Let everybody see the repository (default: private)")
    ] = False,
    message: Annotated[
        str | None, typer.Option(help="Message of the commit", metavar="TEXT", show_default=False)
    ] = None,
) -> int:
    """Upload FOLDER to the hub with your own token (hf auth login, or HF_TOKEN)."""
    from qcore.verbs import push as verb

    return write_output(None, None, verb.run(folder, repo_id, public=public, message=message))


def report(
    run_id: RunId,
    html: Annotated[str, typer.Option(help="The file to write", metavar="FILE", show_default=False)],
    margin: Margin = None,
) -> int:
    """Write the report of a comparison as one HTML file that opens without a network and prints well:
    verdicts, pictures, settings, ledger, machine, and the command that repeats the run."""
    from qcore.jobs import jobs
    from qcore.recipes.spec import check_margin
    from qcore.results import html_report

    check_output(html, "--html")
    if margin is not None:
        check_margin(margin)
    status = jobs.status(run_id)
    if status.kind != COMPARE:
        raise InputError(f"{run_id} is a job of the kind {status.kind}. Only comparisons have a report.")
    write_file(html, html_report.page(jobs.rows(run_id, margin)))
    return 0
