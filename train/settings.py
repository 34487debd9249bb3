"""The settings of training and scoring, validated once where they enter and stored with the run."""

from __future__ import annotations

from dataclasses import dataclass

from pipeline.setting import POSITIVE, SHARE, Bounds, check, refuse, setting

NEGATIVES = ("cutswap", "random-swap", "cutpaste", "cutpaste-scar", "cutpaste-3way", "none")
PROXIES = ("binary", "levels")
SCORERS = ("sum", "embedding", "patches", "gde", "knn", "head")
_BELOW_ONE = Bounds(0, 1, without_high=True)


@dataclass(frozen=True)
class TrainSettings:
    """Everything that decides a detector, apart from the cache and the seed; defaults are ours: docs/method.md.

    "cutpaste-3way" has its own three classes (normal, paste, scar) whatever `proxy` says. momentum, weight_decay: of
    SGD. held_out: share of the normals kept out of training and of every fit, for thresholds. neighbours: k of the
    k-NN. coreset: patch embeddings kept for the anomaly map.
    """

    negatives: str = setting("cutswap", "How negatives are made; none: the untrained arm.", choices=NEGATIVES)
    proxy: str = setting("binary", "One class of negatives, or one per stage of the pairs.", choices=PROXIES)
    steps: int = setting(100, "Steps of SGD.", within=POSITIVE)
    batch_size: int = setting(16, "Normals per step; as many negatives are made of them.", within=POSITIVE)
    head_lr: float = setting(0.03, "Peak learning rate of the projection head.", within=_BELOW_ONE)
    backbone_lr: float = setting(
        0.0, "Peak learning rate of the backbone; 0 leaves it as it was pretrained.", within=_BELOW_ONE
    )
    momentum: float = 0.9
    weight_decay: float = 3e-5
    colour_jitter: float = setting(
        0.1, "Largest relative change of brightness, contrast and saturation.", within=_BELOW_ONE
    )
    translation: float = setting(0.03, "Largest shift, share of the side.", within=_BELOW_ONE)
    held_out: float = 0.15
    false_alarms: float = setting(
        0.01, "Share of normals that the threshold may flag.", within=SHARE, option="--false-positive-rate"
    )
    scorer: str = setting("sum", "The score that the threshold is compared with.", choices=SCORERS)
    neighbours: int = 5
    coreset: int = 2000

    def __post_init__(self) -> None:
        check(self)
        if (self.scorer, self.negatives) == ("head", "none"):
            refuse("--scorer", "head", "another with --negatives none")

    def classes(self, stages: int) -> int:
        """Classes of the head, normal among them, where the cache has so many stages."""
        if self.negatives == "cutpaste-3way":
            return 3
        return 1 + stages if self.proxy == "levels" else 2


# "untrained" is `train --negatives none`; "patchcore" has settings of its own.
ARMS = ("untrained", *(kind for kind in NEGATIVES if kind != "none"), "patchcore")


@dataclass(frozen=True)
class BenchmarkSettings:
    """The settings of a benchmark."""

    arms: tuple[str, ...] = setting(
        tuple(arm for arm in ARMS if arm != "cutpaste-scar"), "The arms to compare.", choices=ARMS, metavar="A,B,.."
    )
    seeds: int | None = setting(
        None, "Number of seeds, counted from 0; default 3, with --quick 1.", within=POSITIVE, type=int
    )
    image_size: int | None = setting(
        None, "Image size of a new cache; default that of precompute, with --quick 128.", type=int
    )
    quick: bool = setting(False, "A quick check with few normals, steps and test images; its results mean nothing.")

    def __post_init__(self) -> None:
        check(self)


@dataclass(frozen=True)
class PatchCoreSettings:
    """The arm PatchCore; coreset: share of all patches to keep, the paper's 10 %; the others as in `TrainSettings`."""

    coreset: float = 0.1
    held_out: float = 0.15
    false_alarms: float = 0.01


# The settings of an arm.
Settings = TrainSettings | PatchCoreSettings
