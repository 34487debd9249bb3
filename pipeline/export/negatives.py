"""Write negatives out of a cache as ordinary image files, with a table of where each one came from."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path, PurePosixPath

import numpy as np
from PIL import Image

from pipeline.cache.cache import open_cache
from pipeline.errors import UserError
from pipeline.files import fitting, replacing_folder
from pipeline.swap import swap_patches

_ARRAYS = ("images", "paths", "valid", "pairs", "relaxed")
_TABLE = "negatives.csv"
_BOX = ("y1", "x1", "y2", "x2", "height", "width")


def export_negatives(store: str, out: Path, categories: Sequence[str] = (), per_stage: int = 1) -> int:
    """Write the negatives of the first `per_stage` pairs of every image and stage; returns how many.

    `out/<category>/<row>-<name>-<stage>-<pair>.png` for each, and `out/negatives.csv` with file, source, stage, pair,
    the box (y1, x1, y2, x2, height, width in pixels) and whether the pair was relaxed. Raises UserError where the
    cache has fewer pairs per stage than asked for.
    """
    chosen = open_cache(store).choose(categories)
    if per_stage > (pairs := min((category.settings.pairs for category in chosen), default=per_stage)):
        raise UserError(f"--per-stage {per_stage}: {store} holds {pairs} pairs per stage; ask for that or fewer")
    count = 0
    with replacing_folder(out, last=_TABLE) as new, (new / _TABLE).open("w", newline="") as file:
        table = csv.writer(file)
        table.writerow(["file", "source", "stage", "pair", *_BOX, "relaxed"])
        for category in chosen:
            (new / category.name).mkdir()
            for chunk in category.done_chunks():
                arrays, rows = category.read_chunk(chunk, _ARRAYS), category.rows_of(chunk)
                for i in np.flatnonzero(arrays["valid"]):
                    source = str(arrays["paths"][i])
                    stem = f"{rows[i]:06d}-{PurePosixPath(source).stem}"
                    for level, stage in enumerate(category.settings.stages):
                        for pair in range(per_stage):
                            box = arrays["pairs"][i, level, pair]
                            path = f"{category.name}/{fitting(f'{stem}-{stage}-{pair}.png')}"
                            Image.fromarray(swap_patches(arrays["images"][i], box)).save(new / path)
                            relaxed = int(arrays["relaxed"][i, level, pair])
                            table.writerow([path, source, stage, pair, *box.tolist(), relaxed])
                            count += 1
    return count
