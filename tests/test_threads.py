"""Work spread over the cores: in order, a bounded number ahead, one torch thread each, errors where they belong."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.threads import Cores, available_cores, torch_threads


@settings(max_examples=20, deadline=None)
@given(count=st.integers(1, 9), items=st.lists(st.integers(0, 3), max_size=60))
def test_results_come_in_the_order_of_the_items(count: int, items: list[int]) -> None:
    cores = Cores()
    cores.use(count)

    def slow(item: int) -> int:
        time.sleep(item / 5000)
        return item * 2

    assert list(cores.spread(slow, items)) == [item * 2 for item in items]


def test_every_thread_has_work_and_one_torch_thread_and_the_caller_keeps_its_own() -> None:
    cores, together, before = Cores(), threading.Barrier(5, timeout=10), torch.get_num_threads()
    cores.use(5)

    def who(_: int) -> tuple[str, int]:
        together.wait()  # passes only if five threads are here at once
        return threading.current_thread().name, torch.get_num_threads()

    found = list(cores.spread(who, range(5)))
    assert len({name for name, _ in found}) == 5 and {threads for _, threads in found} == {1}
    assert torch.get_num_threads() == before


def test_only_a_bounded_number_of_items_is_taken_ahead() -> None:
    cores, taken = Cores(), 0
    cores.use(3)

    def items() -> Iterator[int]:
        nonlocal taken
        while taken < 1000:
            taken += 1
            yield taken

    results = cores.spread(abs, items())
    for used in range(1, 200):
        assert next(results) == used
        assert taken - used <= 4 * 3


def test_an_error_is_raised_in_its_place_and_ends_the_work() -> None:
    cores, done = Cores(), []
    cores.use(2)

    def work(item: int) -> int:
        if item == 5:
            raise ValueError("five")
        done.append(item)
        return item

    found: list[int] = []
    with pytest.raises(ValueError, match="five"):
        found.extend(cores.spread(work, range(10_000)))
        pytest.fail("nothing was raised")
    assert len(done) < 100


def test_torch_threads_are_put_back_also_after_an_error() -> None:
    before = torch.get_num_threads()
    with pytest.raises(KeyError), torch_threads(before + 1):
        assert torch.get_num_threads() == before + 1
        raise KeyError
    assert torch.get_num_threads() == before


@pytest.mark.slow
@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="another C library")
def test_memory_that_is_kept_is_not_faulted_in_again() -> None:
    code = """
import resource, sys
import numpy as np
from pipeline.memory import keep_memory
if sys.argv[1] == "kept":
    assert keep_memory()
for _ in range(3):
    np.ones(2**25)
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(20):
    np.ones(2**25)
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""
    runs = [
        subprocess.run([sys.executable, "-c", code, how], capture_output=True, text=True) for how in ("kept", "not")
    ]
    assert [run.stderr for run in runs] == ["", ""]
    faults = [int(run.stdout) for run in runs]
    assert faults[0] < faults[1] / 10


@pytest.mark.parametrize(
    ("groups", "files", "cores"),
    [
        ("0::/\n", {}, 16),
        ("0::/\n", {"cpu.max": "max 100000\n"}, 16),
        ("0::/\n", {"cpu.max": "150000 100000\n"}, 2),
        ("0::/\n", {"cpu.max": "5000 100000\n"}, 1),
        ("0::/\n", {"cpu.max": "9900000 100000\n"}, 16),
        ("0::/\n", {"cpu.max": "nonsense\n"}, 16),
        ("0::/a/b\n", {"a/cpu.max": "300000 100000\n", "a/b/cpu.max": "max 100000\n"}, 3),
        ("0::/../host\n", {"cpu.max": "200000 100000\n"}, 2),
        ("4:cpu,cpuacct:/x\n", {"cpu,cpuacct/x/cpu.cfs_quota_us": "7\n", "cpu,cpuacct/x/cpu.cfs_period_us": "1 "}, 7),
        ("4:cpu,cpuacct:/x\n", {"cpu/cpu.cfs_quota_us": "250000\n", "cpu/cpu.cfs_period_us": "100000\n"}, 3),
        ("4:cpu:/docker/7\n", {"cpu/cpu.cfs_quota_us": "-1\n", "cpu/cpu.cfs_period_us": "100000\n"}, 16),
        ("3:memory:/m\n", {"memory/m/cpu.cfs_quota_us": "100000\n", "memory/m/cpu.cfs_period_us": "100000\n"}, 16),
        ("damaged\n", {"cpu.max": "100000 100000\n"}, 16),
        ("4:cpu:/\n0::/s\n", {"unified/s/cpu.max": "400000 100000\n"}, 4),
    ],
)
def test_no_more_cores_than_the_container_may_use(
    groups: str, files: Mapping[str, str], cores: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("os.sched_getaffinity", lambda _: set(range(16)), raising=False)
    for name, text in {"proc/self/cgroup": groups, **{f"sys/fs/cgroup/{name}": t for name, t in files.items()}}.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    assert available_cores(tmp_path) == cores


def test_cores_without_control_groups(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.sched_getaffinity", lambda _: {0, 3, 5}, raising=False)
    assert available_cores(tmp_path) == 3 and 1 <= available_cores() <= 3


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="the system binds no process to cores")
def test_a_process_bound_to_one_core_computes_in_one_thread() -> None:
    bind = "import os; os.sched_setaffinity(0, [min(os.sched_getaffinity(0))])"
    code = f"{bind}; from pipeline.threads import CORES; print(CORES.count)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "1\n"
