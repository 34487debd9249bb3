"""The settings of training and scoring, validated once where they enter and stored with the run."""

from __future__ import annotations

from dataclasses import dataclass

from pipeline.errors import UserError
from pipeline.setting import SHARE, Bounds, check, setting
from pipeline.settings import IMAGE_SIZES

NEGATIVES = ("cutswap", "random-swap", "cutpaste", "cutpaste-scar", "cutpaste-3way", "mix", "none")
SCORERS = ("largest", "sum", "gaussian", "patches", "localiser")
_BELOW_ONE = Bounds(0, 1, without_high=True)
# Of every arm, so that none learns from a normal that another does not, and all have the same rate of false positives.
_HELD_OUT, _FALSE_ALARMS = 0.15, 0.01


@dataclass(frozen=True)
class TrainSettings:
    """Everything that decides a detector, apart from the cache and the seed; defaults are ours: docs/method.md.

    weight_decay: of AdamW. held_out: share of the normals that the localiser does not see. folds: in which all
    normals are scored, each by what is fitted to the other folds, for scales and the threshold; 1: those held out. What
    is fitted in the end is fitted to all. group: which normals show one part, none of which is held out without the
    others. coreset: patch embeddings kept as references.
    """

    negatives: str = setting("cutswap", "How negatives are made; none: the untrained arm.", choices=NEGATIVES)
    steps: int = setting(1200, "Steps of training of the localiser; 0: the untrained arm.", within=Bounds(0, 10**7))
    batch_size: int = setting(4, "Negatives per step; half as many normals come with them.", within=Bounds(1, 1024))
    crop: int = setting(
        160, "Side in pixels of the crops to train on, at most; a multiple of 16 is used.", within=Bounds(16)
    )
    head_lr: float = setting(0.001, "Peak learning rate of the localiser's new layers.", within=_BELOW_ONE)
    backbone_lr: float = setting(
        0.0002, "Peak learning rate of its copy of the backbone's stages; 0 leaves them pretrained.", within=_BELOW_ONE
    )
    weight_decay: float = 1e-4
    colour_jitter: float = setting(0.1, "Largest relative change of brightness and contrast.", within=_BELOW_ONE)
    held_out: float = _HELD_OUT
    folds: int = 10
    group: str | None = setting(
        None, "Images of one part: folder, or a regex of paths; default: near copies.", type=str, metavar="REGEX|folder"
    )
    false_alarms: float = setting(
        _FALSE_ALARMS,
        "The rate that the threshold is for.",
        within=SHARE,
        option="--false-positive-rate",
    )
    scorer: str = setting("largest", "The score that the threshold is compared with.", choices=SCORERS)
    coreset: int = 4000

    def __post_init__(self) -> None:
        check(self)
        if self.scorer == "localiser" and not self.trains:
            raise UserError("--scorer localiser needs a localiser: give --negatives and --steps that train one")

    @property
    def trains(self) -> bool:
        """Whether a localiser is trained."""
        return self.negatives != "none" and self.steps > 0

    @property
    def normals(self) -> int:
        """Normals per step, beside the negatives."""
        return -(-self.batch_size // 2)


@dataclass(frozen=True)
class PatchCoreSettings:
    """The arms of PatchCore; coreset: share of the patches to keep; the others as in `TrainSettings`.

    whitened: with the Mahalanobis distance of MH-PatchCore.
    """

    coreset: float = 0.1
    whitened: bool = False
    held_out: float = _HELD_OUT
    folds: int = 1  # a fold would cost a coreset of a tenth of the patches, or a training
    false_alarms: float = _FALSE_ALARMS


@dataclass(frozen=True)
class FinetuneSettings:
    """The arm `finetuned`, the abstract read literally: the whole backbone learns normals against negatives.

    batch_size: normals per step, and as many negatives. momentum, weight_decay: of SGD, as in CutPaste. The others as
    in `TrainSettings`.
    """

    negatives: str = "cutswap"
    steps: int = 60
    batch_size: int = 8
    head_lr: float = 0.03
    backbone_lr: float = 0.001
    momentum: float = 0.9
    weight_decay: float = 3e-5
    colour_jitter: float = 0.1
    held_out: float = _HELD_OUT
    folds: int = 1  # a fold would cost a coreset of a tenth of the patches, or a training
    false_alarms: float = _FALSE_ALARMS


# The settings of an arm.
Settings = TrainSettings | PatchCoreSettings | FinetuneSettings

# "untrained" is `train --negatives none`; the last three have settings of their own.
_COMPARED = ("finetuned", "patchcore", "patchcore-whitened")
ARMS = ("untrained", *(kind for kind in NEGATIVES if kind != "none"), *_COMPARED)
# The others take hours.
_DEFAULT_ARMS = ("untrained", "cutswap", "random-swap", "mix", "patchcore", "patchcore-whitened")


@dataclass(frozen=True)
class BenchmarkSettings:
    """The settings of a benchmark."""

    arms: tuple[str, ...] = setting(_DEFAULT_ARMS, "The arms to compare.", choices=ARMS, metavar="A,B,..")
    seeds: int | None = setting(
        None, "Number of seeds, counted from 0; default 3, with --quick 1.", within=Bounds(1, 1000), type=int
    )
    image_size: int | None = setting(
        None,
        "Image size of a new cache; default that of precompute, with --quick 128.",
        within=IMAGE_SIZES,
        type=int,
    )
    quick: bool = setting(False, "A quick check with few normals, steps and test images; its results mean nothing.")

    def __post_init__(self) -> None:
        check(self)
