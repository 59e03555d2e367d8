"""Where a model may be saved is decided before any work, and an old model stays until the new one is
complete."""

import shutil
import stat

import pytest
import tiny

from qcore import library
from qcore.base import files
from qcore.base.errors import InputError, UnavailableError
from qcore.library import plain, safetensors
from qcore.library.journal import Journal
from qcore.library.saving import check_folder, replaced_folder
from qcore.recipes import parse
from qcore.streaming import quantizing


def fill(folder):
    with replaced_folder(folder, overwrite=True) as scratch:
        (scratch / "qcore-made.json").write_text("{}")


@pytest.mark.row("18")
def test_a_link_to_a_folder_is_followed(tmp_path):
    (tmp_path / "link").symlink_to("disk/model")
    for _ in range(2):
        fill(tmp_path / "link")
    assert (tmp_path / "link").is_symlink() and (tmp_path / "disk" / "model" / "qcore-made.json").is_file()
    assert [path.name for path in (tmp_path / "disk").iterdir()] == ["model"]


def test_streaming_follows_it_too(tmp_path):
    tiny.checkpoint("llama", tmp_path / "model")
    (tmp_path / "disk").mkdir()
    (tmp_path / "link").symlink_to("disk")
    for overwrite in (False, True):
        quantizing.quantize(
            library.resolve(tmp_path / "model"), parse("int8"), tmp_path / "link", overwrite=overwrite
        )
    assert (tmp_path / "link").is_symlink() and safetensors.load(tmp_path / "disk")


@pytest.mark.parametrize("name", [".", "..", "../here"])
def test_the_working_folder_is_refused_before_any_work(name, tmp_path, monkeypatch):
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    for check in (check_folder, lambda folder: safetensors.check_target(parse("int8"), folder)):
        with pytest.raises(InputError, match="is the working folder or contains it"):
            check(name)


def test_a_file_is_refused(tmp_path):
    (tmp_path / "file").touch()
    for overwrite in (False, True):
        with pytest.raises(InputError, match="is a file"):
            check_folder(tmp_path / "file", overwrite=overwrite)


@pytest.mark.row("33")
def test_an_old_model_stays_until_the_new_one_is_complete(tmp_path):
    fill(tmp_path / "model")
    with pytest.raises(KeyboardInterrupt), replaced_folder(tmp_path / "model", overwrite=True) as scratch:
        (scratch / "half").touch()
        assert (tmp_path / "model" / "qcore-made.json").exists()
        raise KeyboardInterrupt
    assert [path.name for path in tmp_path.rglob("*")] == ["model", "qcore-made.json"]


@pytest.mark.row("33")
def test_a_full_disk_is_one_sentence(tmp_path):
    with (
        pytest.raises(UnavailableError, match=r"The disk that holds .* is full"),
        replaced_folder(tmp_path / "m"),
    ):
        raise OSError(28, "No space left on device")
    with (
        pytest.raises(InputError, match=r"cannot be saved in .*Permission denied"),
        replaced_folder(tmp_path / "m"),
    ):
        raise PermissionError(13, "Permission denied")


@pytest.mark.row("33")
def test_a_full_disk_at_the_start_of_streaming_is_one_sentence(tmp_path, monkeypatch):
    tiny.checkpoint("llama", tmp_path / "model")

    def full(journal):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Journal, "_forget_others", full)
    for _ in range(2):  # the lock is released
        with pytest.raises(UnavailableError, match="is full"):
            quantizing.quantize(library.resolve(tmp_path / "model"), parse("int8"), tmp_path / "out")


def test_everybody_may_read_a_saved_model_and_it_is_on_the_disk(tmp_path, monkeypatch):
    flushed, settle = [], files.settle
    monkeypatch.setattr(files, "settle", lambda folder: (flushed.append(folder), settle(folder)))
    plain.save(tiny.model("llama"), tiny.tokenizer(), {"kind": "prune"}, tmp_path / "model")
    assert len(flushed) == 1
    (tmp_path / "model" / "x").touch()
    usual = stat.S_IMODE((tmp_path / "model" / "x").stat().st_mode)
    modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in (tmp_path / "model").iterdir()}
    assert all(mode & 0o444 == usual & 0o444 for mode in modes.values()), modes
    shutil.rmtree(tmp_path / "model")
