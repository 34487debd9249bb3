"""Every category, arm and seed of a data set, trained by one recipe and budget, and compared.

A cell is one category, arm and seed. Each arm's run folder, `<out>/<arm>`, is one that `train` could have written.
Finished cells are kept: the same command continues a stopped benchmark.
"""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace

from pipeline.cache.cache import find_cache
from pipeline.data.census import Note
from pipeline.data.datasets import load
from pipeline.errors import UserError
from pipeline.files import write_text
from pipeline.ownership import owned
from pipeline.precompute import precompute
from pipeline.views.drawing import try_to_draw
from train.benchmark.arms import QUICK_NORMALS, Benchmark, open_arm
from train.benchmark.cells import run_cells
from train.benchmark.comparison import FIGURES, Arms, comparison_markdown, write_rows
from train.benchmark.environment import describe_environment
from train.evaluation.cell_result import CellResult
from train.run import Run, examined_run
from train.training import refuse_other_cells, write_results


@dataclass(frozen=True)
class Compared:
    """The outcome of a benchmark: the cells of each arm, and what a user should know of the data behind them."""

    arms: dict[str, list[CellResult]]
    notes: list[Note]


def run_benchmark(benchmark: Benchmark) -> Compared:
    """Compute the cells that are missing, and write the tables and plots to `out`.

    A task is a cell. The scheduler "threads" computes one cell at a time in this process, on all cores. "processes"
    computes as many at once as there are cores, each with one torch thread, which is faster on a CPU.
    """
    ensure_cache(benchmark)
    runs = {arm: open_arm(benchmark, arm) for arm in benchmark.asked.arms}
    # All arms are scored on the same test images.
    first = examined_run(next(iter(runs.values())))
    runs = {arm: run.with_examined(first.examined) for arm, run in runs.items()}
    with ExitStack() as stack:
        stack.enter_context(owned(benchmark.out))
        for run in runs.values():
            stack.enter_context(run.folder.owned())
        for run in runs.values():
            refuse_other_cells(run, benchmark.seeds, "give another --out")
        run_cells(benchmark, runs)
        record = not benchmark.asked.quick
        arms = {arm: write_results(run, list(benchmark.seeds), record=record) for arm, run in runs.items()}
        _write_report(benchmark, runs, arms)
    return Compared(arms, first.notes)


def ensure_cache(benchmark: Benchmark) -> None:
    """Make the cache, or finish it with its own settings; a complete one stays as it is.

    UserError where it is of another data set or image size.
    """
    store, size, settings = benchmark.store, benchmark.asked.image_size, benchmark.cache_settings
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
    dataset = load(benchmark.dataset, benchmark.image_root, benchmark.categories)
    if benchmark.asked.quick:
        fewer = tuple(replace(category, train=category.train[:QUICK_NORMALS]) for category in dataset.categories)
        dataset = replace(dataset, categories=fewer)
    precompute([(dataset, store)], settings, benchmark.execution)


def _write_report(benchmark: Benchmark, runs: dict[str, Run], arms: Arms) -> None:
    out, cache = benchmark.out, next(iter(runs.values())).cache.settings

    def draw() -> None:
        from train.benchmark.comparison_plots import plot_comparison  # here, because it imports matplotlib

        plot_comparison(out, arms, benchmark.note)

    write_rows(out / "results.csv", arms)
    cells = [cell for found in arms.values() for cell in found]
    if any(cell.n_test for cell in cells):
        try_to_draw(draw, *(out / name for name in FIGURES))
    shared = {name: value for name, value in asdict(benchmark.training).items() if name != "negatives"}
    described = "; ".join(f"{name.replace('_', ' ')} {value}" for name, value in shared.items())
    counts = {cell.category: f"{cell.category} {cell.n_train} normals, {cell.n_test} test images" for cell in cells}
    seeds = ", ".join(str(seed) for seed in benchmark.seeds)
    images = f"Image size {cache.image_size}, backbone {cache.backbone}"
    parts = [
        f"## {benchmark.dataset}",
        *([f"**{benchmark.note}.**"] if benchmark.note else []),
        f"    {benchmark.command}",
        describe_environment(benchmark.execution.device),
        f"{images}; seeds {seeds}; {'; '.join(counts.values())}.",
        f"Every arm that trains a localiser: {described}.",
        comparison_markdown(arms, level=3),
    ]
    write_text(out / "results.md", "\n\n".join(parts))
