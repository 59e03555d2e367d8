"""Progress on standard error: a bar on a terminal, one line per step in a file."""

import sys

from qcore.results.report import visible


class Show:
    """Context manager that shows steps on standard error, so that results on standard output stay clean.

    Call it with (done, total, text), or use `run` with a share (0 … 1) of a whole run and a text.
    """

    def __init__(self):
        self._bar = None
        self._task = None
        self._said = None

    def __enter__(self) -> "Show":
        if sys.stderr.isatty():
            from rich.console import Console
            from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn

            columns = (
                BarColumn(bar_width=24),
                TaskProgressColumn(),
                TimeElapsedColumn(),
                TextColumn("{task.description}", markup=False),
            )
            self._bar = Progress(*columns, console=Console(stderr=True), transient=True)
            self._bar.start()
            self._task = self._bar.add_task("starting", total=None)
        return self

    def __exit__(self, *exception) -> None:
        if self._bar is not None:
            self._bar.stop()

    def __call__(self, done: int, total: int, text: str = "") -> None:
        """Show `done` of `total` (0: unknown) steps."""
        if self._bar is not None:
            self._bar.update(self._task, completed=done, total=total or None, description=visible(text))

    def run(self, fraction: float, text: str, step: str) -> None:
        """Show the `fraction` done and the name of the current `step`, which is printed once where there is
        no bar."""
        if self._bar is not None:
            self._bar.update(self._task, completed=fraction, total=1.0, description=visible(text))
        elif step != self._said:
            self._said = step
            print(visible(step), file=sys.stderr, flush=True)
