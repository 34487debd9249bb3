"""Data sets of other authors in the tree of MVTec AD, and anyone's own images."""

from __future__ import annotations

from pipeline.data.layouts import mvtec_layout
from pipeline.data.published.known import KnownSet

# A plain folder of normal images, too: see `pipeline.data.datasets`.
FOLDER = KnownSet("folder", "your own images", mvtec_layout, needs="<category>/train/good, train/good, or only images")

# Normals are called `ok`, the one class of defects `ko`; images and masks are BMP or PNG.
BTAD = KnownSet(
    "btad",
    "BTAD",
    mvtec_layout,
    masked=True,
    # As distributed: 2540 images, as the paper says (Mishra et al., ISIE 2021).
    counts={"01": (400, 21, 49), "02": (399, 30, 200), "03": (1000, 400, 41)},
    needs="<category>/train/ok",
)

MPDD = KnownSet(
    "mpdd",
    "MPDD",
    mvtec_layout,
    masked=True,
    # Their sums are the totals of Jezek et al., ICUMT 2021: 888, 176 and 282.
    counts={
        "bracket_black": (289, 32, 47),
        "bracket_brown": (185, 26, 51),
        "bracket_white": (110, 30, 30),
        "connector": (128, 30, 14),
        "metal_plate": (54, 26, 71),
        "tubes": (122, 32, 69),
    },
)
