"""Comparisons: the baseline first, then one recipe after another, each in a separate process, each giving a
row."""

import json
import logging
import sqlite3

from qcore import __version__
from qcore.base.errors import QcoreError
from qcore.formats.kv import NONE
from qcore.jobs.estimate import PHASES, Estimate, guess
from qcore.jobs.kind import Context, Course, JobKind, Outcome
from qcore.jobs.status import COMPARE, StatusRecord
from qcore.recipes.spec import RunSpec
from qcore.results.folder import RunFolder
from qcore.results.report import unfinished_row
from qcore.results.rows import ResultRow, RunRecord
from qcore.results.store import Store, keep_row
from qcore.verbs.compare import REFERENCE

BASELINE = "baseline"
_log = logging.getLogger(__name__)


class Comparison(JobKind):
    """A comparison: `RunSpec` is the request, and each finished recipe becomes a row in the run's folder."""

    name, title = COMPARE, "Compare recipes"
    request = RunSpec

    def describe(self, record: dict) -> str:
        """Return the recipes' names."""
        return ",".join(recipe["name"] for recipe in record.get("recipes", ()))

    def kept(self, folder: RunFolder) -> str:
        """Return the number of finished rows, as a phrase."""
        finished = len(folder.rows())
        if not finished:
            return "no recipe had finished"
        return f"{finished} finished rows were kept, and a repeated run takes them over"

    def clear(self, folder: RunFolder) -> None:
        """Remove the baseline's outputs: megabytes that no later step reads."""
        (folder.path / REFERENCE).unlink(missing_ok=True)

    def finished(self, folder: RunFolder) -> dict[int, ResultRow]:
        """Return the rows that a repeated run takes over, each with a note: those that succeeded in this
        version of qcore. Models that were saved before may have changed."""
        note = f"Taken over from the run {folder.run_id}, which was interrupted."
        found = {}
        for position, row in folder.rows().items():
            record = row["record"]
            if row["status"] == "ok" and record.get("qcore") == __version__ and not _is_saved(record):
                record["notes"] = [*record.get("notes", ()), note]
                found[position] = row
        return found

    def course(self, folder: RunFolder, status: StatusRecord) -> Course:
        """Return the worker's side of a comparison."""
        return CompareCourse(folder, status)

    def run(self, request: RunSpec, context: Context) -> None:
        """Measure the recipe at the task's position and write its row, or record the baseline alone."""
        from qcore.verbs import compare

        folder = context.folder
        if context.task == BASELINE:
            compare.record_reference(request, folder.path, context.send)
        else:
            position = int(context.task)
            recipe, known = request.recipes[position], folder.rows().get(position)
            if known and not request.is_baseline(recipe.name) and compare.is_current(known, folder.path):
                return
            row = compare.run_recipe(request, recipe, folder.path, context.send)
            folder.write_row(position, row)


class CompareCourse(Course):
    """The worker's side of a comparison: tasks are positions of recipes, or "baseline" for a baseline without
    a row."""

    def __init__(self, folder: RunFolder, status: StatusRecord):
        super().__init__(folder, status)
        self.names = [recipe["name"] for recipe in self.spec["recipes"]]
        self.tasks = [BASELINE if at is None else str(at) for at in _order(self.spec)]

    @property
    def threads(self) -> int | None:
        """Threads in the request."""
        return self.spec.get("threads")

    def estimate(self) -> Estimate:
        """Return the expected course of the run, by the phases of each recipe."""
        phases = [
            tuple(p for p in PHASES if p not in ("quantize", "speed") or task != BASELINE)
            for task in self.tasks
        ]
        return Estimate(phases, expected_seconds(self.spec))

    def phase(self, task: str, event: dict) -> str:
        """Record a recipe's phase; return its description."""
        detail = event.get("detail")
        words = PHASES[event["phase"]] + (f", {detail}" if detail else "")
        if task != BASELINE:
            self.status["recipes"][int(task)] |= {"state": "running", "phase": words}
        return f"{self._name(task)}: {words}"

    def ended(self, task: str, outcome: Outcome) -> bool:
        """Store the recipe's row, or a failed row if there is none; return False if the baseline's input is
        invalid."""
        row = None if task == BASELINE else self.folder.rows().get(int(task))
        error, kind = outcome.error, outcome.error_kind
        if error is None and outcome.code != 0 and row is None:
            error, kind = outcome.why("The recipe's process", PHASES[outcome.phase])
        if error is None and task != BASELINE and row is None:
            error, kind = (
                "The recipe's process ended without a result; the run's log may say why.",
                "RunError",
            )
        if error is not None and task != BASELINE:
            row = self._leave(int(task), "failed", error, kind, phase=outcome.phase, started_at=outcome.began)
        if row is not None:
            keep_row(self.folder, int(task), row)
            self.status["recipes"][int(task)] |= {"state": row["status"], "phase": ""}
        _log.info("%s: %s", self._name(task), error or "finished")
        if error and task == self.tasks[0] and (task == BASELINE or BASELINE not in self.tasks):
            self._baseline_failed(task, error, kind)
            return kind != "InputError"
        return True

    def finish(self) -> tuple[str, str | None, str | None]:
        """Return the final state: done if any recipe succeeded."""
        rows = self.folder.rows().values()
        good = sum(row["status"] == "ok" for row in rows)
        error, kind = self.status.get("error"), self.status.get("error_kind")
        if not good and not error:
            first = next(iter(rows))
            error, kind = first["error"], first["record"].get("error_kind")
        return "done" if good else "failed", error, kind

    def stopped(self, cancelled: bool) -> None:
        """Mark unfinished recipes as cancelled, if the run was cancelled."""
        finished = self.folder.rows()
        for position in range(len(self.names) if cancelled else 0):
            if position not in finished:
                self._leave(position, "cancelled", "Cancelled before it finished.", None)

    def _name(self, task: str) -> str:
        return BASELINE if task == BASELINE else self.names[int(task)]

    def _baseline_failed(self, task: str, error: str, kind: str | None) -> None:
        """Report the failure. The other recipes run without a baseline, unless the input itself is
        invalid."""
        if kind != "InputError":
            self.status["error"] = f"The baseline failed, so KL and top-1 agreement are missing: {error}"
            self.status["error_kind"] = kind
            return
        self.status |= {"error": error, "error_kind": kind}
        for other in self.tasks:
            if other not in (BASELINE, task):
                reason = f"Not started, because the baseline failed: {error}"
                self._leave(int(other), "failed", reason, kind, phase="start")
                self.status["recipes"][int(other)] |= {"state": "failed", "phase": ""}

    def _leave(
        self,
        position: int,
        state: str,
        error: str,
        kind: str | None,
        *,
        phase: str | None = None,
        started_at: float | None = None,
    ) -> ResultRow:
        """Write the row of a recipe without a result."""
        row = unfinished_row(
            self.spec,
            position,
            state,
            error,
            kind,
            phase=phase,
            started_at=started_at,
            run_id=self.folder.run_id,
        )
        self.folder.write_row(position, row)
        return row


def _is_saved(record: RunRecord) -> bool:
    return "folder" in ((record.get("recipe") or {}).get("weights") or {})


def expected_seconds(spec: dict) -> dict[str, float]:
    """Return the seconds per phase: measured in the newest rows of the same model and scaled to this request,
    or else a guess."""
    expected = guess(spec)
    try:
        known = Store().latest(spec["model"], limit=20)
    except (QcoreError, OSError, sqlite3.Error, json.JSONDecodeError) as error:
        _log.warning("No earlier times: %s", error)  # a missing estimate must not fail the run
        return expected
    measured: dict[str, list[float]] = {}
    for row in known:
        record = row.get("record") or {}
        before = guess(record["spec"]) if record.get("spec") else {}
        for phase, seconds in (record.get("phase_seconds") or {}).items():
            if before.get(phase):
                measured.setdefault(phase, []).append(seconds * expected[phase] / before[phase])
    return expected | {phase: sum(values) / len(values) for phase, values in measured.items()}


def _order(spec: dict) -> list[int | None]:
    """Return positions in running order: the baseline first, since the others are compared with it; None is a
    baseline without a row, which every run with a quantized key-value cache has."""
    names = [recipe["name"] for recipe in spec["recipes"]]
    if "fp32" not in names or spec.get("kv", NONE) != NONE:
        return [None, *range(len(names))]
    first = names.index("fp32")
    return [first, *(position for position in range(len(names)) if position != first)]
