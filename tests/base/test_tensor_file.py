"""The writer produces a valid safetensors file with aligned data, which appears complete or not at all."""

import hashlib
import os

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

from qcore.base import tensor_file
from qcore.base.tensor_file import Piece, TensorFile
from qcore.models.headers import read_header

DTYPES = [getattr(torch, name) for name in tensor_file.TORCH_NAMES.values()]


def test_the_library_reads_the_file_that_we_write(tmp_path):
    tensors = {
        f"{dtype} {shape}": torch.ones(shape).to(dtype)
        for dtype in DTYPES
        for shape in ((), (3,), (5, 64), (0, 4))
    }
    tensors |= {"ramp": torch.arange(100.0), "turned": torch.arange(6.0).view(2, 3).T}
    digest = tensor_file.write(tensors, tmp_path / "x.safetensors", {"about": "é"})
    assert digest == hashlib.sha256((tmp_path / "x.safetensors").read_bytes()).hexdigest()
    found, header = load_file(tmp_path / "x.safetensors"), read_header(tmp_path / "x.safetensors")
    assert found.keys() == tensors.keys() == header.keys()
    for name, tensor in tensors.items():
        assert found[name].dtype == tensor.dtype and torch.equal(found[name], tensor), name
    assert all(header[name].start % 64 == 0 for name, tensor in tensors.items() if tensor.nbytes % 64 == 0)
    with safe_open(tmp_path / "x.safetensors", "pt") as file:
        assert file.metadata() == {"format": "pt", "about": "é"}
    assert [path.name for path in tmp_path.iterdir()] == ["x.safetensors"]


def test_tensors_may_take_turns(tmp_path):
    """The digest is known only if the pieces come in order."""
    pieces = [Piece("a", torch.float32, (4, 2)), Piece("b", torch.int64, (3,))]
    a, b = torch.arange(8.0).view(4, 2), torch.arange(3)
    for turns, known in (
        ([("a", a[:1]), ("b", b), ("a", a[1:])], False),
        ([("a", a[:3]), ("a", a[3:]), ("b", b)], True),
    ):
        file = TensorFile(tmp_path / "x", pieces)
        for name, data in turns:
            file.write(name, data)
        digest = file.close()
        assert digest == (hashlib.sha256((tmp_path / "x").read_bytes()).hexdigest() if known else None)
        found = load_file(tmp_path / "x")
        assert torch.equal(found["a"], a) and torch.equal(found["b"], b)


def test_a_wrong_length_leaves_the_old_file(tmp_path):
    tensor_file.write({"old": torch.zeros(1)}, tmp_path / "x")
    file = TensorFile(tmp_path / "x", [Piece("a", torch.float32, (2,))])
    with pytest.raises(ValueError, match="a is longer than its header says"):
        file.write("a", torch.zeros(3))
    file.write("a", torch.zeros(1))
    with pytest.raises(ValueError, match="a is shorter than its header says"):
        file.close()
    assert set(load_file(tmp_path / "x")) == {"old"} and [path.name for path in tmp_path.iterdir()] == ["x"]


@pytest.mark.row("33")
@pytest.mark.parametrize("call", ["fsync", "replace"])
def test_a_disk_that_refuses_leaves_nothing(call, tmp_path, monkeypatch):
    def refuse(*arguments):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, call, refuse)
    with pytest.raises(OSError, match="No space left"):
        tensor_file.write({"a": torch.zeros(1)}, tmp_path / "x")
    assert not list(tmp_path.iterdir())


def test_the_file_is_on_the_disk_before_it_has_its_name(tmp_path, monkeypatch):
    order, sync, rename = [], os.fsync, os.replace
    monkeypatch.setattr(os, "fsync", lambda handle: (order.append("flush"), sync(handle)))
    monkeypatch.setattr(os, "replace", lambda *paths: (order.append("rename"), rename(*paths)))
    tensor_file.write({"a": torch.zeros(1)}, tmp_path / "x")
    assert order == ["flush", "rename", "flush"]  # the last one is the folder
