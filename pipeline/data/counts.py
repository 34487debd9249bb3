"""How many images each published data set holds, and the comparison of a copy with that.

MVTec AD: Table 1 of Bergmann et al., IJCV 129, 2021. VisA: ``split_csv/1cls.csv`` of Zou et al., ECCV 2022.
ELPV: package elpv-dataset 1.0, labels 0 and 1, split by `pipeline.data.published.elpv_trains_on`.
"""

from __future__ import annotations

from dataclasses import dataclass

from pipeline.data.datasets import find_categories, nothing_found
from pipeline.data.samples import Category
from pipeline.errors import UserError

# {data set: {category: (train, normal test images, anomalous test images)}}
COUNTS: dict[str, dict[str, tuple[int, int, int]]] = {
    "mvtec": {
        "bottle": (209, 20, 63),
        "cable": (224, 58, 92),
        "capsule": (219, 23, 109),
        "carpet": (280, 28, 89),
        "grid": (264, 21, 57),
        "hazelnut": (391, 40, 70),
        "leather": (245, 32, 92),
        "metal_nut": (220, 22, 93),
        "pill": (267, 26, 141),
        "screw": (320, 41, 119),
        "tile": (230, 33, 84),
        "toothbrush": (60, 12, 30),
        "transistor": (213, 60, 40),
        "wood": (247, 19, 60),
        "zipper": (240, 32, 119),
    },
    "visa": {
        "candle": (900, 100, 100),
        "capsules": (542, 60, 100),
        "cashew": (450, 50, 100),
        "chewinggum": (453, 50, 100),
        "fryum": (450, 50, 100),
        "macaroni1": (900, 100, 100),
        "macaroni2": (900, 100, 100),
        "pcb1": (904, 100, 100),
        "pcb2": (901, 100, 100),
        "pcb3": (905, 101, 100),
        "pcb4": (904, 101, 100),
        "pipe_fryum": (450, 50, 100),
    },
    "elpv": {
        "mono": (418, 170, 313),
        "poly": (665, 255, 402),
    },
}

# Data sets with one mask for each anomalous test image.
MASKED = frozenset({"mvtec", "visa"})


@dataclass(frozen=True)
class CountRow:
    """Images found in one category against the published number.

    `expected` is (train, test_good, test_defect), None for a category that was not published. `status` is
    "whole", "not found", "unknown" (nothing to compare with) or what differs: "missing 3 train, extra 1
    masks".
    """

    category: str
    train: int
    test_good: int
    test_defect: int
    masks: int
    expected: tuple[int, int, int] | None
    status: str


def compare_counts(name: str, image_root: str | None = None) -> list[CountRow]:
    """Compare what lies below `image_root` with the published counts; one row per category, sorted by name.

    Published categories that are not there have a row too. Only names are looked at.

    Raises `UserError` for an unknown name or a missing root, and for `folder` where nothing is found.
    """
    found = find_categories(name, image_root)
    expected = COUNTS.get(name, {})
    if not found.layout.categories and not expected:
        raise UserError(nothing_found(name, found))
    there = {category.name: category for category in found.layout.categories}
    return [_count_row(name, category, there.get(category)) for category in sorted(there.keys() | expected.keys())]


def _count_row(name: str, category: str, found: Category | None) -> CountRow:
    expected = COUNTS.get(name, {}).get(category)
    if found is None:
        return CountRow(category, 0, 0, 0, 0, expected, "not found")
    good = sum(sample.label == 0 for sample in found.test)
    masks = sum(bool(sample.masks) for sample in found.test)
    counts = (len(found.train), good, len(found.test) - good, masks)
    if expected is None:
        return CountRow(category, *counts, None, "unknown")
    differences = [
        f"{'missing' if here < there else 'extra'} {abs(here - there)} {what}"
        for here, there, what in zip(
            counts,
            (*expected, expected[2] if name in MASKED else 0),
            ("train", "test good", "test defect", "masks"),
            strict=True,
        )
        if here != there
    ]
    return CountRow(category, *counts, expected, ", ".join(differences) or "whole")
