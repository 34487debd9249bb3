"""The settings of a cache, validated once where they enter and stored with it."""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields
from typing import Any

from pipeline.errors import UserError

RESIZES = ("stretch", "pad")
PRECISIONS = ("float32", "bfloat16", "float16")


@dataclass(frozen=True)
class PrecomputeSettings:
    """Everything that decides what a cache holds; two caches with equal settings hold equal arrays.

    Which of these are ours and not the paper's, and the evidence for each default: docs/method.md.

    image_size: side of the square input, pixels, 32..1024.
    resize: "stretch" to the square, or "pad" to keep the ratio.
    backbone: a name of `pipeline.backbone.BACKBONES`.
    weights: "imagenet" (the backbone's own), "none" (random, from `seed`), or the path of a state dict.
    stages: names of backbone stages, shallow to deep; empty means the backbone's four default ones.
    clusters: K of the k-means of a map, 2..16.
    pairs: patch pairs drawn per image and stage, 1..256.
    patch_area: least and largest area of a patch, share of the image; uniform between them.
    patch_aspect: least and largest height/width of a patch; log-uniform between them.
    seed: of pairs and of random weights.
    precision: of the network's activations and gradients; the lower two by torch's autocast.
    """

    image_size: int = 256
    resize: str = "stretch"
    backbone: str = "efficientnet_lite0"
    weights: str = "imagenet"
    stages: tuple[str, ...] = ()
    clusters: int = 4
    pairs: int = 16
    patch_area: tuple[float, float] = (0.005, 0.05)
    patch_aspect: tuple[float, float] = (0.3, 3.3)
    seed: int = 0
    precision: str = "float32"

    def __post_init__(self) -> None:
        _require(32 <= self.image_size <= 1024, "image-size", self.image_size, "from 32 to 1024")
        _require(self.resize in RESIZES, "resize", self.resize, " or ".join(RESIZES))
        _require(2 <= self.clusters <= 16, "clusters", self.clusters, "from 2 to 16")
        _require(1 <= self.pairs <= 256, "pairs", self.pairs, "from 1 to 256")
        _require(self.seed >= 0, "seed", self.seed, "0 or more")
        _require(self.precision in PRECISIONS, "precision", self.precision, " or ".join(PRECISIONS))
        low, high = self.patch_area
        # Up to a quarter of the image the shorter side of a patch is at most half of the image's side, so that
        # two disjoint patches always fit.
        _require(0 < low <= high <= 0.25, "patch-area", self.patch_area, "two rising shares in 0..0.25")
        low, high = self.patch_aspect
        _require(0.1 <= low <= high <= 10, "patch-aspect", self.patch_aspect, "two rising ratios in 0.1..10")

    @property
    def map_size(self) -> int:
        """Side of the saliency maps, in cells: a quarter of the image's, the stride of the finest default stage."""
        return self.image_size // 4

    def to_attributes(self) -> dict[str, Any]:
        """The settings as JSON values."""
        return {name: list(v) if isinstance(v, tuple) else v for name, v in asdict(self).items()}

    @classmethod
    def from_attributes(cls, attributes: dict[str, Any]) -> PrecomputeSettings:
        """The inverse of `to_attributes`; an unknown name raises TypeError."""
        values: dict[str, Any] = {name: tuple(v) if isinstance(v, list) else v for name, v in attributes.items()}
        return cls(**values)

    def differences(self, other: PrecomputeSettings) -> list[str]:
        """A line `name: mine, not yours` for each setting in which the two differ."""
        pairs = ((f.name, getattr(self, f.name), getattr(other, f.name)) for f in fields(self))
        return [f"{name}: {mine}, not {yours}" for name, mine, yours in pairs if mine != yours]


def _require(condition: bool, name: str, value: object, allowed: str) -> None:
    if not condition:
        raise UserError(f"--{name} {value} is out of range: give {allowed}")
