"""The detector: what training and fitting leave behind, enough to score any image without the cache."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor
from torchvision.transforms.functional import gaussian_blur

from pipeline.backbone import Backbone, load_backbone
from pipeline.errors import UserError
from pipeline.settings import PrecomputeSettings
from train.features import Features, Images, extract
from train.fit import save_atomic
from train.metrics import threshold_at
from train.network import CutSwapNetwork
from train.scorers import (
    Gaussian,
    KNearest,
    PatchNearest,
    Standardiser,
    fit_gaussian,
    fit_k_nearest,
    fit_standardiser,
    gaussian_scores,
    k_nearest_scores,
)
from train.settings import TrainSettings

FORMAT = 2
# The coreset is chosen from at most this many patches: its time grows with this number times its size.
_CORESET_CANDIDATES = 50_000
# PatchCore smooths its maps with a Gaussian of sigma 4 at 224 pixels.
_BLUR = 4 / 224
# What the head's standardised log-odds weigh against the standardised distance: a hint, not a second opinion.
HEAD_WEIGHT = 0.25


@dataclass(frozen=True)
class Scores:
    """image: scores (N,) float64 by scorer, higher more anomalous; maps: anomaly maps (N,H,W) float32, 0 or more."""

    image: dict[str, NDArray[np.float64]]
    maps: NDArray[np.float32]


@dataclass(frozen=True, eq=False)
class Detector:
    """Networks, fitted scorers and threshold.

    pretrained: the backbone before training; network: after it, None for the untrained arm. standardisers: of the
    scores that the sum adds up. map_range: median and largest value of the held-out normals' anomaly maps.
    threshold: on the scale of the settings' scorer.
    """

    cache: PrecomputeSettings
    settings: TrainSettings
    pretrained: Backbone
    network: CutSwapNetwork | None
    untrained: Gaussian
    gde: Gaussian
    knn: KNearest
    patches: PatchNearest
    standardisers: dict[str, Standardiser]
    map_range: tuple[float, float]
    threshold: float

    def score(self, images: Images) -> Scores:
        """Score images (size,size,3) uint8 as `pipeline.images.decode_rgb` gives them, in bounded batches."""
        features = extract(self.cache.backbone, self.pretrained, self.network, images, self.anomaly_maps)
        return Scores(self.image_scores(features), np.concatenate(features.of_patches))

    def decisive(self, scores: Scores) -> NDArray[np.float64]:
        """The scores (N,) of the scorer that the threshold is for."""
        return scores.image[self.settings.scorer]

    def image_scores(self, features: Features[Any]) -> dict[str, NDArray[np.float64]]:
        """Scores (N,) by scorer of what `train.features.extract` gave.

        "untrained" and "gde" are Mahalanobis distances before and after training, "knn" is after it, "head" the
        log-odds of a negative, and "sum" the standardised untrained distance plus a quarter of the head's.
        """
        scores = {
            "untrained": gaussian_scores(self.untrained, features.pretrained),
            "gde": gaussian_scores(self.gde, features.trained),
            "knn": k_nearest_scores(self.knn, features.trained),
        }
        if self.network is not None:
            scores["head"] = features.negative
        weights = {"untrained": 1.0, "head": HEAD_WEIGHT}
        parts = [weights[name] * s.standardise(scores[name]) for name, s in self.standardisers.items()]
        return scores | {"sum": np.sum(parts, axis=0)}

    def anomaly_maps(self, patches: Tensor) -> NDArray[np.float32]:
        """Patch embeddings (B,E,h,w) to anomaly maps (B,size,size): distances, upsampled and smoothed."""
        batch, width, rows, columns = patches.shape
        distances = self.patches.scores(patches.permute(0, 2, 3, 1).reshape(-1, width)).view(batch, rows, columns)
        return np.asarray(smooth_maps(distances, self.cache.image_size).cpu().numpy(), np.float32)


def smooth_maps(distances: Tensor, size: int) -> Tensor:
    """Distances of patches (B,h,w) to maps (B,size,size): upsampled bilinearly and smoothed as PatchCore does."""
    maps = F.interpolate(distances[:, None], size=(size, size), mode="bilinear", align_corners=False)
    sigma = _BLUR * size
    smooth: Tensor = gaussian_blur(maps, [2 * round(3 * sigma) + 1] * 2, [sigma] * 2)
    return smooth[:, 0]


def save_detector(detector: Detector, path: Path) -> None:
    """Write a detector to one file, atomically."""
    d = detector
    content = {
        "format": FORMAT,
        "cache": d.cache.to_attributes(),
        "settings": d.settings.to_attributes(),
        "pretrained": d.pretrained.state_dict(),
        "network": None if d.network is None else d.network.state_dict(),
        "one_trunk": d.network is not None and d.network.backbone is d.pretrained,
        "classes": 0 if d.network is None else d.network.classes,
        "scorers": {name: getattr(d, name).state() for name in ("untrained", "gde", "knn", "patches")},
        "standardisers": {name: s.state() for name, s in d.standardisers.items()},
        "map_range": list(d.map_range),
        "threshold": d.threshold,
    }
    save_atomic(path, content)


def load_detector(path: Path, device: torch.device) -> Detector:
    """Read what `save_detector` wrote; raises UserError for another file or another format."""
    try:
        state = torch.load(path, map_location=device, weights_only=True)
    except Exception as error:  # torch.load raises whatever its unpickler met
        raise UserError(f"{path} cannot be read as a detector: train again") from error
    if not isinstance(state, dict) or state.get("format") != FORMAT:
        raise UserError(f"{path} is no detector of format {FORMAT}: train again with this version")
    cache = PrecomputeSettings.from_attributes(state["cache"])
    pretrained = load_backbone(cache.backbone, "none")
    pretrained.load_state_dict(state["pretrained"])
    network = None
    if state["network"] is not None:
        trunk = pretrained if state["one_trunk"] else load_backbone(cache.backbone, "none")
        network = CutSwapNetwork(trunk, cache.backbone, state["classes"])
        network.load_state_dict(state["network"])
        network.eval().to(device)
    scorers = state["scorers"]
    return Detector(
        cache,
        TrainSettings(**state["settings"]),
        pretrained.to(device),
        network,
        untrained=Gaussian.from_state(scorers["untrained"]),
        gde=Gaussian.from_state(scorers["gde"]),
        knn=KNearest.from_state(scorers["knn"]),
        patches=PatchNearest.from_state(scorers["patches"]),
        standardisers={name: Standardiser.from_state(s) for name, s in state["standardisers"].items()},
        map_range=tuple(state["map_range"]),
        threshold=state["threshold"],
    )


def fit_detector(
    cache: PrecomputeSettings,
    settings: TrainSettings,
    pretrained: Backbone,
    network: CutSwapNetwork | None,
    normals: Sequence[NDArray[np.uint8]],
    held_out: Sequence[NDArray[np.uint8]],
    seed: int,
) -> Detector:
    """Fit every scorer to `normals`, and standardisers and threshold to `held_out`, normals seen by none of them."""
    features = extract(cache.backbone, pretrained, network, normals, _PatchSample(len(normals), seed))
    patches = torch.cat(features.of_patches).to(next(pretrained.parameters()).device)
    detector = Detector(
        cache,
        settings,
        pretrained,
        network,
        untrained=fit_gaussian(features.pretrained),
        gde=fit_gaussian(features.trained),
        knn=fit_k_nearest(features.trained, settings.neighbours),
        patches=PatchNearest.fit(patches, min(settings.coreset, len(patches)), seed),
        standardisers={},
        map_range=(0.0, 1.0),
        threshold=0.0,
    )
    unseen = extract(cache.backbone, pretrained, network, held_out, detector.anomaly_maps)
    maps = np.concatenate(unseen.of_patches)
    scores = detector.image_scores(unseen)
    detector = replace(
        detector,
        standardisers={name: fit_standardiser(scores[name]) for name in ("untrained", "head") if name in scores},
        map_range=(float(np.median(maps)), float(maps.max())),
    )
    decisive = detector.image_scores(unseen)[settings.scorer]
    return replace(detector, threshold=threshold_at(decisive, settings.false_alarms))


class _PatchSample:
    """Keeps some random patches of every image, so that memory does not grow with the number of images."""

    def __init__(self, images: int, seed: int) -> None:
        self._each = -(-_CORESET_CANDIDATES // images)
        self._generator = torch.Generator().manual_seed(seed)

    def __call__(self, patches: Tensor) -> Tensor:
        """(B,E,h,w) to (n,E) on the CPU."""
        flat = patches.permute(0, 2, 3, 1).flatten(1, 2).cpu()
        kept = [image[torch.randperm(len(image), generator=self._generator)[: self._each]] for image in flat]
        return torch.cat(kept)
