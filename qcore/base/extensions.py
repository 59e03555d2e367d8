"""Formats, methods and engines defined outside the package.

An extension is a Python module that registers what it adds when it is imported. Every process of qcore
imports the extensions the first time it reads a registry that they may extend:

- modules and files named in QCORE_EXTENSIONS, separated as in PATH: `my_package.formats` or
  `/path/to/formats.py`;
- entry points of the group "qcore.extensions" of installed packages.

`register` adds an extension to this process and to the processes it starts: each recipe of a comparison runs
in a separate one.
"""

from __future__ import annotations

import importlib
import importlib.util
import os
import sys
from collections.abc import Callable, Iterator
from importlib.metadata import entry_points
from pathlib import Path
from types import ModuleType
from typing import TypeVar

from qcore.base.errors import InputError
from qcore.base.registry import Registry

VARIABLE, GROUP = "QCORE_EXTENSIONS", "qcore.extensions"
T = TypeVar("T")
_loaded: dict[str, ModuleType] = {}
_done = False


class ExtensibleRegistry(Registry[T]):
    """A registry that imports the extensions, and before them the entries of `prepare`, on the first read."""

    def __init__(self, kind: str, prepare: Callable[[], None] | None = None):
        super().__init__(kind)
        self._prepare = prepare

    def __getitem__(self, name: str) -> T:
        self._complete()
        return super().__getitem__(name)

    def __contains__(self, name: object) -> bool:
        self._complete()
        return super().__contains__(name)

    def __iter__(self) -> Iterator[str]:
        self._complete()
        return super().__iter__()

    def get(self, name: str) -> T | None:
        """Return the entry called `name`, or None."""
        self._complete()
        return self._entries.get(name)

    def values(self) -> list[T]:
        """Return all entries, in the order of their registration."""
        self._complete()
        return self.known()

    def items(self) -> list[tuple[str, T]]:
        """Return all names and entries."""
        self._complete()
        return list(self._entries.items())

    def known(self) -> list[T]:
        """Return the entries registered so far, without importing the extensions."""
        return list(self._entries.values())

    def enter(self, name: str, entry: T) -> None:
        """Enter `entry` under `name`; entering the same again changes nothing. Raise `ValueError` if another
        entry has the name."""
        if self._entries.setdefault(name, entry) != entry:
            raise ValueError(f"{self.kind} {name!r} is registered twice")

    def _complete(self) -> None:
        prepare, self._prepare = self._prepare, None
        if prepare is not None:
            prepare()
        load()


def load() -> None:
    """Import all extensions, once per process. Raise `InputError` naming one that cannot be imported."""
    global _done
    if _done:
        return
    _done = True  # importing an extension may read registries itself
    try:
        for entry in filter(None, os.environ.get(VARIABLE, "").split(os.pathsep)):
            _load(entry)
        for point in entry_points(group=GROUP):
            _load(point.value.partition(":")[0])
    except BaseException:
        _done = False
        raise


def loaded() -> list[str]:
    """Return the names or files of the extensions of this process, for records."""
    return sorted(_loaded)


def register(extension: ModuleType | str | Path) -> ModuleType:
    """Import an extension (a module, its name or its file) in this process and in those it starts, and return
    the module. Raise `InputError` if it cannot be imported."""
    load()
    if isinstance(extension, ModuleType):
        name = extension.__name__ if "." in extension.__name__ else str(extension.__file__)
        _loaded[name] = extension
    else:
        name = str(extension)
        name = str(Path(name).absolute()) if name.endswith(".py") else name
        _load(name)
    named = list(filter(None, os.environ.get(VARIABLE, "").split(os.pathsep)))
    if name not in named:
        os.environ[VARIABLE] = os.pathsep.join([*named, name])
    return _loaded[name]


def _load(name: str) -> None:
    if name in _loaded:
        return
    try:
        _loaded[name] = _from_file(Path(name)) if name.endswith(".py") else importlib.import_module(name)
    except Exception as error:  # its import may raise anything; the message must name the extension
        raise InputError(
            f"The extension {name} cannot be imported: {type(error).__name__}: {error}. It is named in "
            f"{VARIABLE} or by an installed package."
        ) from error


def _from_file(path: Path) -> ModuleType:
    files = ((each, getattr(each, "__dict__", {}).get("__file__")) for each in list(sys.modules.values()))
    known = next((each for each, file in files if file == str(path)), None)
    if known is not None:  # imported by name already
        return known
    name = path.stem if path.stem not in sys.modules else f"qcore_extension_{path.stem}"
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise ImportError(f"{path} is not a Python file")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses look up their module in sys.modules
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    return module
