"""The layouts of users' own images: the tree of MVTec AD, and a plain folder of normals.

Nothing here touches a disk. A layout may be incomplete (no normals, files of a table that are not there):
`pipeline.data.datasets` decides what is an error.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from functools import lru_cache

from pipeline.data.ground_truth import CALLED, beside_photographs, is_mask_folder, match_masks, may_be_mask
from pipeline.data.listing import Listing
from pipeline.data.samples import GOOD, Category, Layout, Sample, Tree, category_of, normals
from pipeline.errors import UserError

# What people call folders of normal images, in any case and with any of "-_ ." in it.
_NORMAL_NAMES = frozenset(
    [
        *("good", "goods", "ok", "okay", "normal", "normals", "nominal", "healthy", "clean", "pass", "passed", "gut"),
        *("defectfree", "nodefect", "nodefects", "nondefective", "anomalyfree", "noanomaly", "nonanomalous"),
    ]
)
# What may stand before and behind such a word, any number of times.
_WORD = r"(?:images?|imgs?|parts?|samples?|pictures?|\d+)"
_MORE = re.compile(rf"^{_WORD}+|{_WORD}+$")
_SIDE = re.compile("(?:train|test)/", re.IGNORECASE)


@lru_cache(1024)
def is_normal_name(name: str) -> bool:
    """Whether a folder is called as people call folders of normal images, such as ``good``, ``OK`` or ``Normal``."""
    plain = re.sub(r"[-_ .]", "", name).casefold()
    return plain in _NORMAL_NAMES or _MORE.sub("", plain) in _NORMAL_NAMES


def mvtec_layout(tree: Tree, base: str = "") -> Layout:
    """Categories of an MVTec AD tree (Bergmann et al., CVPR 2019) below the prefix `base` ("" or "folder/").

    ``<category>/train/good/*``, ``<category>/test/<defect>/*``, and masks in ``<category>/ground_truth/<defect>/`` or
    another folder that is called so (`pipeline.data.ground_truth`). ``good`` may be any name of `is_normal_name`, also
    below ``test``. Where `base` is itself a category (``train/good`` directly in it) that is the only one, named after
    the root. A category needs an image in ``train/`` or ``test/``, or the folder ``train/good``; other folders and
    files are no part of the data set.

    Raises `UserError` where an image is directly in ``test/``, as it then has no label.
    """
    listing = tree.listing
    everything = [path for path in listing.files if path.startswith(base)]
    # Folders, not only files: an empty train/good is still the category that a user meant.
    branches: dict[str, list[str]] = {
        folder[len(base) :]: []
        for folder in listing.folders
        if folder.startswith(base) and "/" not in folder[len(base) :]
    }
    for path in everything:
        branches.setdefault(path[len(base) :].partition("/")[0], []).append(path)
    of_normals = _folders_of_normals(listing)
    inner = [
        (name, f"{base}{name}/", files)
        for name, files in sorted(branches.items())
        if _is_category(of_normals, f"{base}{name}/", files)
    ]
    if not inner or f"{base}train/" in of_normals:
        inner = [(tree.name, base, everything)] if _is_category(of_normals, base, everything) else []
    left_out: dict[str, str] = {}
    categories = tuple(_category(*one, left_out) for one in inner)
    return Layout(categories, left_out)


def plain_layout(tree: Tree) -> Layout:
    """A folder of normal images and nothing else: one category without a test set.

    Empty where any photograph is in a sub-folder, or where there is a folder ``train`` or ``test``: then the
    labels are meant to come from folders, and taking all for normal would be a silent mistake.
    """
    files = tree.listing.files
    left_out = beside_photographs(files)
    photographs = [path for path in files if path not in left_out]
    if tree.listing.folders & {"train", "test"} or any("/" in path for path in photographs) or not photographs:
        return Layout(())
    return Layout((Category(tree.name, normals(photographs), ()),), left_out)


def _folders_of_normals(listing: Listing) -> frozenset[str]:
    """The prefixes, as ``screw/train/``, of the folders of normals."""
    folders = (folder.rpartition("/") for folder in listing.folders)
    return frozenset(
        f"{above[:-5]}train/" for above, _, name in folders if _ends_in_train(above) and is_normal_name(name)
    )


def _is_category(of_normals: frozenset[str], prefix: str, files: Sequence[str]) -> bool:
    if f"{prefix}train/" in of_normals:
        return True
    return any(_SIDE.match(path, len(prefix)) for path in files)


def _ends_in_train(folder: str) -> bool:
    return folder[-5:].casefold() == "train" and folder[-6:-5] in ("", "/")


def _category(name: str, prefix: str, files: Sequence[str], left_out: dict[str, str]) -> Category:
    """A category, and into `left_out` its images that are in neither of its sides."""
    train: list[str] = []
    tests: list[str] = []
    masks: list[str] = []
    by_folder: dict[str, list[str]] = {}
    for path in files:
        by_folder.setdefault(path.rpartition("/")[0], []).append(path)
    for folder, inside in by_folder.items():
        first, _, rest = f"{folder}/"[len(prefix) :].partition("/")
        first = first.casefold() if first.casefold() in ("train", "test") else first
        label = rest.partition("/")[0]
        if first == "train" and label and is_normal_name(label):
            train += inside
        elif first == "train":
            left_out |= dict.fromkeys(inside, "in train, but in no folder of normals")
        elif first == "test" and not label:
            raise UserError(f"{inside[0]}: has no label; move it to {prefix}test/good or to {prefix}test/<defect>")
        elif first == "test":
            tests += inside
        elif first and is_mask_folder(first):
            masks += inside
    sides = [*train, *tests]
    photographs = _photographs(train, prefix, sides, left_out)
    return category_of(name, normals(photographs), labelled_tests(prefix, tests, masks, sides, left_out))


def labelled_tests(
    prefix: str, tests: Sequence[str], masks: Sequence[str], others: Sequence[str], left_out: dict[str, str]
) -> list[Sample]:
    """Samples of the images in ``<prefix>test/<class>/``, with their masks, which lie one folder below `prefix`.

    What stands beside them (`beside_photographs`) is a mask where it is called so. `left_out` gains the reason of each
    file that is neither an image nor a mask of one.
    """
    beside: dict[str, str] = {}
    images = _photographs(tests, prefix, others, beside)
    own = _by_key(masks, prefix)
    if beside:
        # A photograph may be called as if it were a mask: then it has one.
        called = {_below(path, prefix): path for path, reason in beside.items() if reason == CALLED}
        having = match_masks(list({_below(path, prefix): None for path in (*images, *called.values())}), list(own))
        saved = {path for key, path in called.items() if key in having}
        images += saved
        beside = {path: reason for path, reason in beside.items() if path not in saved}
    truth = _by_key([*masks, *(path for path, reason in beside.items() if may_be_mask(path, reason))], prefix)
    why = dict.fromkeys(masks, "a mask of no test image") | beside
    return label(_by_key(images, prefix), truth, why, f"{prefix}test/good", left_out)


def label(
    images: Mapping[str, Sequence[str]],
    masks: Mapping[str, Sequence[str]],
    why: Mapping[str, str],
    good: str,
    left_out: dict[str, str],
) -> list[Sample]:
    """Samples of test images with their masks, the paths of both by ``<class>/<file>``.

    why: the reason of each file that is left out unless it is a mask of an anomalous image; good: where normals belong.
    `left_out` gains these reasons, and those of images that are in no class or are normals below one of defects.
    """
    matched = match_masks(list(images), list(masks))
    samples: list[Sample] = []
    reasons = dict(why)
    for key, path in ((key, path) for key, paths in images.items() for path in paths):
        folder, _, _ = key.rpartition("/")
        defect, *inner = folder.split("/")
        found = [path for mask in matched.get(key, ()) for path in masks[mask]]
        if not folder:
            left_out[path] = "in no folder of a class"
        elif is_normal_name(defect):
            reasons |= dict.fromkeys(found, "the mask of a normal image")
            samples.append(Sample(path, 0, GOOD, ()))
        elif any(map(is_normal_name, inner)):
            left_out[path] = f"normals in a folder of the class {defect}: move them to {good}"
        else:
            samples.append(Sample(path, 1, defect, tuple(found)))
    used = {mask for sample in samples for mask in sample.masks}
    left_out |= {path: reason for path, reason in reasons.items() if path not in used}
    return samples


def _below(path: str, prefix: str) -> str:
    """A path below the first folder behind a prefix: ``crack/1.png`` of ``c/test/crack/1.png``."""
    return path[len(prefix) :].partition("/")[2]


def _by_key(paths: Sequence[str], prefix: str) -> dict[str, list[str]]:
    """The paths by what they are below the first folder behind a prefix, which may be called in several ways."""
    found: dict[str, list[str]] = {}
    for path in paths:
        found.setdefault(_below(path, prefix), []).append(path)
    return found


def _photographs(paths: Sequence[str], prefix: str, others: Sequence[str], left_out: dict[str, str]) -> list[str]:
    """The photographs among the files of a side; the folder of a class may be called as it likes."""
    beside = beside_photographs(paths, prefix.count("/") + 2, others)
    left_out |= beside
    return [path for path in paths if path not in beside] if beside else list(paths)
