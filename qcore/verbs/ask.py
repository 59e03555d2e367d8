"""`eval` with questions or lm-eval tasks: measure what one model can do, in this process."""

from __future__ import annotations

import time

from qcore.base.errors import InputError
from qcore.base.files import expanded
from qcore.base.progress import Progress
from qcore.base.turn import heavy_turn
from qcore.evaluation import harness
from qcore.evaluation.choices import ask, summary
from qcore.evaluation.questions import load_questions
from qcore.verbs import record
from qcore.verbs.checks import check_model
from qcore.verbs.prepare import load

WINDOW = 512  # tokens of activations that the memory check counts with
MOST_DOCUMENTS = 1_000_000


def run(
    model: str, choices: str, *, revision: str | None = None, device: str = "cpu", progress: Progress
) -> dict:
    """Return the answers of `model` to the multiple-choice questions in the file `choices` ("default": the
    packaged ones), with the record."""
    question_set = load_questions(choices)
    checkpoint = check_model(model, revision, device=device, progress=progress)
    with heavy_turn(progress):
        began = time.time()
        loaded = load(checkpoint, device=device, tokens=WINDOW, window=WINDOW, progress=progress)
        answers = ask(loaded.model, loaded.tokenizer, question_set.questions, progress=progress)
    words = record.options(choices=choices, revision=revision, device=device)
    about = record.describe(loaded) | record.times(began, ["eval", model, *words])
    about |= {"choices": answers.to_dict(), "device": device, "recipe": record.recipe_of(loaded)}
    size = record.stored_bytes(loaded)
    return {"model": model, **summary(question_set, answers), "stored_bytes": size, "record": about}


def run_harness(
    model: str,
    tasks: list[str],
    *,
    folder: str | None = None,
    limit: int | None = None,
    revision: str | None = None,
    device: str = "cpu",
    progress: Progress,
) -> dict:
    """Return the figures that lm-eval measures on `tasks` with `model`, on at most `limit` documents of each;
    `folder` holds more task files."""
    if limit is not None and not 1 <= limit <= MOST_DOCUMENTS:
        raise InputError(
            f"lm-eval-limit is {limit}, but it must be a whole number from 1 to {MOST_DOCUMENTS:,}."
        )
    progress(0, 0, "looking for the tasks")
    harness.check_tasks(tasks, folder)
    checkpoint = check_model(model, revision, device=device, progress=progress)
    with heavy_turn(progress):
        began = time.time()
        loaded = load(checkpoint, device=device, tokens=WINDOW, window=WINDOW, progress=progress)
        progress(0, 0, f"lm-eval does {', '.join(tasks)}")
        found = harness.run_tasks(loaded.model, loaded.tokenizer, tasks, folder=folder, limit=limit)
    place = None if folder is None else str(expanded(folder))
    words = record.options(
        lm_eval=",".join(tasks), lm_eval_folder=place, lm_eval_limit=limit, revision=revision, device=device
    )
    about = record.describe(loaded) | record.times(began, ["eval", model, *words])
    about |= {"device": device, "recipe": record.recipe_of(loaded)}
    return {"model": model, **found, "stored_bytes": record.stored_bytes(loaded), "record": about}
