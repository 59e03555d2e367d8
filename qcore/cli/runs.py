"""`python -m qcore runs …`: look at runs, repeat, cancel and delete them. `follow` shows one until it
ends."""

import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Annotated

import typer

from qcore.cli import options
from qcore.cli.output import check_output, say, write_output
from qcore.cli.progress import Show

runs = typer.Typer(
    help="Runs that were made here: list them, show one, repeat, cancel or delete it.", rich_markup_mode=None
)
RunId = Annotated[str, typer.Argument(metavar="RUN_ID", show_default=False)]
Margin = Annotated[
    float | None,
    typer.Option(help="Judge within another margin than the run's; 0.01 is 1 %", show_default=False),
]


@runs.callback(invoke_without_command=True)
def list_runs(context: typer.Context) -> int:
    if context.invoked_subcommand is not None:
        return 0
    from qcore.jobs import jobs
    from qcore.results.store import Store

    store = Store()
    if store.notice:
        say(store.notice)
        store.clear_notice()
    found = jobs.list_runs()
    if not found:
        say(
            "There are no runs yet. Start one with: python -m qcore compare smollm2-135m --recipes fp32,int8,int4-g64"
        )
    for run in found:
        when = time.strftime("%Y-%m-%d %H:%M", time.localtime(run.created_at or 0))
        names = ",".join(recipe["recipe"] for recipe in run.recipes)
        print(f"{run.run_id}  {when}  {run.state:<11}  {run.spec.get('model', '?')}  {names}")
    return 0


@runs.command()
def show(run_id: RunId, json: options.Json = None, margin: Margin = None) -> int:
    """How a run stands, its rows so far, and the command that repeats it."""
    from qcore.jobs import jobs
    from qcore.recipes.spec import check_margin
    from qcore.results import report

    check_output(json)
    if margin is not None:
        check_margin(margin)
    run, rows = jobs.status(run_id), jobs.rows(run_id, margin)
    lines = [f"{run.run_id}: {run.state}" + (f", {run.phase}" if run.active else "")]
    lines += [run.error] if run.error else []
    lines += [report.table(rows)] if rows else []
    command = next(
        (row["record"]["command"] for row in rows if "command" in row["record"]),
        f"python -m qcore runs repeat {run_id}",
    )
    lines += [f"Repeat it with: {report.visible(command)}"]
    if run.state in ("failed", "interrupted") and run.log_tail:
        lines += ["The end of its log:", *(report.visible(line) for line in run.log_tail.splitlines()[-20:])]
    return write_output(rows, json, "\n".join(lines))


@runs.command()
def repeat(run_id: RunId, json: options.Json = None) -> int:
    """Do the same again, from the run's own record."""
    from qcore.jobs import jobs

    check_output(json)
    return follow(jobs.repeat(run_id), json)


@runs.command()
def cancel(run_id: RunId) -> int:
    """End a queued or running run; its finished rows are kept."""
    from qcore.jobs import jobs

    print(f"{run_id}: {jobs.cancel(run_id).state}")
    return 0


@runs.command()
def delete(run_id: RunId) -> int:
    """Remove an ended run and its rows."""
    from qcore.jobs import jobs

    jobs.delete(run_id)
    print(f"{run_id}: deleted")
    return 0


def follow(run_id: str, json: str | None) -> int:
    """Show a run's progress until it ends, print its table, write its rows as JSON, and return the exit
    status.

    Ctrl-C cancels it, and so does whatever else ends this command politely, because nobody would be left to
    see the result.
    """
    from qcore.jobs import jobs
    from qcore.results import report

    say(f"Run {run_id}")
    try:
        with Show() as show, _endings_interrupt():
            for run in jobs.follow(run_id):
                left = f", {report.human_seconds(run.eta_s)} left" if run.eta_s else ""
                show.run(run.fraction, report.visible(run.phase) + left, report.visible(_step(run)))
    except KeyboardInterrupt:
        say("Cancelling …")
        run = jobs.cancel(run_id)
    rows = jobs.rows(run_id)
    if run.state == "failed" and run.error_kind == "InputError":
        if json is not None:
            write_output(rows, json, "")
        say(run.error)
        return 2
    write_output(rows, json, report.table(rows) if rows else "")
    if run.error:
        say(run.error)
    if run.state == "cancelled":
        say("Cancelled.")
        return 130
    return 0 if run.state == "done" and not run.error and all(row["status"] == "ok" for row in rows) else 1


@contextmanager
def _endings_interrupt() -> Iterator[None]:
    """Within it, SIGTERM and a closed terminal do what Ctrl-C does."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    numbers = [getattr(signal, name) for name in ("SIGTERM", "SIGHUP") if hasattr(signal, name)]
    before = {number: signal.signal(number, signal.default_int_handler) for number in numbers}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _step(run) -> str:
    """The phase without its details, which change all the time."""
    return run.phase.partition(",")[0] if run.state == "running" else run.phase
