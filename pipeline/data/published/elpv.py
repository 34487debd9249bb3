"""ELPV: solar cells, each with the probability of a defect."""

from __future__ import annotations

from pipeline.data.published.known import KnownSet, files_below, present, tenth_of
from pipeline.data.samples import GOOD, Layout, Sample, Tree, category_of
from pipeline.errors import UserError

_TABLE = "labels.csv"


def elpv_layout(tree: Tree) -> Layout:
    """Categories ``mono`` and ``poly`` of ELPV (Deitsch et al., Solar Energy 2019) from its ``labels.csv``.

    Lines are ``path probability type``. Defect probability 0 is normal, 1 is anomalous (class "defect"); 1/3
    and 2/3, where the experts were unsure, are left out. `elpv_trains_on` splits the normals; there are no
    masks.

    Raises `UserError` naming a line of another form.
    """
    table_path, table = f"{tree.root}/{_TABLE}", tree.table(_TABLE)
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
    `tenth_of` it is below 7.
    """
    return tenth_of(path.rpartition("/")[2]) < 7


def _is_tree(tree: Tree) -> bool:
    return _TABLE in tree.listing.others and bool(files_below(tree, "images/cell"))


ELPV = KnownSet(
    "elpv",
    "ELPV",
    elpv_layout,
    # Package elpv-dataset 1.0, labels 0 and 1, split by `elpv_trains_on`.
    counts={"mono": (418, 170, 313), "poly": (665, 255, 402)},
    needs="labels.csv with images",
    is_tree=_is_tree,
    misread="would not read its labels",
)
