"""`python -m qcore …`: the command line. Heavy libraries are imported when a command needs them.

Exit status: 0 if everything succeeded, 1 if something failed while it ran, 2 if the input cannot be used (one
plain sentence on standard error), 130 after Ctrl-C.
"""

import errno
import os
import sys
from pathlib import Path
from typing import Annotated

import typer
from typer.exceptions import TyperException

from qcore import __version__
from qcore.base import logs
from qcore.base.errors import InputError, QcoreError, UnavailableError
from qcore.base.quiet import silence
from qcore.cli.audit import audit
from qcore.cli.compare import compare
from qcore.cli.evaluate import bench, evaluate, generate
from qcore.cli.output import degrade, say
from qcore.cli.plan import plan
from qcore.cli.profile import profile
from qcore.cli.progress import Show
from qcore.cli.publish import card, push, report
from qcore.cli.quantize import export, imatrix, quantize
from qcore.cli.runs import runs
from qcore.cli.sensitivity import sensitivity
from qcore.cli.train import distill, prune, qat
from qcore.measurement.devices import out_of_memory

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
    verbose: Annotated[
        bool, typer.Option("--verbose", help="Log phases, choices and fallbacks, as QCORE_LOG=debug does")
    ] = False,
) -> None:
    """Quantize a language model several ways and measure what each costs in memory, speed and quality."""
    if verbose:
        os.environ[logs.VARIABLE] = "debug"  # for this process, its workers and their children
    if os.environ.get(logs.VARIABLE):
        logs.configure()


app.command()(compare)
app.command()(quantize)
app.command("eval")(evaluate)
app.command()(bench)
app.command()(generate)
app.command()(profile)
app.command()(plan)
app.command()(audit)
app.command()(sensitivity)
app.command()(qat)
app.command()(prune)
app.command()(distill)
app.command()(export)
app.command()(imatrix)
app.command()(card)
app.command()(push)
app.command()(report)
app.add_typer(runs, name="runs")


@app.command("models")
def list_models(
    prepare: Annotated[
        str | None, typer.Option(help="Fetch and convert this default model now", metavar="NAME")
    ] = None,
) -> int:
    """List the default models and whether they are ready here. MODEL may also be a hub id, a folder or a GGUF
    file."""
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
    """List the recipes, what they do, and whether they can be used here. Any group size works: int4-g32,
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
    silence()
    degrade()
    try:
        status = app(args=arguments, prog_name=PROGRAM, standalone_mode=False) or 0
        print(end="", flush=True)  # a full device shows here
        return status
    except TyperException as error:
        return _fail(_sentence(error, sys.argv[1:] if arguments is None else arguments), 2)
    except (InputError, UnavailableError) as error:
        return _fail(str(error), 2)
    except QcoreError as error:
        return _fail(str(error), 1)
    except (KeyboardInterrupt, typer.Abort):
        return _fail("Stopped.", 130)
    except (MemoryError, RuntimeError) as error:
        if (memory := out_of_memory(error)) is None:
            raise
        return _fail(memory, 1)
    except BrokenPipeError:  # the reader of the pipe has closed it
        sys.stdout = None
        return 0
    except OSError as error:
        if error.filename is None and error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EIO):
            sys.stdout = None  # its buffer cannot be written at the end either
            return _fail(f"The output cannot be written: {error.strerror}.", 1)
        raise


def _fail(sentence: str, status: int) -> int:
    say(sentence)
    return status


def _sentence(error: TyperException, arguments: list[str]) -> str:
    """Return a usage error as one plain sentence; a mistyped option comes with similar ones, and a word with
    one dash in front, which may be a name, with the way to give it."""
    from difflib import get_close_matches

    context = getattr(error, "ctx", None)
    path = context.command_path if context else PROGRAM
    wrong = getattr(error, "option_name", None)
    if wrong is None or type(error).__name__ != "NoSuchOption":  # typer does not export the class
        message = error.format_message()
        return f"{message.rstrip('.?')}{'?' if message.endswith('?') else '.'} See {path} --help."
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
    word = next((each for each in arguments if each.startswith(wrong)), wrong)
    if (not word.startswith("--") and len(word) > 2) or Path(word).exists():
        name = "" if context is None or context.parent is None else f"{context.info_name} … "
        return (
            f"There is no option {word}. If that is a name, put -- before it, after all options: "
            f"{PROGRAM} {name}-- {word}"
        )
    near = get_close_matches(wrong, known, n=3, cutoff=0.6)
    hint = f"Did you mean {' or '.join(near)}?" if near else f"See {path} --help."
    return f"There is no option {wrong}. {hint}"
