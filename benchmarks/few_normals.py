"""How many normals a detector needs: `python benchmarks/few_normals.py STORE CATEGORY [COUNT...]`.

Each count of normals, spread over the category, is split as `train` splits them, and the default detector is trained on
them with seed 0. The table holds test metrics in percent, of the detector and of the same score without its localiser.
"""

from __future__ import annotations

import sys
import tempfile
from dataclasses import replace
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.table import Table

from pipeline.progress import hide_progress
from train.evaluation.cell_result import CellResult
from train.run import Run, open_run
from train.settings import TrainSettings
from train.split import Normals
from train.training import train

# A count beyond the category's takes all.
COUNTS = (10, 20, 50, 100, 1_000_000)


def with_fewer_normals(run: Run, category: str, count: int) -> Run:
    """The run on so many normals of the category, spread over its list."""
    cached = run.cache[category]
    usable = cached.usable
    rows = usable[np.linspace(0, len(usable) - 1, min(count, len(usable))).round().astype(int)]
    return replace(run, normals={category: Normals.of(cached, rows)})


def measure(store: str, category: str, count: int) -> CellResult:
    """The result of the default detector with so many normals."""
    with tempfile.TemporaryDirectory() as name, hide_progress():
        run = open_run(store, Path(name) / "run", TrainSettings(), categories=[category])
        return train(with_fewer_normals(run, category, count)).cells[0]


def main(store: str, category: str, counts: list[int]) -> None:
    table = Table("trained on", "untrained", "image AUROC", "AUPRO", title=f"{category}: percent, seed 0")
    for count in counts:
        found = measure(store, category, count)
        values = found.scorers.get("untrained"), found.metrics["image_auroc"], found.metrics["aupro"]
        shown = ("-" if value is None else f"{100 * value:.1f}" for value in values)
        table.add_row(str(found.n_train), *shown)
        Console(stderr=True).print(f"{count} normals: {values}")
    Console().print(table)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], [int(count) for count in sys.argv[3:]] or list(COUNTS))
