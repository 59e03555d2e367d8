"""A public server deletes runs of visitors, what they made, and uploads by itself."""

import os
import time

import pytest
import samples

from qcore.base.errors import InputError
from qcore.base.files import write_json
from qcore.base.home import home
from qcore.jobs import jobs, upkeep
from qcore.jobs.public import SAMPLE

pytestmark = pytest.mark.usefixtures("own_home")
DAY = 86400.0


def run(owner: str | None, days: float, second: int, **about) -> str:
    folder = home() / "made" / f"m{second}"
    folder.mkdir(parents=True)
    found = samples.write_run(
        home(), [], second=second, owner=owner, finished_at=time.time() - DAY * days, **about
    )
    write_json(home() / "runs" / found / "outcome.json", {"folder": str(folder)})
    return found


def test_old_runs_of_visitors_go_with_what_they_made(monkeypatch):
    monkeypatch.setattr(jobs, "_alive", lambda folder, about: True)
    old, new = run("a", 4, 0), run("a", 1, 1)
    sample, own, active = run(SAMPLE, 90, 2), run(None, 90, 3), run("a", 90, 4, state="running")
    upkeep.tidy()
    assert {each.run_id for each in jobs.list_runs()} == {new, sample, own, active}
    assert sorted(path.name for path in (home() / "made").iterdir()) == ["m1", "m2", "m3", "m4"]
    assert old not in [path.name for path in (home() / "runs").iterdir()]


def test_a_made_folder_outside_of_the_cache_is_left_alone(tmp_path):
    found = run("a", 4, 0)
    outside = tmp_path / "mine"
    outside.mkdir()
    write_json(home() / "runs" / found / "outcome.json", {"folder": str(outside)})
    upkeep.remove(found)
    assert outside.is_dir() and not jobs.list_runs()


def test_an_active_run_is_not_removed(monkeypatch):
    monkeypatch.setattr(jobs, "_alive", lambda folder, about: True)
    found = run("a", 0, 0, state="running")
    with pytest.raises(InputError, match="has not ended"):
        upkeep.remove(found)
    assert (home() / "made" / "m0").is_dir()


def test_old_uploads_go_unless_a_run_waits_for_them(monkeypatch):
    monkeypatch.setattr(jobs, "_alive", lambda folder, about: True)
    texts = home() / "texts"
    texts.mkdir(parents=True)
    for name in ("old", "new", "needed"):
        (texts / f"{name}.txt").write_text("a text")
    for name in ("old", "needed"):
        os.utime(texts / f"{name}.txt", (time.time() - 9 * DAY,) * 2)
    waiting = samples.write_run(home(), [], state="queued", pending=["fp32"])
    spec = samples.spec("smollm2-135m", ["fp32"]) | {"text": str(texts / "needed.txt")}
    write_json(home() / "runs" / waiting / "spec.json", spec)
    upkeep.tidy()
    assert sorted(path.stem for path in texts.iterdir()) == ["needed", "new"]


def test_it_is_done_now_and_then(monkeypatch):
    done = []
    monkeypatch.setattr(upkeep, "tidy", lambda: done.append(1))
    upkeep.now_and_then()
    upkeep.now_and_then()
    assert done == [1]
