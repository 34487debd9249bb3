"""What a user may ask of `predict`."""

from __future__ import annotations

import math
from dataclasses import dataclass

from pipeline.setting import check, refuse, setting

OVERLAYS, MAPS, MASKS = "overlays", "maps", "masks"
# Of what is written beside the table: its folders, and how the names of files in them end, all as long.
SUFFIXES = {OVERLAYS: ".jpg", MAPS: ".npy", MASKS: ".png"}


@dataclass(frozen=True)
class Wanted:
    """Which detector of a run decides and by which threshold, and what is written beside the table.

    category: of a run of several. threshold: None for the detector's own.
    """

    category: str | None = setting(None, "Of a RUN of several: the category whose detector decides.", type=str)
    threshold: float | None = setting(None, "Decide by this one; default the detector's own.", type=float)
    pictures: str = setting("all", "Overlays to write.", choices=("all", "anomalous", "none"))
    maps: bool = setting(False, "Save anomaly maps, maps/*.npy, float32 at the detector's size.")
    masks: bool = setting(False, "Save masks, masks/*.png, 255 where a map is above its threshold.")

    def __post_init__(self) -> None:
        check(self)
        if self.threshold is not None and not math.isfinite(self.threshold):
            refuse("--threshold", self.threshold, "a finite number")

    def draws(self, anomalous: bool) -> bool:
        """Whether an image of that verdict gets an overlay."""
        return self.pictures == "all" or (self.pictures == "anomalous" and anomalous)

    @property
    def folders(self) -> list[str]:
        """The folders of what is written beside the table."""
        asked = (self.pictures != "none", self.maps, self.masks)
        return [folder for folder, is_asked in zip(SUFFIXES, asked, strict=True) if is_asked]


def beside(folder: str, overlay: str) -> str:
    """The path, below `--out`, of an image's file in one of the folders; overlay: the name of its overlay."""
    return f"{folder}/{overlay.removesuffix(SUFFIXES[OVERLAYS])}{SUFFIXES[folder]}"
