"""One model, one check of what it can do, in this process: `eval --choices` and `eval --lm-eval`."""

import time
from pathlib import Path

from qcore.base.errors import InputError
from qcore.base.progress import Progress
from qcore.base.turn import heavy_turn
from qcore.verbs.single import load_once, options, recipe_of, stored_bytes, times, waiting

WINDOW = 512  # tokens of activations that the check of memory counts with
MOST_DOCUMENTS = 1_000_000


def ask_once(model: str, choices: str, *, revision: str | None, device: str, progress: Progress) -> dict:
    """The answers of `model` to the multiple-choice questions in the file `choices` ("default": the packaged
    ones)."""
    from qcore.evaluation.choices import ask, summary
    from qcore.evaluation.questions import load_questions
    from qcore.verbs.pipeline import describe

    asked = load_questions(choices)
    with heavy_turn(waiting(progress)):
        began = time.time()
        loaded = load_once(model, revision, device, WINDOW, progress)
        answers = ask(loaded.model, loaded.tokenizer, asked.questions, progress=progress)
    about = times(began, ["eval", model, *options(choices=choices, revision=revision)])
    record = (
        describe(loaded)
        | about
        | {"choices": answers.to_dict(), "device": device, "recipe": recipe_of(loaded)}
    )
    return {"model": model, **summary(asked, answers), "stored_bytes": stored_bytes(loaded), "record": record}


def harness_once(
    model: str,
    tasks: list[str],
    *,
    folder: str | None,
    limit: int | None,
    revision: str | None,
    device: str,
    progress: Progress,
) -> dict:
    """What lm-eval measures on `tasks` with `model`, at most `limit` documents of each; `folder` holds more
    task files."""
    from qcore.evaluation import harness
    from qcore.verbs.pipeline import describe

    if limit is not None and not 1 <= limit <= MOST_DOCUMENTS:
        raise InputError(
            f"lm-eval-limit is {limit}, but it must be a whole number from 1 to {MOST_DOCUMENTS:,}."
        )
    progress(0, 0, "looking for the tasks")
    harness.check_tasks(tasks, folder)
    with heavy_turn(waiting(progress)):
        began = time.time()
        loaded = load_once(model, revision, device, WINDOW, progress)
        progress(0, 0, f"lm-eval does {', '.join(tasks)}")
        found = harness.run_tasks(loaded.model, loaded.tokenizer, tasks, folder=folder, limit=limit)
    place = None if folder is None else str(Path(folder).expanduser())
    about = times(
        began,
        [
            "eval",
            model,
            *options(lm_eval=",".join(tasks), lm_eval_folder=place, lm_eval_limit=limit, revision=revision),
        ],
    )
    record = describe(loaded) | about | {"device": device, "recipe": recipe_of(loaded)}
    return {"model": model, **found, "stored_bytes": stored_bytes(loaded), "record": record}
