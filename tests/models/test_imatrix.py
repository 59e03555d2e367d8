"""Importance matrices of llama.cpp: read in both forms, written, and refused when damaged."""

import struct

import pytest
import torch
from gguf import GGUFReader

from qcore.base.errors import InputError
from qcore.models import imatrix
from qcore.models.imatrix import ImportanceMatrix

VALUES = {
    "blk.0.attn_q.weight": torch.tensor([[1.0, 0.25, 4.0]]),
    "blk.0.ffn_down_exps.weight": torch.tensor([[1.0, 2.0], [1.0, 1.0], [0.5, 8.0]]),
}
COUNTS = {"blk.0.attn_q.weight": [1024], "blk.0.ffn_down_exps.weight": [700, 0, 324]}


@pytest.fixture
def written(tmp_path):
    path = tmp_path / "imatrix.gguf"
    imatrix.write(path, ImportanceMatrix(VALUES, 1024, ("a text",)), COUNTS, 512)
    return path


def test_what_is_written_is_read_again(written):
    found = imatrix.read(written)
    assert found.values.keys() == VALUES.keys()
    for name, value in VALUES.items():
        assert torch.allclose(found.values[name], value)
    assert (found.tokens, found.datasets, found.name) == (1024, ("a text",), "imatrix.gguf")


def test_the_file_is_laid_out_as_llama_cpp_reads_it(written):
    reader = GGUFReader(written)
    assert reader.fields["general.type"].contents() == "imatrix"
    assert reader.fields["imatrix.chunk_count"].contents() == 2
    assert reader.fields["imatrix.chunk_size"].contents() == 512
    found = {tensor.name: tensor for tensor in reader.tensors}
    assert list(found["blk.0.ffn_down_exps.weight.in_sum2"].shape) == [2, 3]
    assert list(found["blk.0.ffn_down_exps.weight.counts"].shape) == [1, 3]
    assert found["blk.0.attn_q.weight.in_sum2"].data.flatten().tolist() == [1024.0, 256.0, 4096.0]


def legacy(entries) -> bytes:
    text = struct.pack("<i", len(entries))
    for name, calls, values in entries:
        text += struct.pack("<i", len(name)) + name.encode()
        text += struct.pack(f"<ii{len(values)}f", calls, len(values), *values)
    return text + struct.pack("<ii", 4, 6) + b"a text"


def test_the_older_form_is_read(tmp_path):
    (tmp_path / "imatrix.dat").write_bytes(
        legacy([("blk.0.attn_q.weight", 4, [4.0, 1.0]), ("b", 0, [0.0, 0.0])])
    )
    found = imatrix.read(tmp_path / "imatrix.dat")
    assert found.values["blk.0.attn_q.weight"].tolist() == [[1.0, 0.25]]
    assert found.values["b"].tolist() == [[1.0, 1.0]]
    assert found.datasets == ("a text",)


DAMAGED = {
    "empty": b"",
    "text": b"hello, this is not an importance matrix",
    "no entry": struct.pack("<i", 0),
    "too many entries": struct.pack("<i", 2**30) + bytes(64),
    "a name that ends nowhere": struct.pack("<ii", 1, 2**20) + bytes(64),
    "too many values": struct.pack("<ii", 1, 1) + b"a" + struct.pack("<ii", 1, 2**30) + bytes(64),
    "cut short": legacy([("a", 1, [1.0, 2.0])])[:20],
    "not finite": legacy([("a", 1, [1.0, float("nan")])]),
    "negative": legacy([("a", 1, [1.0, -1.0])]),
}


@pytest.mark.parametrize("content", DAMAGED.values(), ids=DAMAGED)
def test_a_damaged_file_is_refused(tmp_path, content):
    (tmp_path / "imatrix.dat").write_bytes(content)
    with pytest.raises(InputError, match="imatrix.dat"):
        imatrix.read(tmp_path / "imatrix.dat")


def test_a_gguf_file_of_something_else_is_refused(tmp_path, written):
    path = tmp_path / "other.gguf"
    path.write_bytes(
        written.read_bytes()
        .replace(b"imatrix\x17", b"imatrix\x17")
        .replace(b"\x07\0\0\0\0\0\0\0imatrix", b"\x07\0\0\0\0\0\0\0adapter")
    )
    with pytest.raises(InputError, match="adapter"):
        imatrix.read(path)


def test_a_weight_without_counts_is_refused(tmp_path, written):
    path = tmp_path / "other.gguf"
    path.write_bytes(written.read_bytes().replace(b"attn_q.weight.counts", b"attn_k.weight.counts"))
    with pytest.raises(InputError, match="numbers of tokens"):
        imatrix.read(path)


def test_values_that_are_not_finite_are_refused(tmp_path):
    values = {"a.weight": torch.tensor([[float("inf"), 1.0]])}
    imatrix.write(tmp_path / "imatrix.gguf", ImportanceMatrix(values, 512), {"a.weight": [1]}, 512)
    with pytest.raises(InputError, match="not finite"):
        imatrix.read(tmp_path / "imatrix.gguf")
