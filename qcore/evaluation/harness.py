"""lm-evaluation-harness: its tasks and metrics on a loaded model object, quantized or not.

The library is optional. Most of its tasks fetch their data from the Hugging Face hub; a folder of your own
task files works offline. (L. Gao et al., "A framework for few-shot language model evaluation".)
"""

from __future__ import annotations

from collections.abc import Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qcore.base.errors import InputError, RunError, UnavailableError
from qcore.base.files import expanded

if TYPE_CHECKING:
    from lm_eval.tasks import TaskManager
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

TESTED = "0.4.13"
BOOTSTRAP = 1000  # draws for standard errors that have no formula
INSTALL = f"python -m pip install lm_eval=={TESTED}"


def check_tasks(tasks: Sequence[str], folder: str | Path | None = None) -> TaskManager:
    """Return the library's task manager, which knows all `tasks`; `folder` holds further task files.

    Raise `UnavailableError` with the install command if the library is missing, `InputError` for an unknown
    task or a missing folder.
    """
    if not tasks:
        raise InputError("No lm-eval task was given; try hellaswag, arc_easy or piqa.")
    if folder is not None and not expanded(folder).is_dir():
        raise InputError(f"There is no folder {str(folder)!r} with task files for lm-eval.")
    try:
        from lm_eval.tasks import TaskManager
    except ImportError as error:
        raise UnavailableError(
            f"lm-eval is not installed here ({error}). Install it with: {INSTALL}"
        ) from error
    manager = TaskManager(include_path=None if folder is None else str(expanded(folder)))
    for task in tasks:
        if task not in manager.all_tasks:
            near = get_close_matches(task, manager.all_tasks, n=3, cutoff=0.6)
            hint = f"Did you mean {' or '.join(near)}?" if near else "`lm_eval ls tasks` lists all tasks."
            raise InputError(f"Unknown lm-eval task {task!r}. {hint}")
    return manager


def run_tasks(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    tasks: Sequence[str],
    *,
    folder: str | Path | None = None,
    limit: int | None = None,
    batch: int = 8,
    seed: int = 0,
) -> dict[str, Any]:
    """Run lm-eval on `tasks` with `model` and `tokenizer`, on at most `limit` documents per task.

    Return {"lm_eval": its version, "limit", "tasks": {task: {"documents", "metrics": {name: {"value",
    "stderr"}}}}}; a metric keeps the library's name with its filter, "acc,none". Raises like `check_tasks`,
    and `RunError` with the library's own message if it fails.
    """
    manager = check_tasks(tasks, folder)
    from importlib.metadata import PackageNotFoundError, version

    from lm_eval import simple_evaluate
    from lm_eval.models.huggingface import HFLM

    try:
        wrapped = HFLM(pretrained=model, tokenizer=tokenizer, backend="causal", batch_size=batch)
        found = simple_evaluate(
            model=wrapped,
            tasks=list(tasks),
            task_manager=manager,
            limit=limit,
            log_samples=False,
            bootstrap_iters=BOOTSTRAP,
            random_seed=seed,
            numpy_random_seed=seed,
            torch_random_seed=seed,
            fewshot_random_seed=seed,
        )
    except (
        Exception
    ) as error:  # the library, its tasks, the data sets and the hub raise exceptions of any type
        first = str(error).strip().partition("\n")[0][:300]
        raise RunError(f"lm-eval could not do {', '.join(tasks)}: {type(error).__name__}: {first}") from error
    try:
        installed = version("lm_eval")
    except PackageNotFoundError:
        installed = "unknown"
    counts = found.get("n-samples") or {}
    results = {
        name: {"documents": (counts.get(name) or {}).get("effective"), "metrics": _metrics(values)}
        for name, values in found["results"].items()
    }
    return {"lm_eval": installed, "limit": limit, "tasks": results}


def _metrics(values: dict[str, Any]) -> dict[str, Any]:
    """Turn {"acc,none": 0.5, "acc_stderr,none": 0.1} into {"acc,none": {"value": 0.5, "stderr": 0.1}}."""
    metrics = {}
    for key, value in values.items():
        name, comma, rest = key.partition(",")
        if comma and isinstance(value, int | float) and not name.endswith("_stderr"):
            error = values.get(f"{name}_stderr,{rest}")
            metrics[key] = {"value": value, "stderr": error if isinstance(error, int | float) else None}
    return metrics
