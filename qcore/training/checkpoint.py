"""The state from which a killed run resumes: trained parameters, optimizer state, and progress.

    QCORE_HOME/unfinished/training-KEY/state.safetensors    the present state, replaced atomically
                                       best.safetensors     the parameters with the best validation loss
                                       begin/               the initial model, if it took long to make

KEY is a hash of everything that determines the outcome: the model's digest and all options. A run never
resumes from another run's state.
"""

from __future__ import annotations

import hashlib
import json
import logging
import shutil
import time
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open

from qcore.base import tensor_file
from qcore.base.errors import UnavailableError
from qcore.base.home import home

KEPT_DAYS = 14
_MOMENTS = ("exp_avg", "exp_avg_sq")
_log = logging.getLogger(__name__)


class TrainingState:
    """Return the folder for the run that `identity` (JSON-ready) describes."""

    def __init__(self, identity: dict):
        parent = home() / "unfinished"
        for old in parent.glob("training-*"):
            if time.time() - old.stat().st_mtime > KEPT_DAYS * 86400:
                shutil.rmtree(old, ignore_errors=True)
        key = hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()[:16]
        self.folder = parent / f"training-{key}"

    @property
    def begin(self) -> Path:
        """Return the folder of the initial model."""
        return self.folder / "begin"

    def write(self, parameters: dict[str, torch.nn.Parameter], optimizer, about: dict) -> None:
        """Store `parameters`, the optimizer's state and `about` (JSON-ready). Raise `UnavailableError` if the
        disk refuses."""
        tensors = {f"parameter/{name}": value.detach().cpu() for name, value in parameters.items()}
        for name, value in parameters.items():
            state = optimizer.state.get(value, {})
            tensors |= {f"{moment}/{name}": state[moment].cpu() for moment in _MOMENTS if moment in state}
        self._save("state", tensors, about)

    def write_best(self, parameters: dict[str, torch.nn.Parameter]) -> None:
        """Store the best `parameters` so far."""
        self._save("best", {name: value.detach().cpu() for name, value in parameters.items()}, {})

    def read(self, parameters: dict[str, torch.nn.Parameter], optimizer) -> dict | None:
        """Load a stored state into `parameters` and the optimizer. Return its `about`, or None if there is no
        state for these parameters; a damaged file counts as none, and training starts again."""
        found = self._load("state")
        if found is None or {name for name in found[0] if name.startswith("parameter/")} != {
            f"parameter/{name}" for name in parameters
        }:
            return None
        tensors, about = found
        with torch.no_grad():
            for name, value in parameters.items():
                value.copy_(tensors[f"parameter/{name}"])
                moments = {
                    moment: tensors[f"{moment}/{name}"].to(value.device)
                    for moment in _MOMENTS
                    if f"{moment}/{name}" in tensors
                }
                if moments:
                    optimizer.state[value] = moments | {"step": torch.tensor(float(about["step"]))}
        return about

    def read_best(self, parameters: dict[str, torch.nn.Parameter]) -> bool:
        """Load the best `parameters`; return whether there were any."""
        found = self._load("best")
        if found is None or set(found[0]) != set(parameters):
            return False
        with torch.no_grad():
            for name, value in parameters.items():
                value.copy_(found[0][name])
        return True

    def remove(self) -> None:
        """Remove the state: the result is saved, so the run never resumes."""
        shutil.rmtree(self.folder, ignore_errors=True)

    def _save(self, name: str, tensors: dict[str, torch.Tensor], about: dict) -> None:
        path = self.folder / f"{name}.safetensors"
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            tensor_file.write(tensors, path, {"qcore": json.dumps(about)})
        except OSError as error:
            raise UnavailableError(
                f"The state of the training cannot be kept in {self.folder}: {error}. Free some space there."
            ) from error

    def _load(self, name: str) -> tuple[dict[str, torch.Tensor], dict] | None:
        try:
            with safe_open(self.folder / f"{name}.safetensors", "pt") as file:
                names = file.keys()  # not a mapping
                return {name: file.get_tensor(name) for name in names}, json.loads(file.metadata()["qcore"])
        except FileNotFoundError:
            return None
        except (OSError, SafetensorError, KeyError, TypeError, ValueError) as error:
            _log.warning("%s is damaged and is ignored: %s", self.folder / f"{name}.safetensors", error)
            return None
