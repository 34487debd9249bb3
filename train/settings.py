"""The settings of training and scoring, validated once where they enter and stored with the run."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from pipeline.errors import UserError

NEGATIVES = ("cutswap", "random-swap", "cutpaste", "cutpaste-scar", "cutpaste-3way", "none")
PROXIES = ("binary", "levels")
SCORERS = ("sum", "embedding", "patches", "gde", "knn", "head")


@dataclass(frozen=True)
class TrainSettings:
    """Everything that decides a detector, beside the cache and the seed; defaults are ours: docs/method.md.

    negatives: how negatives are made; "none" trains nothing and is the untrained arm.
    proxy: the head's classes: "binary" (normal, negative) or "levels" (normal, a class a stage of the pairs);
    "cutpaste-3way" has its own three (normal, paste, scar) whatever it says.
    steps: of SGD; batch_size: normals a step, and as many negatives made of them.
    head_lr, backbone_lr: peak learning rates, both on one cosine cycle; 0 leaves the backbone as it was pretrained.
    colour_jitter: largest relative change of brightness, contrast and saturation; translation: largest shift, share
    of the image's side.
    held_out: share of the normals kept out of training and of every fit, for thresholds.
    false_alarms: share of normals that the threshold may flag.
    scorer: which of the scores decides; neighbours: k of the k-NN.
    coreset: patch embeddings kept for the anomaly map.
    """

    negatives: str = "cutswap"
    proxy: str = "binary"
    steps: int = 100
    batch_size: int = 16
    head_lr: float = 0.03
    backbone_lr: float = 0.0
    momentum: float = 0.9
    weight_decay: float = 3e-5
    colour_jitter: float = 0.1
    translation: float = 0.03
    held_out: float = 0.15
    false_alarms: float = 0.01
    scorer: str = "sum"
    neighbours: int = 5
    coreset: int = 2000

    def __post_init__(self) -> None:
        _require(self.negatives in NEGATIVES, "negatives", self.negatives, " or ".join(NEGATIVES))
        _require(self.proxy in PROXIES, "proxy", self.proxy, " or ".join(PROXIES))
        _require(self.scorer in SCORERS, "scorer", self.scorer, " or ".join(SCORERS))
        _require(self.scorer != "head" or self.negatives != "none", "scorer", "head", "another with --negatives none")
        for name in ("steps", "batch_size", "neighbours", "coreset"):
            _require(getattr(self, name) >= 1, name.replace("_", "-"), getattr(self, name), "1 or more")
        for name in ("head_lr", "backbone_lr", "momentum", "weight_decay", "colour_jitter", "translation"):
            _require(0 <= getattr(self, name) < 1, name.replace("_", "-"), getattr(self, name), "from 0 to below 1")
        for name in ("held_out", "false_alarms"):
            _require(0 < getattr(self, name) < 1, name.replace("_", "-"), getattr(self, name), "between 0 and 1")

    def classes(self, stages: int) -> int:
        """Classes of the head, normal among them, where the cache has so many stages."""
        if self.negatives == "cutpaste-3way":
            return 3
        return 1 + stages if self.proxy == "levels" else 2

    def to_attributes(self) -> dict[str, Any]:
        """The settings as JSON values."""
        return asdict(self)


@dataclass(frozen=True)
class PatchCoreSettings:
    """The arm PatchCore; coreset: share of all patches to keep, the paper's 10 %; the others as in `TrainSettings`."""

    coreset: float = 0.1
    held_out: float = 0.15
    false_alarms: float = 0.01

    def to_attributes(self) -> dict[str, Any]:
        """The settings as JSON values."""
        return asdict(self)


def _require(condition: bool, name: str, value: object, allowed: str) -> None:
    if not condition:
        raise UserError(f"--{name} {value} is out of range: give {allowed}")
