"""The data sets: where images, labels and masks are, as a table of samples.

`folder` is anyone's data in the layout of MVTec AD, or a plain folder of normal images; the others are published sets.
`data/README.md` says where each is from and how its tree looks. A pixel is read only of the label images of the two
Kolektor sets, which alone say what is normal there.
"""

from __future__ import annotations

import difflib
import importlib.util
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from pipeline.data.census import Note, left_out, taken
from pipeline.data.content import read_file
from pipeline.data.layouts import plain_layout
from pipeline.data.listing import Listing, absolute, last_part, list_images
from pipeline.data.masks import read_mask
from pipeline.data.pixels import MOST_PIXELS
from pipeline.data.published import KNOWN, recognise
from pipeline.data.samples import Category, Layout, Tree
from pipeline.errors import UserError
from pipeline.setting import split

DATASETS: tuple[str, ...] = tuple(KNOWN)

# Files that lie beside the folders of the categories: Zarr's in a cache, ours in a run folder and a gallery.
_RESERVED = frozenset(
    {"zarr.json", ".zgroup", ".zattrs", ".zmetadata", "results.json", "settings.toml", "settings.json", "index.html"}
)


@dataclass(frozen=True)
class Dataset:
    """A data set as found: `image_root` is an absolute local path or an fsspec URL, categories go by name.

    left_out: what else lies below the root, and why it is in no category.
    """

    name: str
    image_root: str
    categories: tuple[Category, ...]
    left_out: tuple[Note, ...] = ()

    @property
    def census(self) -> list[Note]:
        """What was taken and what was left out."""
        return [*(note for category in self.categories for note in taken(category)), *self.left_out]

    @property
    def category_names(self) -> list[str]:
        """The names of its categories."""
        return [category.name for category in self.categories]


@dataclass(frozen=True)
class Found:
    """What lies below the image root of a data set, before anything is required of it."""

    image_root: str
    listing: Listing
    layout: Layout


def load(name: str, image_root: str | None = None, categories: Sequence[str] = ()) -> Dataset:
    """List the data set `name` (one of `DATASETS`) below `image_root`; only of `categories` if any are given.

    `image_root` is a folder or an fsspec URL. None means ``data/<name>`` below the working directory, and for
    `elpv` the data folder of the installed package. Order depends only on names, never on locale or
    filesystem.

    Raises `UserError` for an unknown name or category, a missing root, a root without categories, a category
    without normal images to train on, and a VisA or ELPV copy that lacks files of its table.
    """
    return load_several([(name, image_root)], categories)[0]


def load_several(places: Sequence[tuple[str, str | None]], categories: Sequence[str] = ()) -> list[Dataset]:
    """`load` for the data sets of one run, each a name and its root; of `categories` each takes those that it has.

    Raises what `load` raises, `UserError` also for a category that none of them has, and for one of them that has none
    of `categories`.
    """
    found = [find_categories(name, image_root) for name, image_root in places]
    for (name, _), one in zip(places, found, strict=True):
        if not one.layout.categories:
            raise UserError(nothing_found(name, one))
    categories = split(categories, [category.name for one in found for category in one.layout.categories])
    _refuse_unknown(found, categories)
    return [_choose(name, one, categories) for (name, _), one in zip(places, found, strict=True)]


def _choose(name: str, found: Found, categories: Sequence[str]) -> Dataset:
    """The categories asked for, or all; one without normals is passed over, unless it was asked for or is the only."""
    chosen = tuple(category for category in found.layout.categories if not categories or category.name in categories)
    if not chosen:
        raise UserError(f"{found.image_root}: has none of the categories asked for; leave it out or name one of its")
    empty = [category.name for category in chosen if not category.train]
    passed_over = [Note(one, 0, "normal images to train on: passed over, they belong into train/good") for one in empty]
    if not categories and len(empty) < len(chosen):
        chosen = tuple(category for category in chosen if category.train)
    for category in chosen:
        if category.name in _RESERVED:
            raise UserError(f"{found.image_root}: a category cannot be called {category.name}: rename its folder")
        absent = found.layout.absent.get(category.name)
        if absent:
            raise UserError(
                f"{found.image_root}: {len(absent)} files of category {category.name} are missing, "
                f"first {absent[0]}; copy the data again (`cutswap datasets` counts it)"
            )
        if not category.train:
            raise UserError(
                f"{found.image_root}: category {category.name} has no image in train/good; "
                "put the normal images to train on there"
            )
    return Dataset(name, found.image_root, chosen, (*passed_over, *left_out(found.listing, found.layout)))


def load_tests(name: str, image_root: str, categories: Sequence[str]) -> tuple[Category, ...]:
    """The named categories as `load` lists them, for their test samples: their normal images may be gone.

    Raises `UserError` for a category that is not there or lacks files of its table.
    """
    found = find_categories(name, image_root)
    there = {category.name: category for category in found.layout.categories}
    for category in categories:
        if category not in there:
            raise UserError(f"{image_root} holds no images of {category}: give --root, where its test images lie now")
        if absent := found.layout.absent.get(category):
            raise UserError(
                f"{image_root}: {len(absent)} files of {category} are missing, such as {absent[0]}: copy it again"
            )
    return tuple(there[category] for category in categories)


def find_categories(name: str, image_root: str | None) -> Found:
    """List the categories of a data set below `image_root`, None for its default.

    Raises `UserError` for an unknown name, and for a tree that is another data set's and would be misread.
    """
    if name not in DATASETS:
        raise UserError(f"unknown data set {name!r}; choose one of {', '.join(DATASETS)}")
    place = root_of(name, image_root)
    listing = list_images(place)
    tree = Tree(place, last_part(place), listing, partial(_read_table, place), partial(_is_blank, place))
    if (looks := recognise(tree)) not in (None, name):
        raise UserError(_another_set(name, looks, place))
    layout = KNOWN[name].layout(tree)
    if name == "folder" and not layout.categories:
        layout = plain_layout(tree)
    return Found(place, listing, layout)


def _another_set(name: str, looks: str, place: str) -> str:
    """The error of a root that holds another data set than `name`: which one, and what would go wrong."""
    there = KNOWN[looks]
    wrong = f": `folder` {there.misread};" if name == "folder" else f", not like {KNOWN[name].title}:"
    return f"{place} looks like {there.title}{wrong} give --dataset {looks}"


def root_of(name: str, image_root: str | None = None) -> str:
    """The absolute path or URL of a data set's folder; None for the usual one, ``data/<name>`` or its package's."""
    if image_root is not None:
        return absolute(image_root)
    return _elpv_folder() if name == "elpv" else absolute(f"data/{name}")


def _refuse_unknown(found: Sequence[Found], categories: Sequence[str]) -> None:
    names = list(dict.fromkeys(category.name for one in found for category in one.layout.categories))
    roots = ", ".join(one.image_root for one in found)
    for wanted in categories:
        if wanted not in names:
            near = difflib.get_close_matches(wanted, names, n=1)
            hint = f"; did you mean {near[0]!r}?" if near else ""
            raise UserError(f"{roots}: no category {wanted!r}, found {', '.join(names)}{hint}")


def nothing_found(name: str, found: Found) -> str:
    """The error of a root without categories: what it holds, and what it needs."""
    if name == "elpv":
        return f"{found.image_root}: no labels.csv with images; leave out --root to use the package elpv-dataset"
    # <root>/a/b/<category>/train/good: the root to give is <root>/a/b.
    inner = [folder for folder in found.listing.folders if folder.endswith("/train/good")]
    outer = sorted({f"{found.image_root}/{folder}".rsplit("/", 3)[0] for folder in inner} - {found.image_root})
    if outer:
        return f"{found.image_root}: categories lie deeper; give --root {' or '.join(outer[:4])}"
    top = sorted(folder for folder in found.listing.folders if "/" not in folder)
    held = f"folders {', '.join(top[:8])}{', ...' if len(top) > 8 else ''}" if top else "no folder"
    holds = f"holds {held} and {len(found.listing.files)} images"
    return f"{found.image_root}: no category found: needs {KNOWN[name].needs}, {holds}"


def _elpv_folder() -> str:
    spec = importlib.util.find_spec("elpv_dataset")
    if spec is None or spec.origin is None:
        raise UserError("elpv needs the package elpv-dataset: `pip install 'cutswap[demo]'`, or give --root")
    return str(Path(spec.origin).parent / "data")


def _read_table(image_root: str, path: str) -> str | None:
    try:
        return read_file(image_root, path).decode("utf-8-sig")
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{image_root}/{path}: cannot be read ({error})") from error


def _is_blank(image_root: str, path: str) -> bool:
    name = f"{image_root}/{path}"
    try:
        return not read_mask(read_file(image_root, path), MOST_PIXELS, name).any()
    except OSError as error:
        raise UserError(f"{name}: cannot be read ({error}); copy it again") from error
