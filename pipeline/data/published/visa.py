"""VisA: a table says which image is for what."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable

from pipeline.data.layouts import mvtec_layout
from pipeline.data.published.known import KnownSet, present
from pipeline.data.samples import GOOD, Layout, Sample, Tree, category_of
from pipeline.errors import UserError

_TABLE = "split_csv/1cls.csv"
_COLUMNS = ("object", "split", "label", "image", "mask")
_ROWS = frozenset({("train", "normal"), ("test", "normal"), ("test", "anomaly")})


def visa_layout(tree: Tree) -> Layout:
    r"""VisA (Zou et al., ECCV 2022): the rows of ``split_csv/1cls.csv``, or what the authors' converter makes of them.

    Columns object, split (train/test), label (normal/anomaly), image, mask; paths are relative to the root. Copies
    differ: columns, values and paths may have other upper and lower case than here and on the disk, paths may have
    ``\`` for ``/`` and begin with ``/`` or the name of the root, and lines may be empty. The table names no defect
    class, so it is "anomaly" for all. The converted tree is MVTec AD's, also in a folder ``1cls``.

    Raises `UserError` naming the line that has another value or a missing column.
    """
    table_path, table = f"{tree.root}/{_TABLE}", tree.table(_TABLE)
    if table is None:
        return mvtec_layout(tree, "1cls/" if "1cls" in tree.listing.folders else "")
    on_disk = _paths_on_disk(tree)
    # A row that is there twice counts once.
    rows: dict[str, dict[str, dict[Sample, None]]] = {}
    names = {name.casefold(): name for name in VISA.counts}
    reader = csv.DictReader(io.StringIO(table))
    try:
        lines = list(reader)
    except csv.Error as error:
        raise UserError(f"{table_path}: is no table ({error}); get it again") from None
    for number, row in enumerate(lines, start=2):
        where = f"{table_path}, line {number}"
        # A key None holds the cells of a line that has more of them than the first one.
        plain = {column.strip().casefold(): (cell or "").strip() for column, cell in row.items() if column is not None}
        lacking = [column for column in _COLUMNS if column not in plain]
        if lacking:
            raise UserError(f"{where}: no column {lacking[0]!r}; the file is split_csv/1cls.csv of VisA")
        if not any(plain.values()):
            continue
        name, split, label, image, mask = (plain[column] for column in _COLUMNS)
        name, split, label = names.setdefault(name.casefold(), name), split.casefold(), label.casefold()
        if (split, label) not in _ROWS or not image:
            raise UserError(f"{where}: {split},{label},{image} is no row of split_csv/1cls.csv; get it again")
        anomalous = label == "anomaly"
        masks = (on_disk(mask),) if anomalous and mask else ()
        sample = Sample(on_disk(image), int(anomalous), label if anomalous else GOOD, masks)
        rows.setdefault(name, {"train": {}, "test": {}})[split][sample] = None
    found = [category_of(name, list(split["train"]), list(split["test"])) for name, split in sorted(rows.items())]
    return present(tree, found)


def _paths_on_disk(tree: Tree) -> Callable[[str], str]:
    """A function from a path as the table has it to that path on the disk; as it is where there is none."""
    exact = frozenset(tree.listing.files)
    folded = {path.casefold(): path for path in tree.listing.files}

    def find(written: str) -> str:
        path = written.replace("\\", "/").removeprefix("./").lstrip("/")
        if path in exact:
            return path
        # Some tables also name the folder that the root is.
        inner = path.partition("/")[2].casefold()
        return folded.get(path.casefold(), folded.get(inner, path))

    return find


def _is_tree(tree: Tree) -> bool:
    folders = tree.listing.folders
    return _TABLE in tree.listing.others and any(folder.endswith("/Data/Images") for folder in folders)


VISA = KnownSet(
    "visa",
    "VisA",
    visa_layout,
    masked=True,
    # Rows of split_csv/1cls.csv.
    counts={
        "candle": (900, 100, 100),
        "capsules": (542, 60, 100),
        "cashew": (450, 50, 100),
        "chewinggum": (453, 50, 100),
        "fryum": (450, 50, 100),
        "macaroni1": (900, 100, 100),
        "macaroni2": (900, 100, 100),
        "pcb1": (904, 100, 100),
        "pcb2": (901, 100, 100),
        "pcb3": (905, 101, 100),
        "pcb4": (904, 101, 100),
        "pipe_fryum": (450, 50, 100),
    },
    needs="split_csv/1cls.csv or <category>/train/good",
    is_tree=_is_tree,
    misread="would find no category in it",
)
