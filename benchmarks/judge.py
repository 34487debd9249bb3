"""Do held-out negatives choose scorers as test images would? `python benchmarks/judge.py RUN...` of `cutswap` arms.

A run is the folder that `train` or an arm of `benchmark` wrote, trained on CutSwap negatives. The judge is the mean
image AUROC of held-out normals against negatives made of them. These negatives are of kinds that took no part in
training: random swaps, CutPaste and scars. For each category the script prints the judge beside the test AUROC of every
scorer, and their rank correlation over scorers. If it is high, a scorer can be chosen without an anomaly.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from statistics import mean

import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table
from scipy.stats import spearmanr

from pipeline.cache.cache import open_cache
from train.detector import Detector
from train.evaluation.image_metrics import image_auroc
from train.negatives.make import make_negative
from train.negatives.stream import NormalStream
from train.run_folder import RunFolder
from train.split import split_rows

KINDS = ("random-swap", "cutpaste", "cutpaste-scar")


def judge(cell: Path, store: str, category: str) -> dict[str, float]:
    """Mean AUROC over kinds, by scorer, of one cell's detector on its held-out normals and their negatives."""
    detector = Detector.load(cell, "cpu")
    cached = open_cache(store)[category]
    rows = split_rows(cached, cached.usable, detector.settings["held_out"]).held_out
    batch = NormalStream(cached, rows).read(rows)
    normal = detector.score(list(batch.images)).image
    found: dict[str, list[float]] = {name: [] for name in normal}
    for kind in KINDS:
        rng = np.random.default_rng(0)
        negatives = (make_negative(kind, normal, rng) for normal in batch.normals(cached.settings))
        negative = detector.score(np.rint(image).astype(np.uint8) for image in negatives).image
        labels: NDArray[np.int64] = np.repeat([0, 1], len(rows))
        for name, values in normal.items():
            found[name].append(image_auroc(labels, np.concatenate([values, negative[name]])) or 0.0)
    return {name: mean(values) for name, values in found.items()}


def main(runs: list[Path]) -> None:
    for run in runs:
        results = json.loads(RunFolder(run).results.read_text())
        for category, result in results["categories"].items():
            judged = judge(RunFolder(run).cell(category, 0).path, results["settings"]["store"], category)
            tested = {name: values[0] for name, values in result["scorers"].items()}
            if result["untrained_image_auroc"]:
                tested["untrained"] = result["untrained_image_auroc"][0]
            names = sorted(judged, key=judged.__getitem__)
            correlation = spearmanr([judged[name] for name in names], [tested[name] for name in names]).statistic
            title = f"{category}: image AUROC, percent, one seed; rank correlation {correlation:.2f}"
            table = Table("scorer", "judge", "test", title=title)
            for name in names:
                table.add_row(name, f"{100 * judged[name]:.1f}", f"{100 * tested[name]:.1f}")
            Console().print(table)


if __name__ == "__main__":
    main([Path(path) for path in sys.argv[1:]])
