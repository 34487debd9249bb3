"""Share of relaxed pairs by patch area and stage, from the clusters in a cache: give its path."""

from __future__ import annotations

import sys

import torch
from rich.console import Console
from rich.table import Table

from pipeline.pairs import draw_pairs, map_keys
from pipeline.store import cache_settings, category_names, open_cache, open_category, read_all

AREAS = ((0.002, 0.02), (0.005, 0.05), (0.01, 0.05), (0.02, 0.1), (0.02, 0.15))


def main(store: str) -> None:
    root = open_cache(store)
    settings = cache_settings(root)
    table = Table("category", "patch area", *settings.stages, title="relaxed pairs, percent")
    for name in category_names(root):
        category = open_category(root, name)
        clusters = read_all(category, "clusters")
        keys = map_keys(settings.seed, [str(path) for path in read_all(category, "paths")], settings.stages)
        for area in AREAS:
            _, relaxed = draw_pairs(
                torch.from_numpy(clusters).flatten(0, 1),
                keys,
                pairs=settings.pairs,
                image_size=settings.image_size,
                area=area,
                aspect=settings.patch_aspect,
            )
            shares = relaxed.double().view(*clusters.shape[:2], -1).mean((0, 2)).tolist()
            table.add_row(name, f"{area[0]} to {area[1]}", *(f"{100 * share:.1f}" for share in shares))
    Console().print(table)


if __name__ == "__main__":
    main(sys.argv[1])
