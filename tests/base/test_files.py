"""Files and folders appear complete or not at all; an unreadable file is not "missing"."""

import hashlib
import json
import logging
import os
import signal
import stat
import subprocess
import sys

import pytest

from qcore.base import files
from qcore.base.errors import InputError
from qcore.base.files import (
    new_folder,
    publish,
    read_json,
    real_target,
    replaced_file,
    restore,
    sha256,
    write_json,
)


@pytest.fixture(params=["exchange", "two renames"])
def way(request, monkeypatch):
    """Both ways to replace a folder."""
    if request.param == "two renames":
        monkeypatch.setattr(files, "_exchange", lambda one, other: False)
    return request.param


def test_json_has_the_permissions_of_the_umask(tmp_path):
    before = os.umask(0o022)
    try:
        write_json(tmp_path / "a.json", {"x": float("nan")})
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "a.json").stat().st_mode) == 0o644
    assert read_json(tmp_path / "a.json") == {"x": None}


def test_missing_is_none_and_damage_is_logged(tmp_path, caplog):
    assert read_json(tmp_path / "none") is None and read_json(tmp_path / "none" / "below") is None
    for text in (b"{", b"\xff", b"[" * 100_000):
        (tmp_path / "damaged").write_bytes(text)
        caplog.clear()
        with caplog.at_level(logging.WARNING):
            assert read_json(tmp_path / "damaged") is None
        assert "is damaged and is ignored" in caplog.text


def test_what_cannot_be_read_is_not_missing(tmp_path, monkeypatch):
    with pytest.raises(InputError, match=r"cannot be read: Is a directory\. Check the permissions"):
        read_json(tmp_path)

    def refuse(path):
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(type(tmp_path), "read_bytes", refuse)
    with pytest.raises(InputError, match=r"a\.json cannot be read: Permission denied"):
        read_json(tmp_path / "a.json")


@pytest.mark.row("33")
def test_a_file_that_fails_half_way_leaves_the_old_one(tmp_path):
    write_json(tmp_path / "a.json", 1)
    with pytest.raises(KeyboardInterrupt), replaced_file(tmp_path / "a.json") as file:
        file.write(b"half")
        raise KeyboardInterrupt
    assert read_json(tmp_path / "a.json") == 1 and [path.name for path in tmp_path.iterdir()] == ["a.json"]


@pytest.mark.parametrize("size", [0, 1, 100_000])
def test_sha256(size, tmp_path, monkeypatch):
    monkeypatch.setattr(files, "_WINDOW", 1 << 14)
    (tmp_path / "x").write_bytes(os.urandom(size))
    assert sha256(tmp_path / "x") == hashlib.sha256((tmp_path / "x").read_bytes()).hexdigest()


def test_a_new_folder_takes_the_place_of_the_old_one(tmp_path, way):
    final = tmp_path / "deep" / "final"
    for text in ("one", "two"):
        with new_folder(final) as scratch:
            (scratch / "text").write_text(text)
            (scratch / "private").write_text("")
            (scratch / "private").chmod(0o600)
            assert not final.exists() or (final / "text").read_text() == "one"
        assert (final / "text").read_text() == text
        assert [path.name for path in final.parent.iterdir()] == ["final"]
        readable = final.stat().st_mode & 0o444
        assert (final / "private").stat().st_mode & 0o444 == readable


def test_a_refused_rename_leaves_the_old_folder(tmp_path, monkeypatch):
    monkeypatch.setattr(files, "_exchange", lambda one, other: False)
    (tmp_path / "final").mkdir()
    (tmp_path / "final" / "old").touch()
    rename = os.replace

    def refuse(source, target):
        if ".partial-" in str(source):
            raise OSError("refused")
        rename(source, target)

    monkeypatch.setattr(os, "replace", refuse)
    with pytest.raises(OSError, match="refused"), new_folder(tmp_path / "final"):
        pass
    assert [str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*")] == ["final", "final/old"]


KILL = """
import os, signal, shutil, sys
from pathlib import Path
from qcore.base import files
place, way, moment = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3])
if way == "two renames":
    files._exchange = lambda one, other: False
def counted(call):
    def counting(*arguments, **options):
        global moment
        moment -= 1
        if moment < 0:
            os.kill(os.getpid(), signal.SIGKILL)
        return call(*arguments, **options)
    return counting
os.replace, files._exchange, shutil.rmtree = map(counted, (os.replace, files._exchange, shutil.rmtree))
files.publish(place / "new", place / "final")
"""


@pytest.mark.row("31", "F3")
def test_a_kill_at_any_step_leaves_a_complete_folder(tmp_path, way):
    moment, codes = 0, []
    while not codes or codes[-1]:
        place = tmp_path / str(moment)
        for name, text in (("final", "old"), ("new", "new")):
            (place / name).mkdir(parents=True)
            for part in "abc":
                (place / name / part).write_text(text)
        codes.append(
            subprocess.run([sys.executable, "-c", KILL, str(place), way, str(moment)], check=False).returncode
        )
        assert (place / "final").exists() or restore(place / "final"), f"killed at step {moment}"
        found = {path.name: path.read_text() for path in (place / "final").iterdir()}
        assert found in ({part: "old" for part in "abc"}, {part: "new" for part in "abc"}), moment
        moment += 1
    assert set(codes[:-1]) == {-signal.SIGKILL} and len(codes) >= 3
    assert [path.name for path in place.iterdir()] == ["final"]
    assert (place / "final" / "a").read_text() == "new"


@pytest.mark.row("33", "F3")
def test_what_killed_processes_left_is_removed_and_what_is_in_use_is_not(tmp_path):
    """A model half saved by a process that was killed took its gigabytes for ever."""
    final = tmp_path / "mo[d]el"  # also a name that is a pattern
    for name in ("partial-00000001", "replaced-00000002", "partial-not-ours"):
        (tmp_path / f".{final.name}.{name}").mkdir()
    (tmp_path / ".other.partial-00000003").mkdir()
    with new_folder(final) as first, new_folder(final) as second:
        assert first.exists() and second.exists()
        (second / "new").touch()
    left = {path.name for path in tmp_path.iterdir()}
    assert left == {f".{final.name}.partial-not-ours", ".other.partial-00000003", final.name}


def test_a_folder_that_was_being_replaced_is_found_again(tmp_path):
    (tmp_path / ".final.replaced-0123abcd").mkdir()
    (tmp_path / ".final.replaced-0123abcd" / "old").touch()
    assert restore(tmp_path / "final") and (tmp_path / "final" / "old").exists()
    assert not restore(tmp_path / "final") and not restore(tmp_path / "none")
    assert not restore(tmp_path / "final" / "old" / "below")


@pytest.mark.row("31")
def test_files_are_on_the_disk_before_the_folder_has_its_name(tmp_path, monkeypatch):
    (tmp_path / "new" / "deep").mkdir(parents=True)
    (tmp_path / "new" / "deep" / "x").write_text("x")
    flushed, sync = [], os.fsync
    monkeypatch.setattr(
        os, "fsync", lambda handle: (flushed.append(os.readlink(f"/proc/self/fd/{handle}")), sync(handle))
    )
    monkeypatch.setattr(os, "replace", lambda *paths: flushed.append("rename"))
    publish(tmp_path / "new", tmp_path / "final")
    place = flushed.index("rename")
    assert {str(tmp_path / "new" / "deep" / "x"), str(tmp_path / "new")} <= set(flushed[:place])
    assert flushed[place + 1] == str(tmp_path)


@pytest.mark.row("18")
def test_where_a_folder_can_appear(tmp_path, monkeypatch):
    (tmp_path / "here" / "below").mkdir(parents=True)
    (tmp_path / "file").touch()
    (tmp_path / "link").symlink_to("here/new")
    (tmp_path / "circle").symlink_to("circle")
    monkeypatch.chdir(tmp_path / "here" / "below")
    assert real_target("x") == tmp_path / "here" / "below" / "x"
    assert real_target("../../link") == tmp_path / "here" / "new"
    for name in (".", "..", "../below", tmp_path / "here", "/"):
        with pytest.raises(InputError, match="is the working folder or contains it"):
            real_target(name)
    with pytest.raises(InputError, match="cannot be resolved"):
        real_target(tmp_path / "circle")
    with pytest.raises(InputError, match="file is a file"):
        real_target(tmp_path / "file" / "x")
    with pytest.raises(InputError, match="is a mount point"):
        real_target("/proc")
    monkeypatch.setattr(os, "access", lambda *arguments: False)
    with pytest.raises(InputError, match="no permission to write"):
        real_target("x")


def test_json_text_stays_readable(tmp_path):
    write_json(tmp_path / "a.json", {"größe": (1, float("inf")), "half": "\ud800"})
    text = (tmp_path / "a.json").read_text()
    assert "größe" in text and json.loads(text)["größe"] == [1, None]
