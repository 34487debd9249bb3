"""What a user should know of a category's test images before any score of them counts."""

from __future__ import annotations

from pipeline.cache.category import CachedCategory
from pipeline.data.census import Note, notes_of
from train.evaluation.test_set import TestSet


def examine(tests: TestSet, category: CachedCategory) -> list[Note]:
    """Notes of test images that are normals to train on as well, of doubtful masks, and of metrics that cannot be.

    It reads every test image and every mask; raises ImageError for one that cannot be read.
    """
    name, labels = category.name, tests.labels
    if not len(tests):
        return [Note(name, 0, "test images: no metric can be computed")]
    known = set(category.digests) - {""}
    leaked = [sample.path for sample, digest in zip(tests.samples, tests.digests, strict=True) if digest in known]
    notes = notes_of(name, {"test images that are among the normals of the cache: metrics are too good": leaked})
    missing = {
        0: "normal test images: no image metric can be computed",
        1: "anomalous test images: no metric can be computed",
    }
    notes += [Note(name, 0, what) for label, what in missing.items() if not (labels == label).any()]
    return notes + notes_of(name, tests.truth.doubts)
