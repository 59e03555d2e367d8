"""The control groups of this process (what a container, systemd or a scheduler limits it by), in versions 1
and 2, nested."""

from collections.abc import Iterator
from pathlib import Path

ROOT, MEMBERSHIP = Path("/sys/fs/cgroup"), Path("/proc/self/cgroup")
TWO = "unified"  # the folder of version 2 beside the controllers of version 1


def folders(controller: str, root: Path = ROOT, membership: Path = MEMBERSHIP) -> Iterator[tuple[int, Path]]:
    """Yield (version, folder) of this process's group and of each group around it, for `controller`: "cpu",
    "cpuacct" or "memory". Yield nothing on a system without control groups.

    In a container the path in /proc may not exist below the root, which is then the group itself.
    """
    try:
        lines = membership.read_text().splitlines()
    except OSError:
        return
    for line in lines:
        _, controllers, path = (*line.split(":", 2), "", "")[:3]
        if not path:
            continue
        if not controllers:
            version, bases = 2, [root, root / TWO]
        elif controller in controllers.split(","):
            version, bases = 1, [root / controllers, root / controller]
        else:
            continue
        for base in dict.fromkeys(bases):
            group = base / path.lstrip("/")
            for folder in (group, *group.parents):
                yield version, folder
                if folder == base:
                    break


def cpu_quota(root: Path = ROOT, membership: Path = MEMBERSHIP) -> float | None:
    """Return the processors' worth of time that the tightest group around this process may use: 0.5 for half
    of one processor, None without a limit."""
    return min((quota for quota, _, _ in _limits(root, membership)), default=None)


def cpu_seconds(root: Path = ROOT, membership: Path = MEMBERSHIP) -> float | None:
    """Return the processor seconds that all processes of the group with the tightest quota have used; None
    without a quota, or if the system does not report them."""
    limits = _limits(root, membership)
    if not limits:
        return None
    _, version, group = min(limits)
    try:
        if version == 2:
            stat = dict(line.split() for line in (group / "cpu.stat").read_text().splitlines())
            return int(stat["usage_usec"]) / 1e6
        for version, folder in folders("cpuacct", root, membership):
            # the two controllers may lie in different hierarchies, where the same path is the same group
            if version == 1 and _path(folder, root) == _path(group, root):
                return int((folder / "cpuacct.usage").read_text()) / 1e9
    except (OSError, ValueError, KeyError):
        pass
    return None


def _limits(root: Path, membership: Path) -> list[tuple[float, int, Path]]:
    """Return (quota, version, folder) of each group that has a quota."""
    return [
        (quota, version, folder)
        for version, folder in folders("cpu", root, membership)
        if (quota := _quota(version, folder)) is not None
    ]


def _path(folder: Path, root: Path) -> tuple[str, ...]:
    """Return the path of a group of version 1 within its hierarchy."""
    return folder.relative_to(root).parts[1:]


def _quota(version: int, folder: Path) -> float | None:
    try:
        if version == 2:
            most, period = (folder / "cpu.max").read_text().split()
        else:
            most, period = ((folder / f"cpu.cfs_{name}_us").read_text() for name in ("quota", "period"))
        return None if most == "max" or int(most) <= 0 else int(most) / int(period)
    except (OSError, ValueError, ZeroDivisionError):
        return None
