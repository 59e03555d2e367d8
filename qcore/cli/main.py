"""`python -m qcore …`: the verbs of the engine for a terminal. Anything heavy is imported when a command
needs it.

Exit status: 0 if everything succeeded, 1 if something failed while it ran, 2 if the input cannot be used (one
plain sentence on standard error), 130 after Ctrl-C.
"""

import sys
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer
from typer.exceptions import TyperException

from qcore import __version__
from qcore.base.errors import InputError, QcoreError, UnavailableError
from qcore.base.executor import LOCAL
from qcore.base.quiet import hush
from qcore.cli.checks import check_tasks
from qcore.cli.export import export
from qcore.cli.making import distill, prune, qat
from qcore.cli.output import check_output, say, write_output
from qcore.cli.plan import plan
from qcore.cli.progress import Show
from qcore.cli.runs import runs
from qcore.cli.sensitivity import sensitivity
from qcore.cli.spread import Address, Also, EngineName, follow_all
from qcore.cli.use import Kv, NewTokens, PromptTokens, Repeats, Revision, Seed, Threads, bench, generate
from qcore.formats.kv import NONE

app = typer.Typer(
    epilog="Start with: python -m qcore compare smollm2-135m --recipes fp32,int8,int4-g64",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110},
)
PROGRAM = "qcore" if Path(sys.argv[0]).name == "qcore" else "python -m qcore"


def _print_version(wanted: bool) -> None:
    if wanted:
        print(f"qcore {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version")
    ] = False,
) -> None:
    """Quantize a language model several ways and measure what each costs in memory, speed and quality."""


app.add_typer(runs, name="runs")
app.command()(plan)
app.command()(sensitivity)
app.command()(qat)
app.command()(prune)
app.command()(distill)
app.command()(export)
app.command()(bench)
app.command()(generate)

RECIPES_HELP = (
    "Names with commas between; `recipes` lists them, and saved:FOLDER is what was made from MODEL before"
)
Model = Annotated[
    str,
    typer.Argument(
        metavar="MODEL", help="smollm2-135m, a hub id, a folder, or a GGUF file", show_default=False
    ),
]
Text = Annotated[
    str | None,
    typer.Option(help="UTF-8 text file, or wikitext-2; without it, the packaged text", metavar="FILE"),
]
Window = Annotated[int, typer.Option(help="Tokens the model reads at a time")]
Stride = Annotated[int | None, typer.Option(help="Tokens the window moves on by; without it, the window")]
Json = Annotated[
    str | None,
    typer.Option("--json", help="Write the result there as JSON; - is standard output", metavar="OUT"),
]
Device = Annotated[str, typer.Option(help="cpu, or an accelerator such as cuda")]
Skip = Annotated[
    list[str] | None,
    typer.Option(
        help="Leave these modules as they are: layers.0, *.down_proj, … (may be given again)",
        metavar="PATTERN",
    ),
]
Calibration = Annotated[
    str | None,
    typer.Option(help="Text that methods such as gptq read; without it, a packaged one", metavar="FILE"),
]
CalibrationTokens = Annotated[int, typer.Option(help="Tokens of it that are read")]
Choices = Annotated[
    str | None,
    typer.Option(
        help="Ask multiple-choice questions: a file, or default for the packaged ones", metavar="FILE"
    ),
]
CalibrationMinutes = Annotated[
    float | None,
    typer.Option(
        help="Time that learned rounding may take; without it, a fixed number of steps", metavar="MINUTES"
    ),
]


@app.command()
def compare(
    model: Model,
    recipes: Annotated[str, typer.Option(help=RECIPES_HELP, metavar="A,B")] = "fp32,int8,int4-g64",
    text: Text = None,
    tokens: Annotated[int, typer.Option(help="Tokens of the text that are scored")] = 4096,
    window: Window = 512,
    stride: Stride = None,
    json: Json = None,
    revision: Revision = None,
    skip: Skip = None,
    prompt_tokens: PromptTokens = 128,
    new_tokens: NewTokens = 32,
    repeats: Repeats = 3,
    generate: Annotated[
        bool, typer.Option("--generate/--no-generate", help="Continue the evaluation prompts, too")
    ] = True,
    prompts: Annotated[
        str | None, typer.Option(help="Your own prompts: one a line, or JSON lines", metavar="FILE")
    ] = None,
    generate_tokens: Annotated[int, typer.Option(help="Tokens written for each of them")] = 32,
    seed: Seed = 0,
    threads: Threads = None,
    device: Device = "cpu",
    calibration: Calibration = None,
    calibration_tokens: CalibrationTokens = 16384,
    calibration_minutes: CalibrationMinutes = None,
    margin: Annotated[
        float,
        typer.Option(help="Perplexity within this share of the baseline's counts as equal; 0.01 is 1 %"),
    ] = 0.01,
    choices: Choices = None,
    kv: Kv = NONE,
    also: Also = None,
    engine: EngineName = LOCAL,
    address: Address = None,
) -> int:
    """Measure MODEL under several recipes: size, speed, memory, perplexity, and distance from the fp32
    baseline.

    Each recipe runs in a process of its own; one that fails becomes a row with its error, and the others
    still run. Ctrl-C cancels. With --engine ray recipes and models are spread over the machines of a cluster,
    which share the cache folder; the rows are the same.
    """
    from qcore.base.executor import Engine
    from qcore.jobs import jobs
    from qcore.recipes.spec import RunSpec
    from qcore.verbs.checks import beside_original, check

    check_output(json)
    where = Engine(engine, address)
    where.check()
    spec = RunSpec(
        model,
        _recipes(recipes, skip, saved=True),
        revision,
        text,
        tokens,
        window,
        stride,
        prompt_tokens,
        new_tokens,
        repeats,
        generate,
        prompts,
        generate_tokens,
        seed,
        threads,
        device,
        calibration,
        calibration_tokens,
        calibration_minutes,
        margin,
        choices,
        kv,
    )
    specs = [beside_original(each) for each in (spec, *(replace(spec, model=other) for other in also or ()))]
    for description in [check(each).description for each in specs]:
        say(description)
    return follow_all([jobs.submit(each, where) for each in specs], json)


@app.command()
def quantize(
    model: Model,
    recipe: Annotated[
        str, typer.Option(help="One of qcore's own recipes; `recipes` lists them", show_default=False)
    ],
    out: Annotated[
        Path | None,
        typer.Option(help="Folder to save into; without it, named after model and recipe", metavar="DIR"),
    ] = None,
    skip: Skip = None,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace a model that qcore saved there")
    ] = False,
    revision: Revision = None,
    calibration: Calibration = None,
    calibration_tokens: CalibrationTokens = 16384,
    calibration_minutes: CalibrationMinutes = None,
    stream: Annotated[
        bool, typer.Option("--stream", help="One tensor at a time, for models larger than memory")
    ] = False,
    engine: EngineName = LOCAL,
    address: Address = None,
) -> int:
    """Quantize MODEL and save it as safetensors, in a folder that eval, bench and qcore.load take as a
    model."""
    from qcore.base.executor import Engine
    from qcore.results import report
    from qcore.verbs import single

    (chosen,), where = _recipes(_one(recipe), skip), Engine(engine, address)
    folder = out if out is not None else Path(single.safe_name(model, chosen.name))
    with Show() as show:
        result = single.quantize_to(
            model,
            chosen,
            folder,
            revision=revision,
            overwrite=overwrite,
            calibration=calibration,
            calibration_tokens=calibration_tokens,
            calibration_minutes=calibration_minutes,
            stream=stream,
            engine=where,
            progress=show,
        )
    size, share = report.human_bytes(result["stored_bytes"]), report.human_percent(result["coverage"])
    bits = report.human_number(result["bits_per_weight"])
    print(f"{chosen.name}: {size}, {bits} bits a weight on {share} of the weights. Saved in {folder}")
    return 0


@app.command("eval")
def evaluate(
    model: Model,
    text: Text = None,
    tokens: Annotated[
        int | None,
        typer.Option(help="Score only the first ones; without it, the whole text", show_default=False),
    ] = None,
    window: Window = 512,
    stride: Stride = None,
    choices: Choices = None,
    lm_eval: Annotated[
        str | None,
        typer.Option(
            "--lm-eval", help="Hand the model to lm-eval for these tasks, commas between", metavar="TASKS"
        ),
    ] = None,
    lm_eval_folder: Annotated[
        str | None, typer.Option(help="Folder with task files of your own for lm-eval", metavar="DIR")
    ] = None,
    lm_eval_limit: Annotated[int | None, typer.Option(help="At most so many documents of each task")] = None,
    stream: Annotated[
        bool, typer.Option("--stream", help="One block at a time, for models larger than memory")
    ] = False,
    recipes: Annotated[
        str | None, typer.Option(help="With --stream: score these, too, in the same pass", metavar="A,B")
    ] = None,
    json: Json = None,
    revision: Revision = None,
    device: Device = "cpu",
    kv: Kv = NONE,
) -> int:
    """Perplexity of MODEL (or of a folder that quantize wrote) on a text; or its answers to questions, or
    what lm-eval measures."""
    from qcore.results import report
    from qcore.verbs import single

    check_output(json)
    if stream or recipes is not None:
        others = (choices, lm_eval, kv) != (None, None, NONE) or device != "cpu"
        return _evaluate_streamed(
            model, stream, recipes, others, json, revision, text, tokens, window, stride
        )
    if choices is not None or lm_eval is not None:
        about_text = (text, tokens, window, stride, kv) != (None, None, 512, None, NONE)
        return check_tasks(
            model,
            choices,
            lm_eval,
            lm_eval_folder,
            lm_eval_limit,
            revision=revision,
            device=device,
            text_options=about_text,
            json=json,
        )
    with Show() as show:
        result = single.evaluate_once(
            model,
            revision=revision,
            text=text,
            tokens=tokens,
            window=window,
            stride=stride,
            device=device,
            progress=show,
            kv=kv,
        )
    perplexity, bits = (
        report.human_perplexity(result["perplexity"]),
        report.human_number(result["bits_per_byte"]),
    )
    conditions = f"{result['tokens_scored']:,} tokens, window {result['window']}, stride {result['stride']}"
    conditions += "" if kv == NONE else f", KV cache in {kv}"
    return write_output(result, json, f"perplexity {perplexity} ({conditions}); {bits} bits a byte")


def _evaluate_streamed(model, stream, recipes, others, json, revision, text, tokens, window, stride) -> int:
    from qcore.results import report
    from qcore.verbs.streamed import evaluate_streamed_once

    if not stream:
        raise InputError("--recipes belongs to --stream here; to measure recipes otherwise, use compare.")
    if others:
        raise InputError(
            "With --stream only a text can be scored, on the CPU. Leave out --choices, --lm-eval, --kv and --device."
        )
    chosen = _recipes(recipes, None) if recipes else ()
    with Show() as show:
        result = evaluate_streamed_once(
            model,
            chosen,
            revision=revision,
            text=text,
            tokens=tokens,
            window=window,
            stride=stride,
            progress=show,
        )
    lines = []
    for row in result["rows"]:
        distance = (
            f"; KL {report.human_number(row['divergence']['kl_mean'])} nats a token"
            if row["divergence"]
            else ""
        )
        lines.append(f"{row['recipe']}: perplexity {report.human_perplexity(row['perplexity'])}{distance}")
    first = result["rows"][0]
    lines.append(f"{first['tokens_scored']:,} tokens, window {first['window']}, stride {first['stride']}")
    return write_output(result, json, "\n".join(lines))


@app.command("models")
def list_models(
    prepare: Annotated[
        str | None, typer.Option(help="Fetch and convert this default model now", metavar="NAME")
    ] = None,
) -> int:
    """The default models, and whether they are ready here. Hub ids, folders and GGUF files work wherever
    MODEL stands, too."""
    from qcore import library
    from qcore.base.home import home
    from qcore.base.registry import unknown

    known = dict(library.defaults())
    if prepare is not None:
        if prepare not in known:
            raise unknown("default model", prepare, known)
        with Show() as show:
            library.prepare(prepare, show)
        say(f"{prepare} is ready.")
        return 0
    for name, description in known.items():
        ready = "ready" if (home() / "models" / name).is_dir() else "fetched when first used"
        print(f"{name}  ({ready})\n    {description}")
    return 0


@app.command("recipes")
def list_recipes() -> int:
    """Every recipe with what it is, and whether it can be used here. Group sizes are free: int4-g32,
    int4-g96, …"""
    from qcore import engines
    from qcore.recipes import Engine, describe, names, parse

    entries = [parse(name) for name in names()]
    width = max(len(recipe.name) for recipe in entries)
    for recipe in entries:
        reason = engines.available(recipe.weights.backend) if isinstance(recipe.weights, Engine) else None
        print(
            f"{recipe.name:{width}}  {describe(recipe)}"
            + (f"  [not available here: {reason}]" if reason else "")
        )
    return 0


def main(arguments: list[str] | None = None) -> int:
    """Run the command line and return its exit status."""
    hush()
    try:
        return app(args=arguments, prog_name=PROGRAM, standalone_mode=False) or 0
    except TyperException as error:
        return _fail(_sentence(error), 2)
    except (InputError, UnavailableError) as error:
        return _fail(str(error), 2)
    except QcoreError as error:
        return _fail(str(error), 1)
    except MemoryError:
        return _fail(
            "There was not enough memory. Close other programs, or take a smaller model or a shorter window.",
            1,
        )
    except (KeyboardInterrupt, typer.Abort):
        return _fail("Stopped.", 130)
    except BrokenPipeError:  # the reader of a pipe has seen enough
        sys.stdout = None
        return 0


def _recipes(names: str, skip: list[str] | None, *, saved: bool = False) -> tuple:
    """The recipes called `names`, with the skip patterns on those that quantize; with `saved`, saved models
    may stand among them. Raises `InputError` before anything starts."""
    from qcore.recipes import parse, parse_row

    parsed = [(parse_row if saved else parse)(name) for name in names.split(",") if name.strip()]
    return tuple(
        recipe.with_modules(skip=tuple(skip)) if skip and recipe.quantizes else recipe for recipe in parsed
    )


def _one(recipe: str) -> str:
    if "," in recipe or not recipe.strip():
        raise InputError(f"--recipe takes one recipe, but got {recipe!r}.")
    return recipe


def _fail(sentence: str, status: int) -> int:
    say(sentence)
    return status


def _sentence(error: TyperException) -> str:
    """A usage error as one plain sentence; a mistyped option with the nearest ones."""
    from difflib import get_close_matches

    context = getattr(error, "ctx", None)
    path = context.command_path if context else PROGRAM
    wrong = getattr(error, "option_name", None)
    if wrong is None:
        return f"{error.format_message().rstrip('.?')}{'?' if error.format_message().endswith('?') else '.'} See {path} --help."
    known = (
        [
            option
            for parameter in context.command.params
            for option in parameter.opts
            if option.startswith("--")
        ]
        if context
        else []
    )
    near = get_close_matches(wrong, known, n=3, cutoff=0.6)
    hint = f"Did you mean {' or '.join(near)}?" if near else f"See {path} --help."
    return f"There is no option {wrong}. {hint}"
