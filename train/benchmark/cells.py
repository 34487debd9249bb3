"""The cells of a benchmark: one category, arm and seed each, computed where Dask puts them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import lru_cache
from itertools import product
from uuid import uuid4

from pipeline.errors import RunError, UserError
from pipeline.progress import hide_progress, progress
from pipeline.threads import CORES
from pipeline.workers.schedule import run_tasks
from train.benchmark.arms import Benchmark, open_arm
from train.category_data import CategoryData
from train.run import Run, run_cell


def compute_cell(run_id: str, benchmark: Benchmark, category: str, arm: str, seed: int) -> str:
    """Compute one cell in whatever process Dask chose; returns the line of a mistake, "" where there was none.

    run_id: what tells the benchmark's run from every other.
    """
    try:
        with hide_progress():
            run_cell(open_arm(benchmark, arm, (category,)), _shared(run_id, benchmark, category), seed)
    except UserError as error:
        return f"{category}, {arm}, seed {seed}: {error}"
    return ""


@lru_cache(maxsize=1)  # of the category that this process computed last
def _shared(run_id: str, benchmark: Benchmark, category: str) -> CategoryData:
    """What the cells of a category share: every arm reads the same cache, split and test images.

    Only within a run: the workers of somebody's cluster live on, and the cache may have grown when the next one starts.
    """
    return open_arm(benchmark, benchmark.asked.arms[0], (category,)).data(category)


def run_cells(benchmark: Benchmark, runs: dict[str, Run]) -> None:
    """Compute every cell that is not in its run folder; RunError where one is not there afterwards."""
    execution, cores = benchmark.execution, CORES.count
    first = next(iter(runs.values()))
    at_once = (
        1 if execution.scheduler == "threads" else execution.workers or (1 if first.device.type == "cuda" else cores)
    )
    # The arms of one seed one after the other: they share more than the seeds of one arm.
    wanted = [(name, arm, seed) for name, seed, arm in product(first.normals, benchmark.seeds, runs)]
    pending = _unfinished(wanted, runs)
    threads = max(1, cores // max(1, min(at_once, len(pending))))
    run_id = uuid4().hex
    tasks = [(run_id, benchmark, *key) for key in pending]
    with progress("benchmark", len(wanted), "cells") as advance:
        advance(len(wanted) - len(pending))

        def on_result(problem: str) -> None:
            if problem:
                raise UserError(problem)
            advance(1)

        try:
            if tasks:
                run_tasks(compute_cell, tasks, replace(execution, workers=at_once), on_result, threads)
        finally:
            _shared.cache_clear()
    if left := _unfinished(wanted, runs):
        raise RunError(f"{len(left)} cells were not computed, the first {', '.join(map(str, left[0]))}")


def _unfinished(cells: Sequence[tuple[str, str, int]], runs: dict[str, Run]) -> list[tuple[str, str, int]]:
    """Those of the cells, each a category, arm and seed, that are not in their run folders."""
    return [(name, arm, seed) for name, arm, seed in cells if not runs[arm].folder.cell(name, seed).finished]
