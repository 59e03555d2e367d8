"""Quotas and used time of control groups against files made by hand, in both versions, nested."""

from pathlib import Path

import pytest

from qcore.base import cgroups


def version_2(folder: Path, most: str, used: int = 0) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "cpu.max").write_text(f"{most}\n")
    (folder / "cpu.stat").write_text(f"usage_usec {used}\nuser_usec 1\n")


def version_1(folder: Path, quota: int, period: int = 100_000, used: int | None = None) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "cpu.cfs_quota_us").write_text(f"{quota}\n")
    (folder / "cpu.cfs_period_us").write_text(f"{period}\n")
    if used is not None:
        (folder / "cpuacct.usage").write_text(f"{used}\n")


def member(root: Path, text: str) -> tuple[Path, Path]:
    (root / "membership").write_text(text)
    return root, root / "membership"


def test_the_tightest_of_nested_groups_counts_in_version_2(tmp_path):
    version_2(tmp_path / "a" / "b" / "c", "max 100000", 1_000_000)
    version_2(tmp_path / "a" / "b", "50000 100000", 2_000_000)
    version_2(tmp_path / "a", "150000 100000", 3_000_000)
    place = member(tmp_path, "0::/a/b/c\n")
    assert cgroups.cpu_quota(*place) == 0.5 and cgroups.cpu_seconds(*place) == 2.0


def test_the_tightest_of_nested_groups_counts_in_version_1(tmp_path):
    version_1(tmp_path / "cpu,cpuacct" / "a" / "b", 300_000, used=1_000_000_000)
    version_1(tmp_path / "cpu,cpuacct" / "a", 30_000, 20_000, used=5_000_000_000)
    version_1(tmp_path / "cpu,cpuacct", -1, used=9_000_000_000)
    place = member(tmp_path, "5:memory:/\n4:cpu,cpuacct:/a/b\n0::/\n")
    assert cgroups.cpu_quota(*place) == 1.5 and cgroups.cpu_seconds(*place) == 5.0


def test_controllers_in_hierarchies_of_their_own(tmp_path):
    version_1(tmp_path / "cpu" / "job", 50_000)
    version_1(tmp_path / "cpuacct" / "job", -1, used=7_000_000_000)
    assert cgroups.cpu_seconds(*member(tmp_path, "2:cpuacct:/job\n1:cpu:/job\n")) == 7.0
    # time of another group than the limited one says nothing
    assert cgroups.cpu_seconds(*member(tmp_path, "2:cpuacct:/\n1:cpu:/job\n")) is None


def test_version_2_beside_version_1(tmp_path):
    version_1(tmp_path / "cpu" / "job", 200_000)
    version_2(tmp_path / "unified" / "job", "100000 100000", 4_000_000)
    place = member(tmp_path, "1:cpu:/job\n0::/job\n")
    assert cgroups.cpu_quota(*place) == 1.0 and cgroups.cpu_seconds(*place) == 4.0


def test_inside_a_container_the_root_is_the_group(tmp_path):
    version_2(tmp_path, "200000 100000", 6_000_000)
    place = member(tmp_path, "0::/../outside\n")
    assert cgroups.cpu_quota(*place) == 2.0 and cgroups.cpu_seconds(*place) == 6.0


@pytest.mark.parametrize(
    "text",
    ["", "garbage\n", "max\n", "x y\n", "-5 100000\n", "100000 0\n"],
    ids=lambda text: text.strip() or "empty",
)
def test_files_that_say_nothing_are_no_limit(tmp_path, text):
    (tmp_path / "cpu.max").write_text(text)
    place = member(tmp_path, "0::/\nnonsense\n")
    assert cgroups.cpu_quota(*place) is None and cgroups.cpu_seconds(*place) is None


def test_without_control_groups_there_is_no_limit(tmp_path):
    assert cgroups.cpu_quota(tmp_path, tmp_path / "missing") is None
