"""Drive some architectures through the checks in this process, and print each row as a line of JSON.

python -m tests.zoo.drive WORK NAMES      all checks; saved models stay in WORK
python -m tests.zoo.drive --reload WORK NAMES    load what the first call saved, in a fresh process
"""

import shutil
import sys
import time
from pathlib import Path

import torch

import qcore
from qcore.base.quiet import silence
from tests.zoo import build
from tests.zoo.checks import CHECKS, RECIPES, run
from tests.zoo.rows import Row
from tests.zoo.subject import Subject, logits


def drive(name: str, work: Path, checks: tuple[str, ...] = tuple(CHECKS)) -> list[Row]:
    """Build the architecture `name` in `work` and run `checks`."""
    began = time.perf_counter()
    try:
        subject = Subject(name, build(name, work / "original"), work)
    except Exception as error:
        return [Row(name, "build", "fault", f"{type(error).__name__}: {error}", time.perf_counter() - began)]
    return [run(subject, check) for check in checks]


def reload(name: str, work: Path) -> Row:
    """Load the models that `drive` saved in `work`: their logits are equal to the bit."""
    began, wrong, recipes = (
        time.perf_counter(),
        [],
        [each for each in RECIPES if (work / f"{each}.pt").exists()],
    )
    for recipe in recipes:
        try:
            found = logits(qcore.load(str(work / recipe)).model)
            expected = torch.load(work / f"{recipe}.pt")
            if not torch.equal(found, expected):
                wrong.append(f"{recipe}: logits differ by {(found - expected).abs().max():.3g}")
        except Exception as error:
            wrong.append(f"{recipe}: {type(error).__name__}: {error}")
    text = "; ".join(wrong) or ("" if recipes else "nothing was saved")
    return Row(name, "reload", "fault" if wrong else "ok", text[:400], time.perf_counter() - began)


def main(arguments: list[str]) -> None:
    """Run as the module's docstring says."""
    again = arguments[0] == "--reload"
    work, *names = arguments[1:] if again else arguments
    silence()
    torch.set_num_threads(1)
    for name in names:
        place = Path(work) / name.replace(":", "-")
        print(f"begin {name}", flush=True)
        for row in [reload(name, place)] if again else drive(name, place):
            print(row.line(), flush=True)
        if again:
            shutil.rmtree(place, ignore_errors=True)


if __name__ == "__main__":
    main(sys.argv[1:])
