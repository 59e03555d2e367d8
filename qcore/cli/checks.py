"""`python -m qcore eval --choices …` and `--lm-eval …`: what a model can do, instead of how well it predicts
a text."""

from qcore.base.errors import InputError
from qcore.cli.output import write_output
from qcore.cli.progress import Show


def check_tasks(
    model: str,
    choices: str | None,
    tasks: str | None,
    folder: str | None,
    limit: int | None,
    *,
    revision: str | None,
    device: str,
    text_options: bool,
    json: str | None,
) -> int:
    """Ask the questions or hand the model to lm-eval, and print what came out. `text_options`: was something
    said about a text?"""
    from qcore.evaluation.phrases import answers_phrase
    from qcore.results import report
    from qcore.verbs.tasks import ask_once, harness_once

    if choices is not None and tasks is not None:
        raise InputError("--choices and --lm-eval are two checks; ask for one at a time.")
    if text_options:
        raise InputError(
            "--choices and --lm-eval take the place of a text; leave out --text, --tokens, --window and --stride."
        )
    with Show() as show:
        if choices is not None:
            result = ask_once(model, choices, revision=revision, device=device, progress=show)
            return write_output(result, json, answers_phrase(result))
        names = [name.strip() for name in tasks.split(",") if name.strip()]
        result = harness_once(
            model, names, folder=folder, limit=limit, revision=revision, device=device, progress=show
        )
    lines = []
    for task, found in result["tasks"].items():
        for name, metric in found["metrics"].items():
            error = "" if metric["stderr"] is None else f" ± {report.human_number(metric['stderr'])}"
            lines.append(
                f"{report.visible(task)}  {report.visible(name)}  {report.human_number(metric['value'], 4)}{error}"
            )
    return write_output(result, json, "\n".join(lines) or "lm-eval gave no figures.")
