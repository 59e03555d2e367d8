"""`qcore profile`: the time of a model's steps by phase."""

from pathlib import Path
from typing import Annotated

import typer

from qcore.cli import options
from qcore.cli.output import check_output, write_output
from qcore.cli.progress import Show
from qcore.recipes.spec import RunSpec

PHASES = {
    "linears_s": "linear layers",
    "attention_s": "attention over the cache",
    "head_s": "output head",
    "rest_s": "rest of the step",
}


def profile(
    model: options.Model,
    recipe: Annotated[
        str | None,
        typer.Option(
            help="Quantize MODEL with this recipe first (default: MODEL as it is)", metavar="RECIPE"
        ),
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="Trace file (default: named after model and recipe)", metavar="FILE")
    ] = None,
    prompt_tokens: options.PromptTokens = RunSpec.prompt_tokens,
    new_tokens: options.NewTokens = RunSpec.new_tokens,
    repeats: options.Repeats = RunSpec.repeats,
    json: options.Json = None,
    threads: options.Threads = None,
    revision: options.Revision = None,
    device: options.Device = "cpu",
) -> int:
    """Profile MODEL: a trace file for chrome://tracing, and the phases of one decoding step.

    A native step is one call without timers, so each of its phases is measured separately.
    """
    from qcore.verbs import profile as verb
    from qcore.verbs.record import safe_name

    check_output(json)
    chosen = options.one_recipe(recipe)
    name = safe_name(model, recipe or "as-it-is")
    with Show() as show:
        result = verb.run(
            model,
            chosen,
            out if out is not None else Path(f"{name}.trace.json"),
            revision=revision,
            prompt_tokens=prompt_tokens,
            new_tokens=new_tokens,
            repeats=repeats,
            threads=threads,
            device=device,
            progress=show,
        )
    return write_output(result, json, text(result))


def text(result: dict) -> str:
    """Return a table of the phases and how they were measured."""
    from qcore.results.report import beside_other_work

    step, mark = result["step_s"], beside_other_work(result["others_share"])
    lines = [
        f"one decoding step of {result['recipe']}, about {result['context']:.0f} tokens in the cache: "
        f"{1000 * step:.2f} ms",
        f"reading the prompt: {1000 * result['prefill_s']:.2f} ms",
        "",
    ]
    for name, words in PHASES.items():
        seconds = result[name]
        lines.append(f"{words:26}{1000 * seconds:9.2f} ms{100 * seconds / step:6.0f} %")
    lines += [
        "",
        f"{result['linear_layers']} linear layers and the head were timed in isolation, called "
        "from Python. Attention is the time of the step minus that of a step with an almost empty cache "
        f"({1000 * result['short_step_s']:.2f} ms).",
        *result["record"]["execution"],
        *([mark] if mark else []),
        f"Trace: {result['trace']}",
    ]
    return "\n".join(lines)
