"""KolektorSDD and KolektorSDD2: an image is anomalous where its label image is not blank."""

from __future__ import annotations

import re
from collections.abc import Mapping

from pipeline.data.published.known import KnownSet, files_below, tenth_of
from pipeline.data.samples import GOOD, Layout, Sample, Tree, category_of

_DEFECT = "defect"
_PART = re.compile(r"kos\d+")
_LABEL = re.compile(r"(.*)_(?:label|GT)")


def kolektor_layout(tree: Tree) -> Layout:
    """KolektorSDD (Tabernik et al., JIM 2020): category ``kolektor``, from folders ``kos01`` to ``kos50``, one a part.

    ``Part0.jpg`` has the label image ``Part0_label.bmp``. The split is ours, as that of the authors trains on defects:
    all images of a part are on the side that `kolektor_trains_on` says, and defects of parts to train on are left out.
    """
    parts = {path: path.partition("/")[0] for path in files_below(tree, "kos") if path.count("/") == 1}
    files = [path for path, part in parts.items() if _PART.fullmatch(part)]
    sides = {part: kolektor_trains_on(part) for part in parts.values()}
    return _layout(tree, "kolektor", {path: sides[parts[path]] for path in files}, "a defect of a part to train on")


def kolektor_trains_on(part: str) -> bool:
    """Whether the normal images of a part (``kos01``) are for training: for 24 of the 50, `tenth_of` it is below 5."""
    return tenth_of(part) < 5


def kolektor2_layout(tree: Tree) -> Layout:
    """KolektorSDD2 (Božič et al., Computers in Industry 2021): category ``kolektor2``, split as its authors split it.

    ``train/10000.png`` has the label image ``train/10000_GT.png``. Defects in ``train`` are left out, as are the copies
    of an image and its label image that the archive holds (``10301 (copy).png``).
    """
    sides = {path: side == "train" for side in ("test", "train") for path in files_below(tree, f"{side}/")}
    copies = {path: "a copy of an image" for path in sides if "(copy)" in path}
    ours = {path: trains for path, trains in sides.items() if path not in copies}
    layout = _layout(tree, "kolektor2", ours, "a defect in train")
    return Layout(layout.categories, layout.left_out | copies)


def _layout(tree: Tree, name: str, sides: Mapping[str, bool], defect_in_train: str) -> Layout:
    """A layout of one category from its files; `sides` says which of them are on the side of training."""
    labels = {found[1]: path for path in sides if (found := _LABEL.fullmatch(path.rpartition(".")[0]))}
    train: list[Sample] = []
    test: list[Sample] = []
    left_out: dict[str, str] = {}
    for path in [path for path in sides if not _LABEL.fullmatch(path.rpartition(".")[0])]:
        label = labels.pop(path.rpartition(".")[0], None)
        if label is None:
            left_out[path] = "no label image of its name"
        elif tree.is_blank(label):
            (train if sides[path] else test).append(Sample(path, 0, GOOD, ()))
            left_out[label] = "the blank label image of a normal image"
        elif sides[path]:
            left_out |= {path: defect_in_train, label: "the label image of an image that is left out"}
        else:
            test.append(Sample(path, 1, _DEFECT, (label,)))
    left_out |= dict.fromkeys(labels.values(), "a label image of no image")
    return Layout((category_of(name, train, test),) if train or test else (), left_out)


# A label image comes right after its image.
def _is_kolektor(tree: Tree) -> bool:
    return any(re.fullmatch(r"kos\d+/Part\d+_label\.bmp", path) for path in files_below(tree, "kos")[:8])


def _is_kolektor2(tree: Tree) -> bool:
    return any(re.fullmatch(r"train/\d+_GT\.png", path) for path in files_below(tree, "train/")[:8])


# No counts: no source says which parts have which defects, and the split is ours.
KOLEKTOR = KnownSet(
    "kolektor",
    "KolektorSDD",
    kolektor_layout,
    masked=True,
    needs="kos01/Part0.jpg with kos01/Part0_label.bmp",
    is_tree=_is_kolektor,
    misread="does not know which of its images are normal",
)

KOLEKTOR2 = KnownSet(
    "kolektor2",
    "KolektorSDD2",
    kolektor2_layout,
    masked=True,
    # Božič et al., Computers in Industry 129, 2021.
    counts={"kolektor2": (2085, 894, 110)},
    needs="train/10000.png with train/10000_GT.png",
    is_tree=_is_kolektor2,
    misread="does not know which of its images are normal",
)
