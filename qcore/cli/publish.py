"""`qcore card` and `qcore push`: the model card of a folder that qcore wrote, and its upload to the hub."""

from pathlib import Path
from typing import Annotated

import typer

Folder = Annotated[Path, typer.Argument(help="A folder that qcore wrote", show_default=False)]


def card(
    folder: Folder,
    run: Annotated[
        str | None,
        typer.Option(help="A run that measured the model (default: the newest one)", metavar="RUN_ID"),
    ] = None,
) -> int:
    """Write the perplexity, KL divergence and verdict of a comparison into the model card, README.md, of
    FOLDER."""
    from qcore.verbs import card as verb

    measured = verb.from_run(folder, run)
    verb.measure(folder, measured)
    print(f"{folder / verb.CARD}: figures of {measured.source}")
    return 0


def push(
    folder: Folder,
    repo_id: Annotated[str, typer.Argument(help="OWNER/NAME on the hub", show_default=False)],
    public: Annotated[
        bool, typer.Option("--public", help="Let everybody see the repository (default: private)")
    ] = False,
    message: Annotated[
        str | None, typer.Option(help="Message of the commit", metavar="TEXT", show_default=False)
    ] = None,
) -> int:
    """Upload FOLDER to the hub with your own token (hf auth login, or HF_TOKEN)."""
    from qcore.verbs import push as verb

    print(verb.run(folder, repo_id, public=public, message=message))
    return 0
