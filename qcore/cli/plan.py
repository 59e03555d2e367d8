"""`python -m qcore plan`: the plan as a table on a terminal."""

from typing import TYPE_CHECKING, Annotated

import typer

from qcore.cli import options
from qcore.cli.output import check_output, write_output
from qcore.cli.progress import Show

if TYPE_CHECKING:
    from qcore.planning.types import PlanRow

Context = Annotated[
    int | None, typer.Option(help="Tokens of KV cache per user (default: 2048, or the model's positions)")
]
Users = Annotated[int, typer.Option(help="Number of concurrent sequences")]
Memory = Annotated[
    str | None,
    typer.Option(
        help="Memory to run in, such as 16GB (default: the free memory of the device)", metavar="SIZE"
    ),
]
Probe = Annotated[
    bool, typer.Option("--probe", help="Time the model's shapes on this machine, some seconds per recipe")
]
Least = Annotated[
    float | None,
    typer.Option("--min-tokens-per-second", help="Least decode speed, tokens per second", show_default=False),
]
MostKl = Annotated[
    float | None,
    typer.Option("--max-kl", help="Most KL divergence from the baseline, nats per token", show_default=False),
]
MostRatio = Annotated[
    float | None,
    typer.Option(
        "--max-perplexity-ratio",
        help="Most perplexity over the baseline's; 1.05 is 5 % more",
        show_default=False,
    ),
]
Kv = Annotated[
    str | None, typer.Option(help="Comma-separated formats of the KV cache (default: all)", metavar="A,B")
]


def plan(
    model: options.Model,
    recipes: options.RecipeNames = None,
    context: Context = None,
    users: Users = 1,
    kv: Kv = None,
    memory: Memory = None,
    device: options.Device = "cpu",
    probe: Probe = False,
    min_tokens_per_second: Least = None,
    max_kl: MostKl = None,
    max_perplexity_ratio: MostRatio = None,
    json: options.Json = None,
    revision: options.Revision = None,
) -> int:
    """Predict memory, speed and quality of MODEL under each recipe and recommend one, before anything is
    downloaded or quantized."""
    from qcore.verbs import plan as verb

    check_output(json)
    with Show() as show:
        found = verb.run(
            model,
            options.split(recipes),
            context=context,
            users=users,
            kv=options.split(kv) or None,
            memory=memory,
            device=device,
            probe=probe,
            min_tokens_per_second=min_tokens_per_second,
            max_kl=max_kl,
            max_perplexity_ratio=max_perplexity_ratio,
            revision=revision,
            progress=show,
        )
    return write_output(found.to_dict(), json, text(found))


def text(found) -> str:
    """Return the plan as text with a table."""
    from qcore.results.report import human_bytes, human_number

    lines = [
        f"{found.model}: {found.parameters:,} weights, {human_bytes(found.checkpoint_bytes)} "
        f"stored as {', '.join(found.dtypes)}. "
        f"{found.description}",
        f"KV cache: {found.cache_layout}; "
        f"{found.context:,} tokens for {found.users} user{'s' if found.users > 1 else ''}. "
        f"Memory: {human_bytes(found.memory)} {found.memory_is}.",
        "",
    ]
    table = [
        ("recipe", "KV", "stored", "bits", "cache", "running", "fits", "decode", "prefill", "KL", "from")
    ]
    for row in _telling_rows(found):
        speeds = [_or_dash(value, "tok/s") for value in (row.decode_tok_s, row.prefill_tok_s)]
        kl = "–" if row.kl is None else human_number(row.kl)
        bits = "–" if row.bits_per_weight is None else human_number(row.bits_per_weight)
        table.append(
            (
                row.recipe,
                row.kv,
                human_bytes(row.stored_bytes),
                bits,
                human_bytes(row.kv_bytes),
                human_bytes(row.run_bytes),
                "yes" if row.fits else "no",
                *speeds,
                kl,
                row.sources.get("quality", ""),
            )
        )
    widths = [max(len(line[i]) for line in table) for i in range(len(table[0]))]
    lines += [
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()
        for line in table
    ]
    lines += ["", f"{_bandwidth(found)}{found.recommendation.sentence}", *found.warnings]
    lines += _cards(found)
    return "\n".join(lines)


def _bandwidth(found) -> str:
    if found.probed is None:
        return "Speeds are unknown until they are timed: add --probe. "
    disturbed = ", ".join(found.probed["disturbed"])
    mark = f", {disturbed} beside other work: repeat it on a quiet machine" if disturbed else ""
    return f"Speeds probed with {found.probed['threads']} threads{mark}. "


def _telling_rows(found) -> list:
    """Return one row per recipe: with the first format of the cache, or the first that fits."""
    chosen: dict[str, PlanRow] = {}
    for row in found.rows:
        if row.recipe not in chosen or (row.fits and not chosen[row.recipe].fits):
            chosen[row.recipe] = row
    return list(chosen.values())


def _cards(found) -> list[str]:
    """Return the smallest known accelerator per recipe, grouped by accelerator."""
    smallest: dict[str, list[str]] = {}
    for recipe in dict.fromkeys(row.recipe for row in found.rows):
        name = next(
            (each["name"] for each in found.machines if recipe in each["fits"]),
            "none of the known accelerators",
        )
        smallest.setdefault(name, []).append(recipe)
    return [
        f"Smallest known accelerator for {', '.join(recipes)}: {name}." for name, recipes in smallest.items()
    ]


def _or_dash(value: float | None, unit: str) -> str:
    from qcore.results.report import human_number

    return "–" if value is None else f"{human_number(value)} {unit}"
