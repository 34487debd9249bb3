"""The data sets of MVTec: AD, LOCO AD, AD 2 and 3D-AD."""

from __future__ import annotations

from dataclasses import replace

from pipeline.data.layouts import mvtec_layout
from pipeline.data.published.known import KnownSet, categories_with, files_below, labelled, leave_out
from pipeline.data.samples import Category, Layout, Tree, category_of, normals

_TRUTH = "ground_truth/"
_VALIDATION = "for validation; it is neither trained on nor tested with"


def loco_layout(tree: Tree) -> Layout:
    """MVTec LOCO AD (Bergmann et al., IJCV 2022): MVTec AD's tree with a folder of masks for each image.

    The classes are ``logical_anomalies`` and ``structural_anomalies``; the masks of ``test/<class>/000.png`` are
    ``ground_truth/<class>/000/*.png``. ``validation`` is left out.
    """
    layout = mvtec_layout(tree)
    return replace(layout, left_out=layout.left_out | leave_out(tree.listing.files, "validation", _VALIDATION))


def ad2_layout(tree: Tree) -> Layout:
    """MVTec AD 2 (Heckler-Kram et al., 2025): the public test set, which lies in ``test_public`` with its masks.

    ``validation`` is left out, and the private test sets, whose labels are not published.
    """
    left_out: dict[str, str] = {}
    categories: list[Category] = []
    for name, prefix in categories_with(tree, "train/good", "test_public").items():
        if f"{prefix}test" in tree.listing.folders and f"{prefix}test_public" not in tree.listing.folders:
            continue  # the tree of MVTec AD
        test = f"{prefix}test_public/"
        below = {path[len(test) :]: path for path in files_below(tree, test)}
        masks = {key.removeprefix(_TRUTH): path for key, path in below.items() if key.startswith(_TRUTH)}
        images = {key: path for key, path in below.items() if not key.startswith(_TRUTH)}
        train = files_below(tree, f"{prefix}train/good/")
        categories.append(category_of(name, normals(train), labelled(images, masks, left_out)))
        left_out |= dict.fromkeys(files_below(tree, f"{prefix}validation/"), _VALIDATION)
        left_out |= dict.fromkeys(files_below(tree, f"{prefix}test_private"), "no labels are published")
    return Layout(tuple(categories), left_out)


def mvtec_3d_layout(tree: Tree) -> Layout:
    """MVTec 3D-AD (Bergmann et al., VISAPP 2022): its photographs alone.

    Each folder of a class holds ``rgb/000.png``, ``xyz/000.tiff`` and, below ``test``, the masks ``gt/000.png``, also
    of normal images. Depth, those masks and ``validation`` are left out.
    """
    left_out: dict[str, str] = {}
    categories: list[Category] = []
    for name, prefix in categories_with(tree, "train/good/rgb", "test/good/rgb").items():
        images: dict[str, str] = {}
        masks: dict[str, str] = {}
        for path in files_below(tree, f"{prefix}test/"):
            kind, folder, file = [*path.removeprefix(f"{prefix}test/").split("/", 2), "", ""][:3]
            if folder in ("rgb", "gt"):
                (images if folder == "rgb" else masks)[f"{kind}/{file}"] = path
            else:
                left_out[path] = _beside(folder)
        train = f"{prefix}train/good/rgb/"
        photographs = files_below(tree, train)
        others = [path for path in files_below(tree, f"{prefix}train/") if not path.startswith(train)]
        left_out |= {path: _beside(path.rsplit("/", 2)[-2]) for path in others}
        left_out |= dict.fromkeys(files_below(tree, f"{prefix}validation/"), _VALIDATION)
        categories.append(category_of(name, normals(photographs), labelled(images, masks, left_out)))
    return Layout(tuple(categories), left_out)


def _beside(folder: str) -> str:
    return "depth, not a photograph" if folder == "xyz" else "in none of the folders rgb, xyz and gt"


def _is_ad2(tree: Tree) -> bool:
    prefixes = categories_with(tree, "test_public").values()
    folders = tree.listing.folders
    return any(f"{prefix}train/good" in folders and f"{prefix}test" not in folders for prefix in prefixes)


def _is_3d(tree: Tree) -> bool:
    prefixes = categories_with(tree, "train/good/rgb").values()
    return any(f"{prefix}train/good/xyz" in tree.listing.folders for prefix in prefixes)


MVTEC = KnownSet(
    "mvtec",
    "MVTec AD",
    mvtec_layout,
    masked=True,
    # Table 1 of Bergmann et al., IJCV 129, 2021.
    counts={
        "bottle": (209, 20, 63),
        "cable": (224, 58, 92),
        "capsule": (219, 23, 109),
        "carpet": (280, 28, 89),
        "grid": (264, 21, 57),
        "hazelnut": (391, 40, 70),
        "leather": (245, 32, 92),
        "metal_nut": (220, 22, 93),
        "pill": (267, 26, 141),
        "screw": (320, 41, 119),
        "tile": (230, 33, 84),
        "toothbrush": (60, 12, 30),
        "transistor": (213, 60, 40),
        "wood": (247, 19, 60),
        "zipper": (240, 32, 119),
    },
)

# `folder` reads this tree rightly, but that it does not say why it leaves `validation` out.
MVTEC_LOCO = KnownSet(
    "mvtec_loco",
    "MVTec LOCO AD",
    loco_layout,
    masked=True,
    # As distributed; data/README.md says where the paper differs.
    counts={
        "breakfast_box": (351, 102, 173),
        "juice_bottle": (335, 94, 236),
        "pushpins": (372, 138, 172),
        "screw_bag": (360, 122, 219),
        "splicing_connectors": (360, 119, 193),
    },
)

MVTEC_AD2 = KnownSet(
    "mvtec_ad2",
    "MVTec AD 2",
    ad2_layout,
    masked=True,
    # The public test set, as distributed.
    counts={
        "can": (412, 72, 90),
        "fabric": (387, 66, 90),
        "fruit_jelly": (263, 20, 60),
        "rice": (313, 42, 90),
        "sheet_metal": (137, 24, 90),
        "vial": (291, 35, 105),
        "wallplugs": (293, 60, 90),
        "walnuts": (432, 60, 90),
    },
    needs="<category>/train/good and <category>/test_public",
    is_tree=_is_ad2,
    misread="would miss its test images, which are in test_public",
)

MVTEC_3D = KnownSet(
    "mvtec_3d",
    "MVTec 3D-AD",
    mvtec_3d_layout,
    masked=True,
    # Table 1 of Bergmann et al., VISAPP 2022.
    counts={
        "bagel": (244, 22, 88),
        "cable_gland": (223, 21, 87),
        "carrot": (286, 27, 132),
        "cookie": (210, 28, 103),
        "dowel": (288, 26, 104),
        "foam": (236, 20, 80),
        "peach": (361, 26, 106),
        "potato": (300, 22, 92),
        "rope": (298, 32, 69),
        "tire": (210, 25, 87),
    },
    needs="<category>/train/good/rgb",
    is_tree=_is_3d,
    misread="would miss its masks, which lie in folders gt",
)
