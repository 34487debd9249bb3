"""What the commands know of a data set, and the parts that several layouts share."""

from __future__ import annotations

import hashlib
from bisect import bisect_left
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from pipeline.data.layouts import is_normal_name, label
from pipeline.data.samples import Category, Layout, Sample, Tree

# {category: (train, normal test images, anomalous test images)}
Counts = Mapping[str, tuple[int, int, int]]


@dataclass(frozen=True)
class KnownSet:
    """A data set that the commands know by name.

    title: what its authors call it; layout: its categories, a pure function; masked: whether each anomalous test image
    has a mask; counts: what was published, empty where no source says it for each category. needs: what a root must
    hold, for the error of one that holds nothing of it. is_tree: whether a tree is of this set, by names alone, and
    misread: what `folder` gets wrong of it; both only for a set that `folder` does not read rightly.
    """

    name: str
    title: str
    layout: Callable[[Tree], Layout]
    masked: bool = False
    counts: Counts = field(default_factory=dict)
    needs: str = "<category>/train/good"
    is_tree: Callable[[Tree], bool] = lambda tree: False
    misread: str = ""


def tenth_of(name: str) -> int:
    """A number from 0 to 9 that only depends on a name: its SHA-256's first 8 bytes, big-endian, modulo 10."""
    return int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "big") % 10


def files_below(tree: Tree, prefix: str) -> Sequence[str]:
    """The images whose paths begin with `prefix`, found without a look at the others."""
    files = tree.listing.files
    start = bisect_left(files, prefix)
    # The last code point ends the range: no file's name begins with it.
    return files[start : bisect_left(files, f"{prefix}\U0010ffff", start)]


def categories_with(tree: Tree, *inner: str) -> dict[str, str]:
    """The prefixes, as ``can/``, of the folders that hold one of the folders `inner`, by their names.

    The root itself where it does so: then it is the only category.
    """
    folders = tree.listing.folders
    if any(folder in folders for folder in inner):
        return {tree.name: ""}
    ends = tuple(f"/{folder}" for folder in inner)
    tops = {folder.partition("/")[0] for folder in folders if folder.endswith(ends)}
    return {top: f"{top}/" for top in sorted(tops) if any(f"{top}{end}" in folders for end in ends)}


def labelled(images: Mapping[str, str], masks: Mapping[str, str], left_out: dict[str, str]) -> list[Sample]:
    """Samples of test images with their masks, both paths by ``<class>/<file>``.

    `left_out` gains the images that are in no class, and the masks that belong to no anomalous image.
    """
    why = {
        path: "the mask of a normal image" if is_normal_name(key.partition("/")[0]) else "a mask of no test image"
        for key, path in masks.items()
    }
    images_of, masks_of = ({key: [path] for key, path in paths.items()} for paths in (images, masks))
    return label(images_of, masks_of, why, "the folder of normals", left_out)


def leave_out(paths: Iterable[str], folder: str, reason: str) -> dict[str, str]:
    """The reason for each image in the folder `folder` of a category, or of a root that is itself one."""
    return {path: reason for path in paths if folder in path.split("/", 2)[:2]}


def present(tree: Tree, categories: Sequence[Category], left_out: dict[str, str] | None = None) -> Layout:
    """A layout without the samples, masks and whole categories that a table names but the tree has not."""
    files = frozenset(tree.listing.files)

    def on_disk(samples: Sequence[Sample]) -> tuple[Sample, ...]:
        return tuple(
            replace(sample, masks=tuple(mask for mask in sample.masks if mask in files))
            for sample in samples
            if sample.path in files
        )

    there: list[Category] = []
    absent: dict[str, list[str]] = {}
    for category in categories:
        named = category.files
        lacking = [path for path in named if path not in files]
        if not lacking:
            there.append(category)
        elif len(lacking) < len(named):
            there.append(Category(category.name, on_disk(category.train), on_disk(category.test)))
            absent[category.name] = lacking
    return Layout(tuple(there), left_out or {}, absent)
