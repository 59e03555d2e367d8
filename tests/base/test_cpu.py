"""The default number of threads follows affinity and quota, and gives way to the user's."""

import sys
from types import SimpleNamespace

import pytest

from qcore.base import cpu


@pytest.fixture
def machine(monkeypatch):
    """Pretend `cores` processors, a `quota`, and a torch that would start `threads` threads; return torch."""

    def pretend(cores: int, quota: float | None, threads: int) -> SimpleNamespace:
        torch = SimpleNamespace(threads=threads)
        torch.get_num_threads = lambda: torch.threads
        torch.set_num_threads = lambda count: setattr(torch, "threads", count)
        monkeypatch.setattr(cpu, "cores", lambda: cores)
        monkeypatch.setattr(cpu.cgroups, "cpu_quota", lambda: quota)
        monkeypatch.setitem(sys.modules, "torch", torch)
        monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
        return torch

    return pretend


@pytest.mark.parametrize(
    ("cores", "quota", "threads"),
    [(2, 0.5, 1), (2, 1.0, 1), (2, 1.5, 1), (64, 2.0, 2), (2, None, 2), (1, 4.0, 1), (2, 0.01, 1)],
)
def test_threads_fit_affinity_and_quota(machine, cores, quota, threads):
    torch = machine(cores, quota, cores)
    assert cpu.default_threads() == threads and cpu.capacity() == min(cores, quota or cores)
    cpu.limit_threads()
    assert torch.threads == threads


def test_fewer_threads_than_would_fit_stay(machine):
    torch = machine(8, 4.0, 3)
    cpu.limit_threads()
    assert torch.threads == 3


def test_the_user_decides(machine, monkeypatch):
    torch = machine(8, 1.0, 6)
    monkeypatch.setenv("OMP_NUM_THREADS", "6")
    cpu.limit_threads()
    assert torch.threads == 6


def test_without_torch_nothing_happens(monkeypatch):
    monkeypatch.delitem(sys.modules, "torch", raising=False)
    cpu.limit_threads()
    assert "torch" not in sys.modules
