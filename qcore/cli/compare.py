"""`qcore compare`: several recipes on one model or several, each in a process of its own."""

from dataclasses import replace
from typing import Annotated

import typer

from qcore.base.executor import LOCAL
from qcore.cli import options
from qcore.cli.output import check_output, say, write_output
from qcore.cli.runs import follow
from qcore.formats.kv import NONE
from qcore.recipes.spec import RunSpec, beside

RECIPES_HELP = "Comma-separated names; `recipes` lists them. saved:FOLDER is a model made from MODEL"


def compare(
    model: options.Model,
    recipes: Annotated[str, typer.Option(help=RECIPES_HELP, metavar="A,B")] = "fp32,int8,int4-g64",
    text: options.Text = None,
    tokens: Annotated[int, typer.Option(help="Number of tokens to score")] = RunSpec.tokens,
    window: options.Window = RunSpec.window,
    stride: options.Stride = None,
    files: Annotated[
        str | None,
        typer.Option(
            help="Models that other projects quantized from MODEL, to measure beside it: GGUF files (also "
            "*.gguf), folders, hub ids",
            metavar="A,B",
        ),
    ] = None,
    json: options.Json = None,
    revision: options.Revision = None,
    skip: options.Skip = None,
    prompt_tokens: options.PromptTokens = RunSpec.prompt_tokens,
    new_tokens: options.NewTokens = RunSpec.new_tokens,
    repeats: options.Repeats = RunSpec.repeats,
    generate: Annotated[
        bool, typer.Option("--generate/--no-generate", help="Also continue the evaluation prompts")
    ] = True,
    prompts: Annotated[
        str | None,
        typer.Option(help="Your own prompts: one per line, JSON lines, a JSON list, CSV", metavar="FILE"),
    ] = None,
    chat: Annotated[
        bool, typer.Option("--chat/--no-chat", help="Send prompts as messages in the model's chat template")
    ] = True,
    generate_tokens: Annotated[int, typer.Option(help="New tokens per prompt")] = RunSpec.generate_tokens,
    seed: options.Seed = 0,
    threads: options.Threads = None,
    device: options.Device = "cpu",
    calibration: options.Calibration = None,
    calibration_tokens: options.CalibrationTokens = RunSpec.calibration_tokens,
    calibration_minutes: options.CalibrationMinutes = None,
    imatrix: options.Imatrix = None,
    margin: Annotated[
        float,
        typer.Option(help="A perplexity within this share of the baseline's counts as equal; 0.01 is 1 %"),
    ] = RunSpec.margin,
    choices: options.Choices = None,
    kv: options.Kv = NONE,
    also: Annotated[
        list[str] | None,
        typer.Option(
            help="Another model to measure the same recipes on (may be given again)", metavar="MODEL"
        ),
    ] = None,
    engine: options.EngineName = LOCAL,
    address: options.Address = None,
) -> int:
    """Measure MODEL under several recipes: size, speed, memory, perplexity, and distance from the fp32
    baseline.

    Each recipe runs in a process of its own; one that fails becomes a row with its error, and the others
    still run. Ctrl-C cancels. With --engine ray recipes and models are spread over the machines of a cluster,
    which share the cache folder; the rows are the same.
    """
    from qcore.base.executor import Executor
    from qcore.jobs import jobs
    from qcore.verbs.checks import check_run

    check_output(json)
    where = Executor(engine, address)
    where.check()
    first = RunSpec(
        model=model,
        recipes=beside(options.several(recipes, skip, saved=True), files or ()),
        revision=revision,
        text=text,
        tokens=tokens,
        window=window,
        stride=stride,
        prompt_tokens=prompt_tokens,
        new_tokens=new_tokens,
        repeats=repeats,
        generate=generate,
        prompts=prompts,
        chat=chat,
        generate_tokens=generate_tokens,
        seed=seed,
        threads=threads,
        device=device,
        calibration=calibration,
        calibration_tokens=calibration_tokens,
        calibration_minutes=calibration_minutes,
        imatrix=imatrix,
        margin=margin,
        choices=choices,
        kv=kv,
    )
    checked = [check_run(spec) for spec in (first, *(replace(first, model=other) for other in also or ()))]
    for _, checkpoint in checked:
        if checkpoint is not None:
            say(checkpoint.description)
    return _follow_all([jobs.submit(spec, where) for spec, _ in checked], json)


def _follow_all(run_ids: list[str], json: str | None) -> int:
    """Follow the runs to their end, one after another, write all rows, and return the worst exit status."""
    from qcore.jobs import jobs

    if len(run_ids) == 1:
        return follow(run_ids[0], json)
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
