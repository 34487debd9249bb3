"""One pure function per layout: from the files below an image root to categories of labelled samples.

Nothing here touches a disk: the functions get a `Listing` (or the text of a table) and give `Category`
tuples, also incomplete ones (no train images, files of a table that are not there). `pipeline.data.datasets`
decides what is an error.
"""

from __future__ import annotations

import csv
import hashlib
import io
from collections.abc import Sequence
from dataclasses import dataclass

from pipeline.data.listing import Listing
from pipeline.errors import UserError

GOOD = "good"


@dataclass(frozen=True)
class Sample:
    """One image: its path, what it shows, and the path of its ground truth.

    `path` and `mask` are POSIX paths relative to the root; `label` is 0 (normal) or 1 (anomalous); `defect`
    is "good" or the defect class; `mask` is None where there is none.
    """

    path: str
    label: int
    defect: str
    mask: str | None


@dataclass(frozen=True)
class Category:
    """Normals to train, normals and defects to test; both sorted by path, `test` may be empty."""

    name: str
    train: tuple[Sample, ...]
    test: tuple[Sample, ...]


def mvtec_layout(listing: Listing, base: str, own_name: str) -> list[Category]:
    """Categories of an MVTec AD tree (Bergmann et al., CVPR 2019) below the prefix `base` ("" or "folder/").

    ``<category>/train/good/*``, ``<category>/test/<defect>/*`` and ``<category>/ground_truth/<defect>/`` with
    ``<stem>_mask.*`` or ``<stem>.*``; folders below those are part of the stem. Where `base` is itself a
    category (``train/good`` directly in it) that is the only one, named `own_name`. A category needs an image
    in ``train/`` or ``test/``, or the folder ``train/good``; other folders and files are no part of the data
    set.

    Raises `UserError` where an image is directly in ``test/``, as it then has no label.
    """
    everything = [path for path in listing.files if path.startswith(base)]
    # Folders, not only files: an empty train/good is still the category that a user meant.
    branches: dict[str, list[str]] = {
        folder[len(base) :]: []
        for folder in listing.folders
        if folder.startswith(base) and "/" not in folder[len(base) :]
    }
    for path in everything:
        branches.setdefault(path[len(base) :].partition("/")[0], []).append(path)
    inner = [
        _category(name, f"{base}{name}/", files)
        for name, files in sorted(branches.items())
        if _is_category(listing, f"{base}{name}/", files)
    ]
    if inner and f"{base}train/{GOOD}" not in listing.folders:
        return inner
    return [_category(own_name, base, everything)] if _is_category(listing, base, everything) else []


def plain_layout(listing: Listing, own_name: str) -> list[Category]:
    """A folder of normal images and nothing else: one category without a test set.

    Empty where any image is in a sub-folder, or where there is a folder ``train`` or ``test``: then the
    labels are meant to come from folders, and taking all for normal would be a silent mistake.
    """
    labelled = listing.folders & {"train", "test"} or any("/" in path for path in listing.files)
    if labelled or not listing.files:
        return []
    return [Category(own_name, _normals(listing.files), ())]


def visa_layout(table: str, table_path: str) -> list[Category]:
    """Categories of VisA as published (Zou et al., ECCV 2022): the rows of ``split_csv/1cls.csv``.

    Columns object, split (train/test), label (normal/anomaly), image, mask; paths are relative to the root.
    The table names no defect class, so it is "anomaly" for all. `table_path` is for messages.

    Raises `UserError` naming the line that has another value or a missing column.
    """
    rows: dict[str, dict[str, list[Sample]]] = {}
    reader = csv.DictReader(io.StringIO(table))
    for row in reader:
        where = f"{table_path}, line {reader.line_num}"
        try:
            name, split, label, image = row["object"], row["split"], row["label"], row["image"]
            mask = row["mask"] or None
        except KeyError as error:
            raise UserError(f"{where}: no column {error}; the file is split_csv/1cls.csv of VisA") from None
        if (split, label) not in {("train", "normal"), ("test", "normal"), ("test", "anomaly")} or not image:
            raise UserError(f"{where}: {split},{label},{image} is no row of split_csv/1cls.csv; get it again")
        anomalous = label == "anomaly"
        sample = Sample(image, int(anomalous), label if anomalous else GOOD, mask if anomalous else None)
        rows.setdefault(name, {"train": [], "test": []})[split].append(sample)
    return [_sorted_category(name, split["train"], split["test"]) for name, split in sorted(rows.items())]


def elpv_layout(table: str, table_path: str) -> list[Category]:
    """Categories ``mono`` and ``poly`` of ELPV (Deitsch et al., Solar Energy 2019) from its ``labels.csv``.

    Lines are ``path probability type``. Defect probability 0 is normal, 1 is anomalous (class "defect"); 1/3
    and 2/3, where the experts were unsure, are left out. `elpv_trains_on` splits the normals; there are no
    masks.

    Raises `UserError` naming a line of another form.
    """
    rows: dict[str, dict[bool, list[Sample]]] = {}
    for number, line in enumerate(table.splitlines(), start=1):
        if not line.strip():
            continue
        try:
            path, probability, name = line.split()
            certainty = float(probability)
        except ValueError:
            raise UserError(f"{table_path}, line {number}: not `path probability type`; get it again") from None
        sides = rows.setdefault(name, {True: [], False: []})
        if certainty == 0:
            sides[elpv_trains_on(path)].append(Sample(path, 0, GOOD, None))
        elif certainty == 1:
            sides[False].append(Sample(path, 1, "defect", None))
    return [_sorted_category(name, sides[True], sides[False]) for name, sides in sorted(rows.items())]


def elpv_trains_on(path: str) -> bool:
    """Whether a normal ELPV image is one of the about 70 % to train on.

    The rule needs only the file name (``cell0001.png``), so that it holds for any subset, order or machine:
    the first 8 bytes of the name's SHA-256, as a big-endian integer, modulo 10, are below 7.
    """
    digest = hashlib.sha256(path.rpartition("/")[2].encode()).digest()
    return int.from_bytes(digest[:8], "big") % 10 < 7


def _is_category(listing: Listing, prefix: str, files: Sequence[str]) -> bool:
    if f"{prefix}train/{GOOD}" in listing.folders:
        return True
    return any(path.startswith((f"{prefix}train/", f"{prefix}test/")) for path in files)


def _category(name: str, prefix: str, files: Sequence[str]) -> Category:
    masks = _masks(f"{prefix}ground_truth/", files)
    train = [path for path in files if path.startswith(f"{prefix}train/{GOOD}/")]
    start = f"{prefix}test/"
    test = []
    for path in files:
        if not path.startswith(start):
            continue
        defect, separator, _ = path[len(start) :].partition("/")
        if not separator:
            raise UserError(f"{path}: has no label; move it to {start}good or to {start}<defect>")
        stem = path[len(start) :].rpartition(".")[0]
        mask = None if defect == GOOD else masks.get(f"{stem}_mask", masks.get(stem))
        test.append(Sample(path, int(defect != GOOD), defect, mask))
    return Category(name, _normals(train), tuple(test))


def _masks(start: str, files: Sequence[str]) -> dict[str, str]:
    masks: dict[str, str] = {}
    for path in files:
        if path.startswith(start):
            masks.setdefault(path[len(start) :].rpartition(".")[0], path)
    return masks


def _normals(paths: Sequence[str]) -> tuple[Sample, ...]:
    return tuple(Sample(path, 0, GOOD, None) for path in paths)


def _sorted_category(name: str, train: list[Sample], test: list[Sample]) -> Category:
    return Category(name, *(tuple(sorted(side, key=lambda sample: sample.path)) for side in (train, test)))
