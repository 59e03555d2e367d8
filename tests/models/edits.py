"""Changes to a checkpoint on disk."""

import json

from safetensors.torch import load_file, save_file

from qcore.models.checkpoint import SINGLE


def edit(path, change):
    content = json.loads(path.read_text())
    path.write_text(json.dumps(change(content) or content))


def retensor(folder, change):
    tensors = load_file(folder / SINGLE)
    change(tensors)
    save_file(tensors, folder / SINGLE, metadata={"format": "pt"})
