"""How far near copies lie from other parts: `python benchmarks/near_copies.py STORE CATEGORY [IMAGES] [PARTS]`.

So many normals, drawn at random, are compared as they are; then so many parts as shots, and with copies of their files.
The table holds by how much an image differs from its likest, of one part and of another, over what it differs from its
eighth nearest; near copies are those below `train.near_copies.CLOSER`.
"""

from __future__ import annotations

import io
import sys

import numpy as np
from common import integers
from numpy.typing import NDArray
from PIL import Image
from rich.console import Console
from rich.table import Table

from pipeline.cache.cache import open_cache
from train.groups import group_of
from train.near_copies import CLOSER, compared
from train.negatives.stream import NormalStream

Pixels = NDArray[np.uint8]
QUANTILES = (0.0, 0.01, 0.1, 0.5, 0.9, 1.0)


def shot(image: Pixels, rng: np.random.Generator) -> Pixels:
    """Another photograph: turned by 2 degrees, shifted by 3 %, of 5 % other light and contrast at most, with noise."""
    side, edge = len(image), len(image) // 8
    padded = Image.fromarray(np.pad(image, ((edge, edge), (edge, edge), (0, 0)), mode="edge"))
    x, y = (rng.uniform(-0.03, 0.03, 2) * side).tolist()
    moved = padded.rotate(rng.uniform(-2, 2), Image.Resampling.BICUBIC, translate=(x, y))
    seen = np.asarray(moved.crop((edge, edge, edge + side, edge + side)), np.float64)
    lit = (seen - seen.mean()) * rng.uniform(0.95, 1.05) + seen.mean() * rng.uniform(0.95, 1.05)
    return as_pixels(lit + rng.normal(0, 2, seen.shape[:2])[..., None])


def as_pixels(values: NDArray[np.float64]) -> Pixels:
    return values.round().clip(0, 255).astype(np.uint8)


def compressed(image: Pixels) -> Pixels:
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "JPEG", quality=75)
    return np.asarray(Image.open(buffer).convert("RGB"))


def sets(parts: list[Pixels]) -> dict[str, list[list[Pixels]]]:
    """By kind: images of every part, time after time."""
    rng = np.random.default_rng(0)
    return {
        "4 shots": [[shot(part, rng) for part in parts] for _ in range(4)],
        "compressed": [parts, [compressed(part) for part in parts]],
        "flipped": [parts, [part[:, ::-1] for part in parts], [part[::-1] for part in parts]],
        "x1.1": [parts, [as_pixels(1.1 * part.astype(np.float64)) for part in parts]],
        "x1.3": [parts, [as_pixels(1.3 * part.astype(np.float64)) for part in parts]],
    }


def add(table: Table, kind: str, images: list[Pixels], parts: int) -> None:
    """A row of the likest image of one part, and one of the likest of another; image i is of part i % parts."""
    others, over = compared(images)
    same = (np.arange(len(images)) % parts)[:, None] == others % parts
    groups = len(set(group_of(images, [""] * len(images)).tolist()))
    for name, chosen in (("one part", same), ("another", ~same)):
        if chosen.any():
            likest = np.where(chosen, over, np.inf).min(1)
            quantiles = (f"{value:.2f}" for value in np.quantile(likest, QUANTILES))
            wrong = "" if name == "one part" else str((chosen & (over < CLOSER)).any(1).sum())
            table.add_row(kind, name, *quantiles, f"{groups} of {len(images)} images, {parts} parts", wrong)


def main(store: str, category: str, count: int, parts: int) -> None:
    cached = open_cache(store)[category]
    rows = np.random.default_rng(1).permutation(cached.usable)
    read = NormalStream(cached, cached.usable).read
    headings = ("images", "likest of", *(f"q{100 * q:.0f}" for q in QUANTILES), "groups", "wrongly grouped")
    table = Table(*headings, title=category)
    normals = list(read(np.sort(rows[:count])).images)
    add(table, "normals", normals, len(normals))
    chosen = list(read(np.sort(rows[:parts])).images)
    for kind, several in sets(chosen).items():
        add(table, kind, [image for time in several for image in time], len(chosen))
    Console(width=120).print(table)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], *integers(sys.argv[3:], 100, 20))
