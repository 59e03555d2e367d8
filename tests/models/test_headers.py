"""Safetensors headers: valid ones are read, all others are refused with the file or tensor named."""

import json
import os

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save_file

from qcore.base.errors import InputError
from qcore.models.headers import BITS, is_file_name, read_header, read_json

PAIR = {
    "a": {"dtype": "F32", "shape": [2, 2], "data_offsets": [0, 16]},
    "b": {"dtype": "BF16", "shape": [3], "data_offsets": [16, 22]},
}


def write(path, header, data=b"\0" * 22, length=None):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes((len(text) if length is None else length).to_bytes(8, "little") + text + data)
    return path


def changed(name, **fields):
    return {**PAIR, name: {**PAIR[name], **fields}}


def test_what_the_library_writes_is_read(tmp_path):
    tensors = {
        "w": torch.ones(3, 5),
        "half": torch.ones(2, dtype=torch.float16),
        "brain": torch.ones(1, dtype=torch.bfloat16),
        "empty": torch.ones(0, 4),
        "scalar": torch.tensor(1.5),
        "mask": torch.ones(3, dtype=torch.bool),
        "ids": torch.arange(4),
    }
    save_file(tensors, tmp_path / "x.safetensors", metadata={"format": "pt"})
    found = read_header(tmp_path / "x.safetensors")
    assert {name: (info.shape, info.nbytes) for name, info in found.items()} == {
        name: (tuple(tensor.shape), tensor.nbytes) for name, tensor in tensors.items()
    }
    content = (tmp_path / "x.safetensors").read_bytes()
    for name in ("w", "ids"):
        info = found[name]
        assert content[info.start : info.start + info.nbytes] == tensors[name].numpy().tobytes()
    assert (found["w"].elements, found["scalar"].elements, found["empty"].elements) == (15, 1, 0)


def test_a_valid_header_by_hand(tmp_path):
    found = read_header(write(tmp_path / "x", {"__metadata__": {"format": "pt"}, **PAIR}))
    assert [(info.dtype, info.shape, info.nbytes, info.file) for info in found.values()] == [
        ("F32", (2, 2), 16, "x"),
        ("BF16", (3,), 6, "x"),
    ]


def test_a_header_padded_with_spaces(tmp_path):
    assert len(read_header(write(tmp_path / "x", json.dumps(PAIR).encode() + b"   "))) == 2


@pytest.mark.row("5")
@pytest.mark.parametrize("length", [0, 1, 10_000, 100_000_001, 1 << 63, (1 << 64) - 1])
def test_impossible_header_lengths(tmp_path, length):
    with pytest.raises(InputError, match=f"header would be {length} bytes long"):
        read_header(write(tmp_path / "x", PAIR, length=length))


@pytest.mark.row("5")
@pytest.mark.parametrize(
    "content", [b"", b"\0\0\0", b"\x02\0\0\0\0\0\0\0"], ids=["empty", "short", "no-header"]
)
def test_files_too_short_for_a_header(tmp_path, content):
    (tmp_path / "x").write_bytes(content)
    with pytest.raises(InputError, match="not a valid safetensors file"):
        read_header(tmp_path / "x")


@pytest.mark.row("5")
def test_a_sparse_file_with_a_header_above_the_limit_takes_no_memory(tmp_path):
    with (tmp_path / "x").open("wb") as file:
        file.write((200_000_000).to_bytes(8, "little"))
        file.truncate(300_000_000)
    with pytest.raises(InputError, match="header would be 200000000"):
        read_header(tmp_path / "x")


@pytest.mark.row("5")
@pytest.mark.parametrize(
    "header, message",
    [
        (b"\xff\xfe{}", "not valid UTF-8"),
        (b"{not json", "valid JSON"),
        (b"[1, 2]", "must hold a JSON object"),
        (b'{"a": 1, "a": 2}', "'a' occurs twice"),
        (b"[" * 50_000 + b"]" * 50_000, "nested too deeply"),
        (b'{"a": ' + b"[" * 500 + b"]" * 500 + b"}", "nested too deeply"),
    ],
    ids=["utf8", "json", "list", "twice", "deep", "deeper than files are"],
)
def test_headers_that_are_no_json_object(tmp_path, header, message):
    with pytest.raises(InputError, match=message):
        read_header(write(tmp_path / "x", header))


@pytest.mark.row("6")
@pytest.mark.parametrize(
    "header, message",
    [
        (changed("b", dtype="F17"), "'b'.*unknown dtype 'F17'"),
        (changed("b", dtype=["F32"]), "'b'.*unknown dtype"),
        (changed("b", shape=[-3]), "'b'.*impossible shape"),
        (changed("b", shape=[3.0]), "'b'.*impossible shape"),
        (changed("b", shape="3"), "'b'.*impossible shape"),
        (changed("b", shape=[True, 3]), "'b'.*impossible shape"),
        (changed("b", shape=[1] * 100), "'b'.*impossible shape"),
        (changed("b", shape=[1 << 63]), "'b'.*impossible shape"),
        (changed("b", shape=[1 << 62] * 40), "'b'.*has 6 bytes where BF16.*needs 7"),
        (changed("b", data_offsets=[[[]], 22]), "'b'.*impossible byte range"),
        ({"n" * 600: PAIR["a"]}, "a name of 600 characters, more than 512"),
        (changed("b", shape=[1 << 40, 1 << 40]), "'b'.*has 6 bytes where BF16"),
        (changed("b", shape=[4]), "'b'.*has 6 bytes where BF16 .4. needs 8"),
        (changed("b", data_offsets=[22, 16]), "'b'.*impossible byte range"),
        (changed("b", data_offsets=[16]), "'b'.*impossible byte range"),
        (changed("b", data_offsets=[-6, 0]), "'b'.*impossible byte range"),
        (changed("b", data_offsets=[14, 20]), "'b'.*overlaps"),
        (changed("b", data_offsets=[0, 6]), "overlaps"),
        ({"b": {**PAIR["b"], "data_offsets": [16, 22]}}, "'b'.*leaves a gap"),
        ({"a": PAIR["a"]}, "6 bytes that belong to no tensor"),
        (changed("b", extra=1), "'b'.*not described by"),
        ({**PAIR, "b": 5}, "'b'.*not described by"),
        (changed("b", shape=[1 << 60], data_offsets=[16, 16 + (1 << 61)]), "'b'.*cut short"),
    ],
    ids=lambda value: "" if isinstance(value, dict) else value[:40],
)
def test_damaged_entries_name_the_tensor(tmp_path, header, message):
    with pytest.raises(InputError, match=message):
        read_header(write(tmp_path / "x.safetensors", header))


@pytest.mark.row("6")
def test_a_truncated_file_names_the_tensor(tmp_path):
    with pytest.raises(InputError, match="'b' in x.safetensors ends at byte .* so it is cut short"):
        read_header(write(tmp_path / "x.safetensors", PAIR, data=b"\0" * 20))


def test_widths_of_packed_dtypes(tmp_path):
    header = {
        "four": {"dtype": "F4", "shape": [2, 3], "data_offsets": [0, 3]},
        "six": {"dtype": "F6_E2M3", "shape": [4], "data_offsets": [3, 6]},
    }
    assert [info.nbytes for info in read_header(write(tmp_path / "x", header, data=b"\0" * 6)).values()] == [
        3,
        3,
    ]
    assert BITS["F8_E4M3"] == 8


def test_what_is_no_regular_file(tmp_path):
    with pytest.raises(InputError, match="not a regular file"):
        read_header(tmp_path)
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(InputError, match="not a regular file"):
        read_header(tmp_path / "pipe")
    with pytest.raises(InputError, match="absent cannot be read"):
        read_header(tmp_path / "absent")


def test_a_json_file_that_is_far_too_long(tmp_path):
    with (tmp_path / "config.json").open("wb") as file:
        file.truncate(100_000_000)
    with pytest.raises(InputError, match="100 MB; config and index files are limited to 64 MB"):
        read_json(tmp_path / "config.json")


@pytest.mark.row("6")
@given(st.data())
def test_no_damage_raises_anything_but_an_input_error(tmp_path_factory, data):
    path = write(tmp_path_factory.getbasetemp() / "fuzzed.safetensors", PAIR)
    content = bytearray(path.read_bytes())
    for _ in range(data.draw(st.integers(1, 4))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    path.write_bytes(content[: data.draw(st.integers(0, len(content)))])
    try:
        found = read_header(path)
    except InputError as error:
        assert str(error)
    else:
        assert sum(info.nbytes for info in found.values()) == 22


@pytest.mark.row("4", "18")
def test_names_of_files_that_a_file_may_give():
    assert all(map(is_file_name, ("model.safetensors", "model-00001-of-00002.safetensors", "größe 1.gguf")))
    wrong = (
        "",
        ".",
        "..",
        "a/b",
        "/a",
        "../a",
        "a\\b",
        "a\0b",
        "a\nb",
        "x" * 300,
        "\ud800",
        "a/",
        None,
        1,
        ["a"],
    )
    assert not any(map(is_file_name, wrong))
