"""What a user should know of a category's test images before any score of them counts, and what they consist of."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from pipeline.cache.category import CachedCategory
from pipeline.data.census import Note, notes_of, unmasked
from pipeline.data.samples import Sample
from pipeline.errors import ImageError
from train.evaluation.test_set import TestSet
from train.made_of import Files


@dataclass(frozen=True)
class Examined:
    """The test images of a category: those that can be read, with their masks, and the paths of those left out.

    files: of the former, by kind; notes: of them all.
    """

    samples: tuple[Sample, ...]
    left_out: tuple[str, ...]
    files: Mapping[str, Files]
    notes: tuple[Note, ...]


def examine(tests: TestSet, category: CachedCategory, bad_images: str) -> Examined:
    """Read every test image and every mask, and look at what they are.

    bad_images: "stop" raises ImageError at the first that cannot be read, "skip" leaves the image out. Notes are of
    these, of test images that are normals to train on as well or have both labels, of masks that are missing or
    doubtful, and of metrics that cannot be.
    """
    kinds: defaultdict[str, list[str]] = defaultdict(list)
    known = set(category.digests) - {""}
    samples, left_out = list[Sample](), list[str]()
    images, masks = list[tuple[str, int, str, str]](), list[tuple[str, str]]()
    for sample, found in zip(tests.samples, tests.look(), strict=True):
        if found.problem and bad_images == "stop":
            raise ImageError(f"{found.problem}, or give --bad-images skip")
        if found.problem:
            kinds["test images that cannot be read, or whose mask cannot: they take no part"].append(found.problem)
            left_out.append(sample.path)
            continue
        samples.append(sample)
        images.append((sample.path, sample.label, sample.defect, found.digest))
        masks += zip(sample.masks, found.masks, strict=True)
        if found.digest in known:
            kinds["test images that are among the normals of the cache: metrics are too good"].append(sample.path)
        if found.doubt is not None:
            kinds[found.doubt[0]].append(found.doubt[1])
    files = {"test images": Files.of(images), "masks": Files.of(masks)}
    kinds["test images that are there both as normal and as anomalous"] = _of_both_labels(images)
    notes = *notes_of(category.name, kinds), *unmasked(category.name, samples), *_missing(category.name, samples)
    return Examined(tuple(samples), tuple(left_out), files, notes)


def _of_both_labels(images: Sequence[tuple[str, int, str, str]]) -> list[str]:
    """Paths of the images, each with its label, class and digest, whose content has both labels."""
    labels: defaultdict[str, set[int]] = defaultdict(set)
    for _, label, _, digest in images:
        labels[digest].add(label)
    return [path for path, _, _, digest in images if len(labels[digest]) > 1]


def _missing(category: str, samples: list[Sample]) -> list[Note]:
    """Notes of the metrics that cannot be."""
    if not samples:
        return [Note(category, 0, "test images: no metric can be computed")]
    labels = np.array([sample.label for sample in samples])
    missing = {
        0: "normal test images: no image metric can be computed",
        1: "anomalous test images: no metric can be computed",
    }
    return [Note(category, 0, what) for label, what in missing.items() if not (labels == label).any()]
