"""Finished blocks on disk, so that an interrupted run resumes after the last finished block.

A folder holds one file per finished block: the quantized tensors of its targets, and the small parameters
that were changed (norms into which scales were folded). The folder's name contains a hash of everything that
decides its contents, so a run never resumes with blocks of another model, recipe or text. Files are written
atomically.
"""

import hashlib
import json
import logging
import shutil
import time
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open

from qcore.base import tensor_file
from qcore.base.home import home
from qcore.formats import kinds
from qcore.formats.tensor import QuantizedTensor

KEPT_DAYS = 14
_log = logging.getLogger(__name__)
VERSION = 3  # increased whenever a method chooses other codes than before


def unfinished() -> Path:
    """Return the folder in the cache where runs keep their finished blocks. Blocks not modified for
    `KEPT_DAYS` are removed."""
    folder = home() / "unfinished"
    for old in folder.glob("blocks-*"):
        if time.time() - old.stat().st_mtime > KEPT_DAYS * 86400:
            shutil.rmtree(old, ignore_errors=True)
    return folder


class BlockStore:
    """Finished blocks of the run that `identity` (JSON-ready) describes, in a folder below `folder`; None
    keeps nothing."""

    def __init__(self, folder: Path | None, identity: dict):
        key = hashlib.sha256(json.dumps([VERSION, identity], sort_keys=True).encode()).hexdigest()[:16]
        self.folder = None if folder is None else Path(folder) / f"blocks-{key}"

    def read(self, position: int) -> tuple[dict[str, list[QuantizedTensor]], dict[str, torch.Tensor]] | None:
        """Return the quantized tensors per target name and the changed parameters of block number `position`;
        None if it is not finished, or if its file is damaged."""
        path = self._path(position)
        if path is None or not path.is_file():
            return None
        try:
            with safe_open(path, "pt") as file:
                layout = json.loads(file.metadata()["qcore"])
                targets = {
                    name: [_read(file, f"{name}/{i}", entry) for i, entry in enumerate(entries)]
                    for name, entries in layout.items()
                }
                changed = {
                    key.removeprefix("changed/"): file.get_tensor(key)
                    for key in file.keys()  # noqa: SIM118 (not a mapping)
                    if key.startswith("changed/")
                }
                return targets, changed
        except (OSError, SafetensorError, KeyError, TypeError, ValueError) as error:
            _log.warning("%s is damaged, so its block is quantized again: %s", path, error)
            return None

    def write(
        self, position: int, targets: dict[str, list[QuantizedTensor]], changed: dict[str, torch.Tensor]
    ) -> None:
        """Write the quantized tensors and changed parameters of a finished block."""
        path = self._path(position)
        if path is None:
            return
        tensors = {f"changed/{name}": tensor for name, tensor in changed.items()}
        layout: dict[str, list] = {}
        for name, weights in targets.items():
            layout[name] = [_describe(weight) for weight in weights]
            for i, weight in enumerate(weights):
                tensors |= {
                    f"{name}/{i}/{part}": tensor.contiguous() for part, tensor in weight.parts().items()
                }
        path.parent.mkdir(parents=True, exist_ok=True)
        tensor_file.write(tensors, path, {"qcore": json.dumps(layout)})

    def remove(self) -> None:
        """Remove the folder, once all blocks are done."""
        if self.folder is not None:
            shutil.rmtree(self.folder, ignore_errors=True)

    def _path(self, position: int) -> Path | None:
        return None if self.folder is None else self.folder / f"{position:05d}.safetensors"


def _describe(weight: QuantizedTensor) -> dict:
    return {"shape": list(weight.shape), "format": weight.format.to_dict()}


def _read(file, prefix: str, entry: dict) -> QuantizedTensor:
    format = kinds.from_dict(entry["format"])
    names = [name for name in file.keys() if name.startswith(f"{prefix}/")]  # noqa: SIM118 (not a mapping)
    return QuantizedTensor(
        format, tuple(entry["shape"]), **{name.rpartition("/")[2]: file.get_tensor(name) for name in names}
    )
