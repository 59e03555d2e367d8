"""Plain objects as text, between the dashboard's server and its worker process (see `resident.py`).

Dataclasses cross the pipe as pickles. The reader accepts no other classes, and in the server only those of
modules that are imported already: an answer can neither call a function there nor import torch.
"""

import base64
import io
import pickle
import sys
from dataclasses import is_dataclass
from pathlib import PosixPath
from typing import Any


def pack(value: Any) -> str:
    """Return `value` (numbers, texts, paths, dataclasses, and lists and dictionaries of them) as ASCII."""
    return base64.b64encode(pickle.dumps(value, pickle.HIGHEST_PROTOCOL)).decode("ascii")


def unpack(text: str, *, imports: bool = False) -> Any:
    """Return the value of `pack`. Raise `pickle.UnpicklingError` for a class that is not a dataclass, or
    whose module this process has not imported. With `imports` modules of qcore are imported."""
    return _Reader(io.BytesIO(base64.b64decode(text)), imports).load()


class _Reader(pickle.Unpickler):
    def __init__(self, file: io.BytesIO, imports: bool):
        super().__init__(file)
        self._imports = imports

    def find_class(self, module: str, name: str) -> Any:
        """Return the dataclass `name` of `module`."""
        if name == "PosixPath":
            return PosixPath
        if "." not in name and (module in sys.modules or (self._imports and module.startswith("qcore."))):
            found = super().find_class(module, name)
            if isinstance(found, type) and is_dataclass(found):
                return found
        raise pickle.UnpicklingError(f"{module}.{name} must not cross the pipe")
