"""Where work runs: on this machine, or on a Ray cluster whose machines share their storage.

`Executor` names the place. `Cluster` runs commands there (see `cluster.py`). The callers define the commands:
`jobs/runner_ray.py` for recipes, `streaming/spread.py` for shards.
"""

import re
import socket
from dataclasses import dataclass

from qcore.base.errors import InputError, UnavailableError
from qcore.base.registry import unknown

LOCAL, RAY = "local", "ray"
AUTO, PATIENCE_SECONDS = "auto", 5.0
ADDRESS = re.compile(r"[\w.-]{1,253}:\d{1,5}|\[[0-9a-fA-F:]+\]:\d{1,5}")
START = "Start one with: ray start --head"
INSTALL = "Install it with: pip install -r requirements-ray.txt"


@dataclass(frozen=True)
class Executor:
    """`name` is "local" or "ray"; `address` is that of a running Ray cluster, such as "10.0.0.1:6379", or
    "auto" for the cluster that this machine belongs to. Raise `InputError` for another name, or for an
    address without Ray."""

    name: str = LOCAL
    address: str | None = None

    def __post_init__(self):
        if self.name not in (LOCAL, RAY):
            raise unknown("engine", str(self.name), (LOCAL, RAY))
        if self.name == LOCAL and self.address is not None:
            raise InputError(
                "An address was given, but work runs on this machine. Choose the engine ray, or leave the "
                "address out."
            )
        if self.address not in (None, AUTO) and not ADDRESS.fullmatch(self.address):
            raise InputError(
                f"The address {self.address[:60]!r} is not that of a Ray cluster. Use one such as "
                "10.0.0.1:6379, or auto."
            )

    @property
    def is_local(self) -> bool:
        """Whether the work runs on this machine, one process after another."""
        return self.name == LOCAL

    def check(self) -> None:
        """Raise `UnavailableError` if Ray is selected and not installed, or if no process listens at the
        address."""
        from importlib.util import find_spec

        if self.is_local:
            return
        if find_spec("ray") is None:
            raise UnavailableError(f"Ray is not installed, so the work cannot run on a cluster. {INSTALL}")
        if self.address not in (None, AUTO):
            host, _, port = self.address.rpartition(":")
            try:
                socket.create_connection((host, int(port)), timeout=PATIENCE_SECONDS).close()
            except OSError as error:
                raise UnavailableError(
                    f"No Ray cluster answers at {self.address} ({error.strerror or error}). {START}"
                ) from error
