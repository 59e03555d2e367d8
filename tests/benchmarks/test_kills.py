"""What the benchmark of kills counts as a violation."""

import json

import pytest

from benchmarks import kills


@pytest.fixture
def world(tmp_path, monkeypatch):
    monkeypatch.setenv("QCORE_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("QCORE_KERNELS", str(tmp_path / "kernels"))
    made = kills.World(tmp_path)
    for name in ("old", "new"):
        write(tmp_path / name, name)
    made.old, made.whole["stream"] = (kills.contents(tmp_path / name) for name in ("old", "new"))
    return made


def write(folder, text):
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "weights").write_text(text)
    (folder / "qcore.json").write_text(json.dumps({"made": text, "seconds": 1.5}))


def wrong(world, overwrite):
    this = kills.Round(0, "stream", "machine", 0.0, overwrite)
    kills._check_folder(world, this)
    return this.wrong


def test_the_old_model_the_new_one_or_none_is_right(world):
    target = world.out / "stream"
    assert wrong(world, False) == [] and wrong(world, True) == ["neither the old nor the new model is there"]
    write(target, "new")
    assert wrong(world, False) == wrong(world, True) == []
    write(target, "old")
    assert wrong(world, True) == [] and len(wrong(world, False)) == 1


def test_half_a_model_is_named(world):
    write(world.out / "stream", "new")
    (world.out / "stream" / "weights").write_text("old")
    assert wrong(world, True) == ["neither the old nor the new model is whole: weights"]


def test_what_nobody_asked_for_is_named(world):
    write(world.out / "stray", "new")
    assert wrong(world, False) == ["other folders: ['stray']"]


def test_durations_do_not_count(tmp_path):
    write(tmp_path, "new")
    before = kills.contents(tmp_path)
    (tmp_path / "qcore.json").write_text(json.dumps({"seconds": 9.0, "made": "new"}))
    (tmp_path / "README.md").write_text("at noon")
    assert kills.contents(tmp_path) == before
