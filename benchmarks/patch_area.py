"""Relaxed pairs by patch area and stage, from the clusters of a cache: `python benchmarks/patch_area.py STORE`."""

from __future__ import annotations

import sys

import torch
from common import draw_again
from rich.console import Console
from rich.table import Table

from pipeline.cache.cache import open_cache

AREAS = ((0.002, 0.02), (0.005, 0.05), (0.01, 0.05), (0.02, 0.1), (0.02, 0.15))


def main(store: str) -> None:
    cache = open_cache(store)
    table = Table("category", "patch area", *cache.settings.stages, title="relaxed pairs, percent")
    for category in cache.choose():
        clusters = category.read("clusters")
        for area in AREAS:
            _, relaxed = draw_again(category, torch.from_numpy(clusters).flatten(0, 1), area)
            shares = relaxed.double().view(*clusters.shape[:2], -1).mean((0, 2)).tolist()
            table.add_row(category.name, f"{area[0]} to {area[1]}", *(f"{100 * share:.1f}" for share in shares))
    Console().print(table)


if __name__ == "__main__":
    main(sys.argv[1])
