"""What a data set consists of: samples, categories, and what its layout leaves out."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from pipeline.data.listing import Listing

GOOD = "good"


@dataclass(frozen=True)
class Sample:
    """One image: its path, what it shows, and the paths of its ground truth.

    `path` and `masks` are POSIX paths relative to the root; `label` is 0 (normal) or 1 (anomalous); `defect`
    is "good" or the defect class. An image may have several masks: it is anomalous where any of them says so.
    """

    path: str
    label: int
    defect: str
    masks: tuple[str, ...]


@dataclass(frozen=True)
class Category:
    """Normals to train, normals and defects to test; both sorted by path, `test` may be empty."""

    name: str
    train: tuple[Sample, ...]
    test: tuple[Sample, ...]

    @property
    def files(self) -> list[str]:
        """The paths of its images and of their masks."""
        return [path for side in (self.train, self.test) for sample in side for path in (sample.path, *sample.masks)]


@dataclass(frozen=True)
class Layout:
    """What the layout of a data set makes of a tree.

    left_out: why an image is in no category, by its path; an image that is neither here nor in a category is no part
    of the data set. absent: by category, files that a table names and the tree does not have.
    """

    categories: tuple[Category, ...]
    left_out: dict[str, str] = field(default_factory=dict)
    absent: dict[str, list[str]] = field(default_factory=dict)


@dataclass(frozen=True)
class Tree:
    """The tree of a data set as a layout sees it.

    root: for messages; name: of the root's folder; table: the text of a file of the tree by its relative path, None
    where it is not there. is_blank: whether the image file at a relative path marks nothing, for sets whose labels are
    known only from the pixels of their masks; both read the file when they are asked.
    """

    root: str
    name: str
    listing: Listing
    table: Callable[[str], str | None]
    is_blank: Callable[[str], bool]


def normals(paths: Sequence[str]) -> tuple[Sample, ...]:
    """Samples of normal images."""
    return tuple(Sample(path, 0, GOOD, ()) for path in paths)


def category_of(name: str, train: Sequence[Sample], test: Sequence[Sample]) -> Category:
    """A category whose samples are sorted by path."""
    return Category(name, *(tuple(sorted(side, key=lambda sample: sample.path)) for side in (train, test)))
