"""A streamed model replaces an old one completely, wherever its process is killed."""

import os
import shutil
import signal

import pytest

from qcore.base import files
from qcore.base.files import restore
from qcore.library.journal import Journal

SHARDS = ("a.safetensors", "b.safetensors")


def old_model(place):
    final = place / "model"
    final.mkdir(parents=True)
    for name in (*SHARDS, "c.safetensors", "config.json"):
        (final / name).write_text("old")
    return final


def work(final, made):
    """Write the shards that are not finished, and publish them."""
    with Journal(final, {"recipe": "int8"}) as journal:
        for name in SHARDS:
            if journal.finished(name) is None:
                made.append(name)
                (journal.folder / name).write_text("new")
                journal.note(name, "digest")
        (journal.folder / "config.json").write_text("new")
        journal.publish()


def killed(final, moment):
    """Do the work in a process that is killed at its step `moment`; return whether it was."""
    pid = os.fork()
    if pid == 0:
        left = moment

        def counted(call):
            def counting(*arguments, **options):
                nonlocal left
                left -= 1
                if left < 0:
                    os.kill(os.getpid(), signal.SIGKILL)
                return call(*arguments, **options)

            return counting

        for module, name in ((os, "replace"), (os, "unlink"), (files, "_exchange"), (shutil, "rmtree")):
            setattr(module, name, counted(getattr(module, name)))
        work(final, [])
        os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == -signal.SIGKILL


def contents(folder):
    return {path.name: path.read_text() for path in folder.iterdir()}


@pytest.mark.row("31", "F3")
@pytest.mark.parametrize("way", ["exchange", "two renames"])
def test_a_kill_at_any_step_leaves_the_old_model_or_the_new_one(tmp_path, monkeypatch, way):
    """A kill after the exchange left the old model in the working folder, whose files were published with the
    next result."""
    if way == "two renames":
        monkeypatch.setattr(files, "_exchange", lambda one, other: False)
    new = dict.fromkeys((*SHARDS, "config.json"), "new")
    for moment in range(100):
        final = old_model(tmp_path / str(moment))
        old, made = contents(final), []
        was_killed = killed(final, moment)
        assert final.exists() or restore(final)
        assert contents(final) in (old, new), moment
        work(final, made)
        assert contents(final) == new and os.listdir(final.parent) == ["model"], moment
        if not was_killed:
            break
    assert moment > 6
