"""The published data sets: one pure function per layout, from a tree to categories of labelled samples.

Nothing here touches a disk but for the tables that a tree gives. `data/README.md` says where each set is from and how
its tree looks.
"""

from __future__ import annotations

import csv
import hashlib
import io
from collections.abc import Sequence
from dataclasses import replace

from pipeline.data.layouts import mvtec_layout
from pipeline.data.samples import GOOD, Category, Layout, Sample, Tree, category_of
from pipeline.errors import UserError

_VISA_TABLE = "split_csv/1cls.csv"


def visa_layout(tree: Tree) -> Layout:
    """VisA (Zou et al., ECCV 2022): the rows of ``split_csv/1cls.csv``, or what the authors' converter makes of them.

    Columns object, split (train/test), label (normal/anomaly), image, mask; paths are relative to the root.
    The table names no defect class, so it is "anomaly" for all. The converted tree is MVTec AD's, also in a folder
    ``1cls``.

    Raises `UserError` naming the line that has another value or a missing column.
    """
    table_path, table = f"{tree.root}/{_VISA_TABLE}", tree.table(_VISA_TABLE)
    if table is None:
        return mvtec_layout(tree, "1cls/" if "1cls" in tree.listing.folders else "")
    rows: dict[str, dict[str, list[Sample]]] = {}
    reader = csv.DictReader(io.StringIO(table))
    for row in reader:
        where = f"{table_path}, line {reader.line_num}"
        try:
            name, split, label, image = row["object"], row["split"], row["label"], row["image"]
            mask = row["mask"]
        except KeyError as error:
            raise UserError(f"{where}: no column {error}; the file is split_csv/1cls.csv of VisA") from None
        if (split, label) not in {("train", "normal"), ("test", "normal"), ("test", "anomaly")} or not image:
            raise UserError(f"{where}: {split},{label},{image} is no row of split_csv/1cls.csv; get it again")
        anomalous = label == "anomaly"
        sample = Sample(image, int(anomalous), label if anomalous else GOOD, (mask,) if anomalous and mask else ())
        rows.setdefault(name, {"train": [], "test": []})[split].append(sample)
    return present(tree, [category_of(name, split["train"], split["test"]) for name, split in sorted(rows.items())])


def elpv_layout(tree: Tree) -> Layout:
    """Categories ``mono`` and ``poly`` of ELPV (Deitsch et al., Solar Energy 2019) from its ``labels.csv``.

    Lines are ``path probability type``. Defect probability 0 is normal, 1 is anomalous (class "defect"); 1/3
    and 2/3, where the experts were unsure, are left out. `elpv_trains_on` splits the normals; there are no
    masks.

    Raises `UserError` naming a line of another form.
    """
    table_path, table = f"{tree.root}/labels.csv", tree.table("labels.csv")
    rows: dict[str, dict[bool, list[Sample]]] = {}
    left_out: dict[str, str] = {}
    for number, line in enumerate((table or "").splitlines(), start=1):
        if not line.strip():
            continue
        try:
            path, probability, name = line.split()
            certainty = float(probability)
        except ValueError:
            raise UserError(f"{table_path}, line {number}: not `path probability type`; get it again") from None
        sides = rows.setdefault(name, {True: [], False: []})
        if certainty == 0:
            sides[elpv_trains_on(path)].append(Sample(path, 0, GOOD, ()))
        elif certainty == 1:
            sides[False].append(Sample(path, 1, "defect", ()))
        else:
            left_out[path] = "the experts were unsure"
    categories = [category_of(name, sides[True], sides[False]) for name, sides in sorted(rows.items())]
    return present(tree, categories, left_out)


def elpv_trains_on(path: str) -> bool:
    """Whether a normal ELPV image is one of the about 70 % to train on.

    The rule needs only the file name (``cell0001.png``), so that it holds for any subset, order or machine:
    the first 8 bytes of the name's SHA-256, as a big-endian integer, modulo 10, are below 7.
    """
    digest = hashlib.sha256(path.rpartition("/")[2].encode()).digest()
    return int.from_bytes(digest[:8], "big") % 10 < 7


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
        named = [path for sample in (*category.train, *category.test) for path in (sample.path, *sample.masks)]
        lacking = [path for path in named if path not in files]
        if not lacking:
            there.append(category)
        elif len(lacking) < len(named):
            there.append(Category(category.name, on_disk(category.train), on_disk(category.test)))
            absent[category.name] = lacking
    return Layout(tuple(there), left_out or {}, absent)
