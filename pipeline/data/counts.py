"""How many images each published data set holds, and the comparison of a copy with that.

Where each number is from stands beside it in `pipeline.data.published`.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from pipeline.data.census import Note, left_out
from pipeline.data.datasets import find_categories, nothing_found
from pipeline.data.published import KNOWN
from pipeline.data.samples import Category
from pipeline.errors import UserError

# {data set: {category: (train, normal test images, anomalous test images)}}, of the sets whose numbers are known.
COUNTS: dict[str, dict[str, tuple[int, int, int]]] = {
    name: dict(known.counts) for name, known in KNOWN.items() if known.counts
}

# Those of them with one mask for each anomalous test image.
MASKED = frozenset(name for name in COUNTS if KNOWN[name].masked)


@dataclass(frozen=True)
class CountRow:
    """Images found in one category against the published number.

    `expected` is (train, test_good, test_defect), None for a category whose numbers are not known. `status` is
    "whole", "not found", "unknown" (nothing to compare with) or what differs: "missing 3 train, extra 1
    masks", "missing 3 files of its table".
    """

    category: str
    train: int
    test_good: int
    test_defect: int
    masks: int
    expected: tuple[int, int, int] | None
    status: str


@dataclass(frozen=True)
class Counted:
    """A row per category, sorted by name, and what else lies below the root."""

    rows: list[CountRow]
    left_out: list[Note]

    def value(self) -> dict[str, Any]:
        """It as JSON."""
        return {
            "categories": [asdict(row) for row in self.rows],
            "left_out": [note.value() for note in self.left_out],
        }


def compare_counts(name: str, image_root: str | None = None) -> Counted:
    """Compare what lies below `image_root` with the published counts.

    Published categories that are not there have a row too. Only names are looked at, and the label images of the two
    Kolektor sets.

    Raises `UserError` for an unknown name or a missing root, and for `folder` where nothing is found.
    """
    found = find_categories(name, image_root)
    expected = COUNTS.get(name, {})
    if not found.layout.categories and not expected:
        raise UserError(nothing_found(name, found))
    there = {category.name: category for category in found.layout.categories}
    absent = found.layout.absent
    rows = [
        _count_row(name, category, there.get(category), len(absent.get(category, ())))
        for category in sorted(there.keys() | expected.keys())
    ]
    return Counted(rows, left_out(found.listing, found.layout))


def _count_row(name: str, category: str, found: Category | None, absent: int) -> CountRow:
    expected = COUNTS.get(name, {}).get(category)
    if found is None:
        return CountRow(category, 0, 0, 0, 0, expected, "not found")
    good = sum(sample.label == 0 for sample in found.test)
    masks = sum(bool(sample.masks) for sample in found.test)
    counts = (len(found.train), good, len(found.test) - good, masks)
    if expected is None:
        return CountRow(category, *counts, None, f"missing {absent} files of its table" if absent else "unknown")
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
