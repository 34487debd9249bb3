"""Every category, arm and seed of a data set, trained by one recipe and budget, and what they come to side by side.

A cell is one category, arm and seed. Each arm's run folder, `<out>/<arm>`, is one that `train` could have written, and
a cell that is finished there is read back: the same command goes on where it was stopped.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from itertools import product
from pathlib import Path

from pipeline.cache.cache import find_cache
from pipeline.datasets import load
from pipeline.errors import RunError, UserError
from pipeline.execution import Execution
from pipeline.files import write_text
from pipeline.precompute import precompute
from pipeline.progress import progress, unshown
from pipeline.schedule import run_tasks
from pipeline.settings import PrecomputeSettings
from train.cell_result import CellResult
from train.comparison import Arms, arm_folder, comparison_markdown, write_rows
from train.comparison_plots import plot_comparison
from train.machine import describe_machine
from train.run import Run, open_run, run_cell, write_results
from train.settings import BenchmarkSettings, PatchCoreSettings, Settings, TrainSettings

# A quick look: does all of it work here? Its figures say nothing.
QUICK = "QUICK LOOK, no measurement"
_QUICK_STEPS = 5
_QUICK_NORMALS = 64
_QUICK_TESTS = 12
_QUICK_SIZE = 128


@dataclass(frozen=True)
class Benchmark:
    """What is compared: arms and seeds on some or all categories of a data set; see `run_benchmark`.

    store: the cache; made first where it is not there or not finished. root: of the data set, None for its default.
    command: what was typed, for `results.md`.
    """

    dataset: str
    store: str
    out: Path
    asked: BenchmarkSettings
    execution: Execution
    categories: tuple[str, ...] = ()
    root: str | None = None
    command: str = ""

    @property
    def seeds(self) -> range:
        """From 0 on."""
        return range(self.asked.seeds or (1 if self.asked.quick else 3))

    @property
    def training(self) -> TrainSettings:
        """What all trained arms share."""
        return TrainSettings(steps=_QUICK_STEPS) if self.asked.quick else TrainSettings()

    def settings(self, arm: str) -> Settings:
        """The training with the arm's negatives, or PatchCore's settings with the same split of the normals."""
        training = self.training
        if arm == "patchcore":
            return PatchCoreSettings(held_out=training.held_out, false_alarms=training.false_alarms)
        return replace(training, negatives="none" if arm == "untrained" else arm)

    @property
    def note(self) -> str:
        """What to say beside every figure: nothing, or that it is none."""
        what = f"{_QUICK_STEPS} steps, at most {_QUICK_TESTS} test images a label"
        return f"{QUICK}: {what}" if self.asked.quick else ""


def run_benchmark(benchmark: Benchmark) -> dict[str, list[CellResult]]:
    """Compute what is not there yet, write the tables and plots to `out`, and return what each arm came to.

    A task of the benchmark's execution is a cell, and so a worker has one category at a time. "threads" takes the cells
    one after the other in this process, each with all cores; "processes" as many at once as there are cores, each with
    one torch thread, which is faster on a CPU.
    """
    ready_cache(benchmark)
    runs = {arm: _open(benchmark, arm) for arm in benchmark.asked.arms}
    for run in runs.values():
        run.folder.require(run.kept(), "give another --out")
    for run in runs.values():
        run.folder.keep(run.kept())
    _run_cells(benchmark, runs)
    arms = {arm: write_results(run, list(benchmark.seeds)) for arm, run in runs.items()}
    _write_report(benchmark, runs, arms)
    return arms


def ready_cache(benchmark: Benchmark) -> None:
    """Make the cache, or finish it with its own settings; one that is whole is taken as it is.

    UserError where it is of another data set or image size.
    """
    store, size = benchmark.store, benchmark.asked.image_size
    default = _QUICK_SIZE if benchmark.asked.quick else PrecomputeSettings().image_size
    settings = PrecomputeSettings(image_size=size or default)
    if cache := find_cache(store):
        settings, found = cache.settings, cache.dataset
        if found != benchmark.dataset:
            raise UserError(f"{store} is a cache of {found}, not of {benchmark.dataset}: give another --store")
        if size not in (None, settings.image_size):
            raise UserError(
                f"{store} holds images of {settings.image_size} pixels, not {size}:"
                " leave out --image-size or give another --store"
            )
        if cache.complete and set(benchmark.categories) <= set(cache.names()):
            return
    dataset = load(benchmark.dataset, benchmark.root, benchmark.categories)
    if benchmark.asked.quick:
        fewer = tuple(replace(category, train=category.train[:_QUICK_NORMALS]) for category in dataset.categories)
        dataset = replace(dataset, categories=fewer)
    precompute([(dataset, store)], settings, benchmark.execution)


def compute_cell(benchmark: Benchmark, category: str, arm: str, seed: int) -> str:
    """Compute one cell in whatever process Dask chose; returns the line of a mistake, "" where there was none."""
    try:
        with unshown():
            run_cell(_open(benchmark, arm, (category,)), category, seed)
    except UserError as error:
        return f"{category}, {arm}, seed {seed}: {error}"
    return ""


def _open(benchmark: Benchmark, arm: str, categories: Sequence[str] | None = None) -> Run:
    run = open_run(
        benchmark.store,
        arm_folder(benchmark.out, arm).path,
        benchmark.settings(arm),
        categories=benchmark.categories if categories is None else categories,
        device=benchmark.execution.device,
        resume=True,
        root=benchmark.root,
    )
    return run.with_fewer_tests(_QUICK_TESTS) if benchmark.asked.quick else run


def _run_cells(benchmark: Benchmark, runs: dict[str, Run]) -> None:
    execution, cores = benchmark.execution, os.cpu_count() or 1
    first = next(iter(runs.values()))
    at_once = (
        1 if execution.scheduler == "threads" else execution.workers or (1 if first.device.type == "cuda" else cores)
    )
    wanted = list(product(first.normals, runs, benchmark.seeds))
    open_cells = _unfinished(wanted, runs)
    threads = max(1, cores // max(1, min(at_once, len(open_cells))))
    tasks = [(benchmark, *key) for key in open_cells]
    with progress("benchmark", len(wanted), "cells") as advance:
        advance(len(wanted) - len(open_cells))

        def on_result(problem: str) -> None:
            if problem:
                raise UserError(problem)
            advance(1)

        if tasks:
            run_tasks(compute_cell, tasks, replace(execution, workers=at_once), on_result, threads)
    if left := _unfinished(wanted, runs):
        raise RunError(f"{len(left)} cells were not computed, the first {', '.join(map(str, left[0]))}")


def _unfinished(cells: Sequence[tuple[str, str, int]], runs: dict[str, Run]) -> list[tuple[str, str, int]]:
    """Those of the cells, each a category, arm and seed, that are not in their run folders."""
    return [(name, arm, seed) for name, arm, seed in cells if not runs[arm].folder.cell(name, seed).finished]


def _write_report(benchmark: Benchmark, runs: dict[str, Run], arms: Arms) -> None:
    out, cache = benchmark.out, next(iter(runs.values())).cache.settings
    write_rows(out / "results.csv", arms)
    plot_comparison(out, arms, benchmark.note)
    shared = {name: value for name, value in asdict(benchmark.training).items() if name != "negatives"}
    described = "; ".join(f"{name.replace('_', ' ')} {value}" for name, value in shared.items())
    cells = [cell for found in arms.values() for cell in found]
    counts = {cell.category: f"{cell.category} {cell.n_train} normals, {cell.n_test} test images" for cell in cells}
    seeds = ", ".join(str(seed) for seed in benchmark.seeds)
    images = f"Image size {cache.image_size}, backbone {cache.backbone}"
    parts = [
        f"## {benchmark.dataset}",
        *([f"**{benchmark.note}.**"] if benchmark.note else []),
        f"    {benchmark.command}",
        describe_machine(benchmark.execution.device),
        f"{images}; seeds {seeds}; {'; '.join(counts.values())}.",
        f"Every arm but untrained and patchcore: {described}.",
        comparison_markdown(arms, level=3),
    ]
    write_text(out / "results.md", "\n\n".join(parts))
