"""Models of a public server stay within its quota: least recently used first, never one in use."""

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from qcore.base import quota
from qcore.base.errors import InputError
from qcore.base.home import home

pytestmark = pytest.mark.usefixtures("own_home")
HOLDER = """
import sys
from pathlib import Path
from qcore.base import quota
quota.use(Path(sys.argv[1]))
print("held", flush=True)
sys.stdin.read()
"""


@pytest.fixture(autouse=True)
def _released():
    yield
    for _, file in quota._held.values():
        file.close()
    quota._held.clear()


def folder(name: str, nbytes: int, hours_ago: float) -> Path:
    """Make a folder of `nbytes` that was last used some hours ago."""
    place = home() / name
    place.mkdir(parents=True)
    (place / "weights").write_bytes(b"w" * nbytes)
    (place / "link").symlink_to(place / "weights")
    os.utime(place, (time.time() - 3600 * hours_ago,) * 2)
    return place


def age(place: Path, hours: float) -> None:
    os.utime(quota._lock_of(place), (time.time() - 3600 * hours,) * 2)


def test_the_least_recently_used_goes_first():
    oldest, middle, newest = (
        folder(name, 100, hours) for name, hours in (("hub/models--a--b", 9), ("made/x", 5), ("models/g", 2))
    )
    quota.make_room(50, 350)
    assert oldest.exists()
    quota.make_room(100, 350)
    assert (oldest.exists(), middle.exists(), newest.exists()) == (False, True, True)
    quota.use(middle)
    quota._held.popitem()[1][1].close()
    age(middle, 1)  # used after the other
    quota.make_room(200, 350)
    assert (middle.exists(), newest.exists()) == (True, False)


def test_default_models_and_recent_folders_stay():
    default, recent = folder("models/smollm2-135m", 100, 900), folder("made/new", 100, 0.1)
    with pytest.raises(InputError, match="in use"):
        quota.make_room(100, 150)
    assert default.exists() and recent.exists()
    with pytest.raises(InputError, match="keeps 0.0 GB of models in all"):
        quota.make_room(200, 150)


def test_what_another_process_uses_stays_until_it_ends():
    place = folder("hub/models--a--b", 100, 9)
    command = [sys.executable, "-c", HOLDER, str(place)]
    holder = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    try:
        assert holder.stdout.readline() == "held\n"
        age(place, 9)
        with pytest.raises(InputError, match="in use"):
            quota.make_room(100, 150)
    finally:
        holder.kill()
        holder.wait()
    quota.make_room(100, 150)
    assert not place.exists()


def test_what_this_process_uses_stays_for_an_hour(monkeypatch):
    place, other = folder("hub/models--a--b", 100, 9), folder("hub/models--c--d", 100, 5)
    quota.use(place)
    age(place, 9)
    quota.make_room(50, 150)
    assert place.exists() and not other.exists()
    monkeypatch.setattr(quota, "HOLD_SECONDS", 0.0)
    quota.use(home() / "hub" / "models--e--f")  # the older hold is given up
    quota.make_room(150, 150)
    assert not place.exists()


def test_a_folder_that_is_being_written_stays():
    unfinished, left = folder("made/.x.partial-1", 100, 0.5), folder("made/.y.partial-2", 100, 30)
    quota.make_room(0, 100)
    assert unfinished.exists() and not left.exists()


def test_the_oldest_uploads_go_first_except_those_that_are_needed():
    texts = home() / "texts"
    texts.mkdir(parents=True)
    for number in range(5):
        (texts / f"{number}.txt").write_bytes(b"x" * 100)
        os.utime(texts / f"{number}.txt", (time.time() - 3600 * (10 - number),) * 2)
    quota.trim(texts, "*.txt", 250, keep={texts / "0.txt"})
    assert sorted(path.stem for path in texts.iterdir()) == ["0", "3", "4"]
