"""The cells of a benchmark: one category, arm and seed each, computed where Dask puts them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import product
from uuid import uuid4

from pipeline.errors import RunError, UserError
from pipeline.progress import hide_progress, progress
from pipeline.threads import CORES
from pipeline.workers.schedule import run_tasks
from train.benchmark.arms import Benchmark, open_arm
from train.category_data import CategoryData
from train.made_of import MadeOf
from train.run import Run
from train.training import run_cell


@dataclass(frozen=True)
class Task:
    """One cell: category, arm, seed, and what it is made of; run_id: what tells the benchmark's run from every other.

    left_out: the test images of the category that cannot be read.
    """

    run_id: str
    category: str
    arm: str
    seed: int
    made_of: MadeOf
    left_out: frozenset[str]

    @property
    def name(self) -> str:
        """What messages call it."""
        return f"{self.category}, {self.arm}, seed {self.seed}"


def compute_cell(benchmark: Benchmark, task: Task) -> str:
    """Compute one cell in whatever process Dask chose; returns the line of a mistake, "" where there was none."""
    try:
        with hide_progress():
            run = open_arm(benchmark, task.arm, (task.category,))
            data = _shared(task.run_id, benchmark, task.category, task.left_out)
            run_cell(run, data, task.seed, task.made_of)
    except UserError as error:
        return f"{task.name}: {error}"
    return ""


@lru_cache(maxsize=1)  # of the category that this process computed last
def _shared(run_id: str, benchmark: Benchmark, category: str, left_out: frozenset[str]) -> CategoryData:
    """What the cells of a category share: every arm reads the same cache, split and test images.

    Only within a run: the workers of somebody's cluster live on, and the cache may have grown when the next one starts.
    """
    return open_arm(benchmark, benchmark.asked.arms[0], (category,)).without(left_out).data(category)


def run_cells(benchmark: Benchmark, runs: Mapping[str, Run]) -> None:
    """Compute every cell that is not in its run folder; RunError where one is not there afterwards.

    runs: of each arm, examined.
    """
    execution, cores = benchmark.execution, CORES.count
    first = next(iter(runs.values()))
    at_once = (
        1 if execution.scheduler == "threads" else execution.workers or (1 if first.device.type == "cuda" else cores)
    )
    run_id = uuid4().hex
    made_of = {(arm, name): run.made_of(name) for arm, run in runs.items() for name in run.normals}
    # The arms of one seed one after the other: they share more than the seeds of one arm.
    wanted = [
        Task(run_id, name, arm, seed, made_of[arm, name], frozenset(first.examined[name].left_out))
        for name, seed, arm in product(first.normals, benchmark.seeds, runs)
    ]
    pending = _unfinished(wanted, runs)
    threads = max(1, cores // max(1, min(at_once, len(pending))))
    with progress("benchmark", len(wanted), "cells") as advance:
        advance(len(wanted) - len(pending))

        def on_result(problem: str) -> None:
            if problem:
                raise UserError(problem)
            advance(1)

        try:
            if pending:
                tasks = [(benchmark, task) for task in pending]
                run_tasks(compute_cell, tasks, replace(execution, workers=at_once), on_result, threads)
        finally:
            _shared.cache_clear()
    if left := _unfinished(wanted, runs):
        raise RunError(f"{len(left)} cells were not computed, the first {left[0].name}")


def _unfinished(cells: Sequence[Task], runs: Mapping[str, Run]) -> list[Task]:
    """Those of the cells that are not in their run folders."""
    return [cell for cell in cells if not runs[cell.arm].folder.cell(cell.category, cell.seed).finished]
