"""Real-IAD: a JSON file for each category says which image is for what."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping

from pipeline.data.published.known import KnownSet, present
from pipeline.data.samples import GOOD, Category, Layout, Sample, Tree, category_of
from pipeline.errors import UserError

# As the authors' page says, and as their archive unpacks in a folder of its name.
_TABLE = re.compile(r"realiad_jsons/(?:realiad_jsons/)?([^/]+)\.json")
# The folders of the sizes that are distributed; of several the first one is taken.
_SIZES = ("realiad_1024", "realiad_512", "realiad_256", "realiad_raw")


def real_iad_layout(tree: Tree) -> Layout:
    """Real-IAD (Wang et al., CVPR 2024), all five views, as ``realiad_jsons/<category>.json`` says.

    The images are in ``realiad_1024/<category>/``, or the folder of another size. As the authors' loader has it, a test
    image without a mask is normal, also one of an object that is defective where this view does not show it. Images
    that no table names are left out, and defects that a table has in its training set.

    Raises `UserError` naming a table of another form.
    """
    folders = tree.listing.folders
    size = next((size for size in _SIZES if size in folders), None)
    if size is None:
        return Layout(())
    left_out: dict[str, str] = {}
    tables = {found[1]: path for path in tree.listing.others if (found := _TABLE.fullmatch(path))}
    categories = [_category(tree, name, path, f"{size}/", left_out) for name, path in sorted(tables.items())]
    named = {path for category in categories for path in category.files}
    for path in tree.listing.files:
        if path not in named and path not in left_out:
            other = path.partition("/")[0] in _SIZES and not path.startswith(f"{size}/")
            left_out[path] = f"of another size than {size}" if other else "in no table of realiad_jsons"
    return present(tree, categories, left_out)


def _category(tree: Tree, name: str, table_path: str, size: str, left_out: dict[str, str]) -> Category:
    where = f"{tree.root}/{table_path}"
    try:
        table = json.loads(tree.table(table_path) or "")
        folder = size + f"{table['meta']['prefix']}".strip("/")
        normal_class = table["meta"]["normal_class"]
        train = list(_samples(table["train"], folder, normal_class))
        test = list(_samples(table["test"], folder, normal_class))
    except KeyError as error:
        raise UserError(f"{where}: has no {error}; get realiad_jsons.zip of Real-IAD again") from None
    except (AttributeError, TypeError, ValueError, RecursionError):
        raise UserError(f"{where}: is no table of Real-IAD; get realiad_jsons.zip again") from None
    left_out |= {path: "a defect in train" for sample in train if sample.label for path in (sample.path, *sample.masks)}
    return category_of(name, [sample for sample in train if not sample.label], test)


def _samples(rows: list[Mapping[str, str | None]], folder: str, normal_class: str) -> Iterator[Sample]:
    for row in rows:
        image, mask, defect = row["image_path"], row["mask_path"], row["anomaly_class"]
        if not isinstance(image, str) or not isinstance(defect, str):
            raise ValueError(image)
        if mask is None or defect == normal_class:
            yield Sample(f"{folder}/{image}", 0, GOOD, ())
        else:
            yield Sample(f"{folder}/{image}", 1, defect, (f"{folder}/{mask}",))


def _is_tree(tree: Tree) -> bool:
    folders = tree.listing.folders
    return "realiad_jsons" in folders and any(size in folders for size in _SIZES)


# No counts: the tables say how many there are, and no source was found that says it for each category.
REAL_IAD = KnownSet(
    "real_iad",
    "Real-IAD",
    real_iad_layout,
    masked=True,
    needs="realiad_1024/<category> and realiad_jsons/<category>.json",
    is_tree=_is_tree,
    misread="does not read the tables that say which of its images are normal",
)
