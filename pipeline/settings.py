"""The settings of a cache, validated once where they enter and stored with it."""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields
from typing import Any

from pipeline.backbones.spec import BACKBONES
from pipeline.setting import Bounds, check, setting

RESIZES = ("stretch", "pad")
IMAGE_SIZES = Bounds(32, 1024)
PRECISIONS = ("float32", "bfloat16", "float16")


@dataclass(frozen=True)
class PrecomputeSettings:
    """Everything that decides the arrays of a cache: equal settings give equal arrays.

    Which of these are ours and not the paper's, and the evidence for each default: docs/method.md.
    """

    image_size: int = setting(256, "Side of the square images, in pixels.", within=IMAGE_SIZES)
    resize: str = setting("stretch", "How an image becomes a square; pad keeps its aspect.", choices=RESIZES)
    backbone: str = setting(
        "efficientnet_lite0", "The network whose activations are explained.", choices=tuple(BACKBONES)
    )
    weights: str = setting(
        "imagenet",
        "Weights: those of ImageNet, random ones from --seed, or a file with a state dict.",
        metavar="imagenet|none|FILE",
        type="place",
    )
    stages: tuple[str, ...] = setting(
        (), "Stages of the backbone, shallow to deep; default four of them.", metavar="A,B,.."
    )
    clusters: int = setting(4, "Clusters per map: K of the k-means.", within=Bounds(2, 16))
    pairs: int = setting(16, "Patch pairs per image and stage.", within=Bounds(1, 256))
    # Up to a quarter of the image the shorter side of a patch is at most half of the image's side, so that two disjoint
    # patches always fit.
    patch_area: tuple[float, float] = setting(
        (0.005, 0.05),
        "Least and largest area of a patch, share of the image; drawn uniformly.",
        within=Bounds(0, 0.25, without_low=True),
    )
    patch_aspect: tuple[float, float] = setting(
        (0.3, 3.3), "Least and largest height/width of a patch; drawn log-uniformly.", within=Bounds(0.1, 10)
    )
    seed: int = setting(0, "Seed of the pairs and of random weights.", within=Bounds(0, 2**63 - 1))
    precision: str = setting("float32", "Precision of activations and gradients.", choices=PRECISIONS)

    def __post_init__(self) -> None:
        check(self)

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
