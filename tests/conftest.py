"""What every test shares: a cache folder of its own, its share of the processors, no noise from libraries."""

import os
import shutil
import tempfile
from pathlib import Path

from qcore.base.home import home

# Set before anything heavy is imported: the cache of whoever runs the tests keeps its runs to itself and
# nothing may reach for a hub. What `make setup` has prepared there (the default models, compiled kernels) is
# made once and only read.
PREPARED = ("models/smollm2-135m", "models/smollm2-135m-dithered")
_scratch = Path(tempfile.mkdtemp(prefix="qcore-test-"))
(_scratch / "models").mkdir()
for _name in PREPARED:
    if (home() / _name).is_dir():
        (_scratch / _name).symlink_to((home() / _name).resolve())
os.environ.setdefault("QCORE_KERNELS", str(home() / "kernels"))
os.environ["QCORE_HOME"] = str(_scratch)
os.environ["HF_HUB_OFFLINE"] = os.environ.get("HF_HUB_OFFLINE", "1")
# Tests share the processors with servers, subprocesses and each other: threads that wait must not spin.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"
if _workers := int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", 0)):
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, len(os.sched_getaffinity(0)) // _workers)))

import pytest  # noqa: E402
import reliability  # noqa: E402
from hypothesis import settings  # noqa: E402
from trained import learned, words  # noqa: E402, F401 (fixtures)

from qcore.base.quiet import silence  # noqa: E402

# Machines are noisy: no test fails for being slow.
settings.register_profile("steady", deadline=None, max_examples=60)
settings.register_profile("heavy", deadline=None, max_examples=5000)
settings.load_profile("steady")

silence()


def pytest_collection_modifyitems(items):
    """In parallel, slow tests come first, so that no worker ends with one while the others have nothing
    left. The rows of docs/reliability.md that a test covers go with its report."""
    for item in items:
        if numbers := [number for mark in item.iter_markers("row") for number in mark.args]:
            item.user_properties.append(("rows", numbers))
    if _workers:
        items.sort(key=lambda item: item.get_closest_marker("slow") is None)


def pytest_runtest_logreport(report):
    if not _workers:  # in parallel, the process that starts the others hears everything
        reliability.remember(report)


def pytest_unconfigure():
    shutil.rmtree(_scratch, ignore_errors=True)


@pytest.fixture
def own_home(tmp_path, monkeypatch):
    """An empty cache folder, which no run outlives; `pytest.mark.usefixtures("own_home")` gives it to every
    test of a file."""
    monkeypatch.setenv("QCORE_HOME", str(tmp_path / "home"))
    return tmp_path / "home"


@pytest.fixture
def said(capsys):
    """Run a command line; returns (status, standard output, standard error)."""

    from qcore.cli.main import main

    def call(*arguments):
        capsys.readouterr()
        status = main([str(argument) for argument in arguments])
        captured = capsys.readouterr()
        return status, captured.out, captured.err

    return call
