"""`python -m qcore runs …`: look at jobs of any kind, follow, repeat, share, cancel and delete them."""

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

BAD_INPUT = ("InputError", "TooLargeError", "UnavailableError")  # end a command with status 2
runs = typer.Typer(
    help="Jobs of all kinds that were started here: list, show, follow, repeat, share, cancel or delete one.",
    rich_markup_mode=None,
)
RunId = Annotated[str, typer.Argument(metavar="RUN_ID", show_default=False)]
Margin = Annotated[
    float | None,
    typer.Option(help="Margin of the verdicts, instead of the run's; 0.01 is 1 %", show_default=False),
]


@runs.callback(invoke_without_command=True)
def list_runs(context: typer.Context) -> int:
    if context.invoked_subcommand is not None:
        return 0
    from qcore.jobs import jobs
    from qcore.jobs.kinds import describe
    from qcore.results.report import visible
    from qcore.results.store import Store

    store = Store()
    if store.notice:
        say(store.notice)
        store.clear_notice()
    found = jobs.list_runs()
    if not found:
        say(
            "There are no runs yet. Start one with: "
            "python -m qcore compare smollm2-135m --recipes fp32,int8,int4-g64"
        )
    for run in found:
        when = time.strftime("%Y-%m-%d %H:%M", time.localtime(run.created_at or 0))
        model = run.request.get("model", "?")
        words = f"{model}  {describe(run.request)}"
        print(f"{run.run_id}  {when}  {run.state:<11}  {run.kind:<11}  {visible(words)}")
    return 0


@runs.command()
def show(run_id: RunId, json: options.Json = None, margin: Margin = None) -> int:
    """Show the state of a run, its results so far, and the command that repeats it."""
    from qcore.cli.outcomes import in_words
    from qcore.jobs import jobs
    from qcore.recipes.spec import check_margin
    from qcore.results import report

    check_output(json)
    if margin is not None:
        check_margin(margin)
    run, rows, outcome = jobs.status(run_id), jobs.rows(run_id, margin), jobs.outcome(run_id)
    lines = [f"{run.run_id}: {run.state}" + (f", {run.phase}" if run.active else "")]
    lines += [run.error] if run.error else []
    lines += [report.table(rows)] if rows else []
    lines += [in_words(run.kind, outcome)] if outcome is not None else []
    command = next(
        (row["record"]["command"] for row in rows if "command" in row["record"]),
        f"python -m qcore runs repeat {run_id}",
    )
    lines += [f"Repeat it with: {report.visible(command)}"]
    if run.state in ("failed", "interrupted") and run.log_tail:
        lines += ["The end of its log:", *(report.visible(line) for line in run.log_tail.splitlines()[-20:])]
    return write_output(rows if outcome is None else outcome, json, "\n".join(lines))


@runs.command()
def repeat(run_id: RunId, json: options.Json = None) -> int:
    """Submit the same request again, from the run's record."""
    from qcore.jobs import jobs

    check_output(json)
    return follow(jobs.repeat(run_id), json)


@runs.command("follow")
def look_on(run_id: RunId, json: options.Json = None) -> int:
    """Follow a run to its end and show its results. Ctrl-C stops following; the run continues."""
    check_output(json)
    return finish(watch(run_id, cancels=False), json)


@runs.command()
def log(run_id: RunId) -> int:
    """Print the log of a run."""
    from qcore.results.folder import RunFolder
    from qcore.results.report import visible

    path = RunFolder(run_id).log
    for line in path.read_text("utf-8", "replace").splitlines() if path.exists() else ():
        print(visible(line))
    return 0


@runs.command()
def cancel(run_id: RunId) -> int:
    """Cancel a queued or running run; finished rows are kept."""
    from qcore.jobs import jobs

    print(f"{run_id}: {jobs.cancel(run_id).state}")
    return 0


@runs.command()
def share(run_id: RunId) -> int:
    """Show an ended run to every visitor of a public dashboard, as a sample."""
    from qcore.jobs import jobs

    jobs.share(run_id)
    print(f"{run_id}: shown to every visitor of a public dashboard on this cache folder")
    return 0


@runs.command()
def delete(run_id: RunId) -> int:
    """Remove an ended run and its rows."""
    from qcore.jobs import jobs

    jobs.delete(run_id)
    print(f"{run_id}: deleted")
    return 0


def follow(run_id: str, json: str | None) -> int:
    """Follow a run to its end, print its results, write them as JSON, and return the exit status.

    Ctrl-C cancels it, and so do SIGTERM and a closed terminal.
    """
    return finish(watch(run_id), json)


def finish(run, json: str | None) -> int:
    """Print the results of an ended run, write them as JSON, and return the exit status."""
    from qcore.cli.outcomes import in_words
    from qcore.jobs import jobs
    from qcore.jobs.status import COMPARE
    from qcore.results import report

    if run.kind != COMPARE:
        outcome = jobs.outcome(run.run_id)
        if run.state == "done" and outcome is not None:
            return write_output(outcome, json, in_words(run.kind, outcome))
        return ended_badly(run)
    rows = jobs.rows(run.run_id)
    bad_input = run.state == "failed" and run.error_kind == "InputError"
    if json is not None or not bad_input:
        write_output(rows, json, report.table(rows) if rows and not bad_input else "")
    if run.state == "done" and not run.error and all(row["status"] == "ok" for row in rows):
        return 0
    return ended_badly(run)


def watch(run_id: str, *, cancels: bool = True):
    """Show a run's progress until it ends, and return its status. Ctrl-C cancels it, or with `cancels` False
    raises `KeyboardInterrupt`."""
    from qcore.jobs import jobs
    from qcore.results import report

    jobs.status(run_id)
    say(f"Run {run_id}")
    try:
        with Show() as show, _endings_interrupt():
            for run in jobs.follow(run_id):
                left = f", {report.human_seconds(run.eta_s)} left" if run.eta_s else ""
                show.run(run.fraction, report.visible(run.phase) + left, report.visible(_step(run)))
    except KeyboardInterrupt:
        if not cancels:
            raise
        say("Cancelling …")
        run = jobs.cancel(run_id)
    return run


def ended_badly(run) -> int:
    """Print why a run has not succeeded, and return the exit status."""
    from qcore.jobs.status import COMPARE

    if run.error:
        say(run.error)
    if run.state == "cancelled":
        say("Cancelled.")
        return 130
    bad_input = run.error_kind == "InputError" if run.kind == COMPARE else run.error_kind in BAD_INPUT
    return 2 if run.state == "failed" and bad_input else 1


def start(request, json: str | None = None) -> int:
    """Check a request, submit it, and follow it to its end; returns the exit status."""
    from qcore.jobs import jobs

    check_output(json)
    with Show() as show:
        request.check(show)
    return follow(jobs.submit(request), json)


@contextmanager
def _endings_interrupt() -> Iterator[None]:
    """Treat SIGTERM and a closed terminal like Ctrl-C inside the block."""
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
    """Return the phase without its changing details."""
    return run.phase.partition(",")[0] if run.state == "running" else run.phase
