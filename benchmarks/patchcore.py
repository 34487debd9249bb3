"""PatchCore with a cache's backbone, images and size: `python benchmarks/patchcore.py STORE [SEEDS] [CATEGORY ...]`.

The method is a recipe of `train/recipe.py`; its run folder goes to runs/patchcore.
"""

from __future__ import annotations

import sys
from pathlib import Path

from rich.console import Console

import pipeline as pipeline  # first: repairs torchvision where its compiled part does not fit torch
from train.evaluation.results import results_table
from train.run import open_run, train
from train.settings import PatchCoreSettings


def main(store: str, seeds: int, categories: list[str]) -> None:
    run = open_run(store, Path("runs/patchcore"), PatchCoreSettings(), categories=categories)
    Console().print(results_table(train(run, range(seeds))))


if __name__ == "__main__":
    main(sys.argv[1], int((sys.argv[2:] or ["1"])[0]), sys.argv[3:])
