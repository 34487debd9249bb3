"""The data sets that the commands know: one pure function per layout, from a tree to categories of labelled samples.

To add one, write its `KnownSet` next to its layout and name it in `KNOWN`: all else is derived from that. Nothing here
touches a disk but for the tables and the blank label images that a tree gives. `data/README.md` says where each set is
from and how its tree looks.
"""

from __future__ import annotations

from pipeline.data.published.alike import BTAD, FOLDER, MPDD
from pipeline.data.published.elpv import ELPV, elpv_trains_on
from pipeline.data.published.known import KnownSet
from pipeline.data.published.kolektor import KOLEKTOR, KOLEKTOR2, kolektor_trains_on
from pipeline.data.published.mvtec import MVTEC, MVTEC_3D, MVTEC_AD2, MVTEC_LOCO
from pipeline.data.published.real_iad import REAL_IAD
from pipeline.data.published.visa import VISA
from pipeline.data.samples import Tree

__all__ = ["KNOWN", "KnownSet", "elpv_trains_on", "kolektor_trains_on", "recognise"]

KNOWN: dict[str, KnownSet] = {
    one.name: one
    for one in (
        *(MVTEC, VISA, ELPV, FOLDER),
        *(MVTEC_LOCO, MVTEC_AD2, MVTEC_3D, BTAD, KOLEKTOR, KOLEKTOR2, REAL_IAD, MPDD),
    )
}


def recognise(tree: Tree) -> str | None:
    """The name of the data set whose tree this is, by names alone.

    None also for the sets that `folder` reads as rightly as their own layouts do: MVTec AD, LOCO AD, BTAD and MPDD.
    """
    return next((one.name for one in KNOWN.values() if one.is_tree(tree)), None)
