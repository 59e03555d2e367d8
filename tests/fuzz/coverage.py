"""Inputs that atheris finds by the branches they reach, on request:

    pip install atheris
    python -m tests.fuzz.coverage gguf -runs=100000

What follows the name of the parser are options of libFuzzer. The first inputs are mutated files; an input
that breaks a limit ends the run and is saved as crash-… in the working folder.
"""

import random
import sys

from tests.fuzz import loop
from tests.fuzz.parsers import scratch

_FIRST = 300  # inputs
_MEGABYTES = 4096  # of a process, libraries included


def main() -> None:
    """Run until libFuzzer ends the process."""
    try:
        import atheris
    except ImportError:
        sys.exit("This needs atheris, which only Linux wheels bring: pip install atheris")
    name, *options = sys.argv[1:]
    with atheris.instrument_imports(include=["qcore"]):
        mutate, call = loop.opened(name)
    corpus = scratch() / "corpus"
    corpus.mkdir()
    chance = random.Random(name)
    for number in range(_FIRST):
        content = mutate(chance)
        (corpus / str(number)).write_bytes(content)
        loop.judge(call, content)  # what libraries load at the first call is not the input's

    def one(content: bytes) -> None:
        if problem := loop.judge(call, content):
            raise RuntimeError(problem)

    limits = ["-max_len=4096", f"-timeout={loop.SECONDS * 3:.0f}", f"-rss_limit_mb={_MEGABYTES}"]
    atheris.Setup([sys.argv[0], *limits, *options, str(corpus)], one)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
