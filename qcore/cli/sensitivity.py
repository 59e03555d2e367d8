"""`python -m qcore sensitivity MODEL`: the sensitivity of each layer in each format, predicted and
measured."""

from typing import Annotated

import typer

from qcore.base.errors import RunError
from qcore.cli import options
from qcore.cli.output import check_output, write_output
from qcore.cli.progress import Show
from qcore.cli.runs import ended_badly, watch

Formats = Annotated[str, typer.Option(help="Comma-separated formats to try on each layer", metavar="A,B")]
Method = Annotated[str, typer.Option(help="Method that rounds the weights: rtn, hqq, awq, gptq or signround")]
Text = Annotated[
    str | None, typer.Option(help="UTF-8 calibration text (default: the packaged text)", metavar="FILE")
]
Tokens = Annotated[int, typer.Option(help="Number of tokens read for the prediction")]
Measure = Annotated[
    int,
    typer.Option(
        help="Also measure the KL divergence over this many tokens (takes minutes to hours)", metavar="TOKENS"
    ),
]
Budget = Annotated[
    list[str] | None,
    typer.Option(help="Show the formats chosen for a budget such as 4.25bpw or 0.1kl (repeatable)"),
]


def sensitivity(
    model: options.Model,
    formats: Formats = "int3-g64,int3-g32,int4-g128,int4-g64,int4-g32,int8",
    method: Method = "rtn",
    text: Text = None,
    tokens: Tokens = 2048,
    measure: Measure = 0,
    budget: Budget = None,
    json: options.Json = None,
    revision: options.Revision = None,
    device: options.Device = "cpu",
) -> int:
    """Rank the layers of MODEL by sensitivity in each format: the loss predicted from gradients and, if
    requested, the measured KL divergence.

    The table is stored in the cache folder, where recipes such as auto-4.25bpw and the dashboard find it. An
    interrupted measurement resumes after the last measured block.
    """
    from qcore.cli.outcomes import sensitivities
    from qcore.jobs import jobs
    from qcore.jobs.kind_sensitivity import SensitivityRequest
    from qcore.quantization.sensitivity.store import load_table

    check_output(json)
    request = SensitivityRequest(
        model=model,
        revision=revision,
        formats=tuple(options.split(formats)),
        method=method,
        text=text,
        tokens=tokens,
        measure_tokens=measure,
        device=device,
    )
    budgets = [_budget(each, request.candidates) for each in budget or ()]
    with Show() as show:
        request.check(show)
    run = watch(jobs.submit(request))
    if run.state != "done":
        return ended_badly(run)
    key = (jobs.outcome(run.run_id) or {}).get("key", "")
    table = load_table(key)
    if table is None:
        raise RunError("The table of sensitivities is no longer in the cache folder. Compute it again.")
    lines = [sensitivities(table), *(_choice(each, table) for each in budgets)]
    return write_output(
        {"key": key, **table.to_dict(), "correlations": table.correlations()}, json, "\n".join(lines)
    )


def _budget(name: str, candidates):
    from qcore.base.errors import InputError
    from qcore.formats import budget

    found = budget.read(name)
    if found is None or found[1] == "mb":
        raise InputError(f"--budget is {name!r}, but it must have a form such as 4.25bpw or 0.1kl.")
    try:
        return budget.Budget(*found, candidates)
    except ValueError as error:
        raise InputError(f"--budget {name} cannot be used: {error}.") from error


def _choice(budget, table) -> str:
    from collections import Counter

    from qcore.quantization.sensitivity.within import solve_within
    from qcore.results.report import human_number

    weights = sum(layer.weights for layer in table.layers)
    found = solve_within(budget, table.layers, 0, weights, 0)
    nbytes = sum(layer.nbytes[k] for layer, k in zip(table.layers, found.options, strict=True))
    loss = sum(layer.loss[k] for layer, k in zip(table.layers, found.options, strict=True))
    counts = Counter(table.labels[k] for k in found.options)
    chosen = ", ".join(f"{counts[label]} {label}" for label in table.labels if counts[label])
    bits = human_number(8 * nbytes / weights, 4)
    predicted = f"predicted loss {human_number(loss)} nats per token"
    return f"{budget.label}: {bits} bits per weight, {predicted}: {chosen}"
