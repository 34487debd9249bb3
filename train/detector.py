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
from pipeline.files import write_tensors
from pipeline.settings import PrecomputeSettings
from train.contrast import Contrast
from train.features import Features, Images, extract
from train.metrics import threshold_at
from train.network import CutSwapNetwork
from train.normals import Normals
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

FORMAT = 3
# PatchCore smooths its maps with a Gaussian of sigma 4 at 224 pixels.
_BLUR = 4 / 224
_MAPS_AT_ONCE = 64
# An image's patch score is the mean of this share of its cells, the highest.
_TOP_SHARE = 0.08
# The scores that the sum adds up, each standardised by the held-out normals: one vote each.
SUMMED = ("untrained", "embedding", "patches")


_SCORERS = ("untrained", "embedding", "gde", "knn", "patches")


@dataclass(frozen=True)
class Scores:
    """image: scores (N,) float64 by scorer, higher more anomalous; maps: anomaly maps (N,H,W) float32, 0 or more."""

    image: dict[str, NDArray[np.float64]]
    maps: NDArray[np.float32]


@dataclass(frozen=True, eq=False)
class Detector:
    """Networks, fitted scorers and threshold.

    pretrained: the backbone before training; network: after it, None for the untrained arm. embedding, projection: the
    discriminants of embeddings and, (E,d) or None, of patches; patches: the nearest of the projected ones.
    standardisers: of the scores that the sum adds up. map_range: median and largest value of the held-out normals'
    anomaly maps. threshold: on the scale of the settings' scorer.
    """

    cache: PrecomputeSettings
    settings: TrainSettings
    pretrained: Backbone
    network: CutSwapNetwork | None
    untrained: Gaussian
    embedding: Gaussian
    gde: Gaussian
    knn: KNearest
    projection: Tensor | None
    patches: PatchNearest
    standardisers: dict[str, Standardiser]
    map_range: tuple[float, float]
    threshold: float

    def score(self, images: Images) -> Scores:
        """Score images (size,size,3) uint8 as `pipeline.images.decode_rgb` gives them, in bounded batches."""
        features = extract(self.pretrained, self.network, images, self.distances)
        distances = torch.cat(features.of_patches)
        return Scores(self.image_scores(features, distances), self.anomaly_maps(distances))

    def decisive(self, scores: Scores) -> NDArray[np.float64]:
        """The scores (N,) of the scorer that the threshold is for."""
        return scores.image[self.settings.scorer]

    def image_scores(self, features: Features[Any], distances: Tensor) -> dict[str, NDArray[np.float64]]:
        """Scores (N,) by scorer of what `train.features.extract` gave and of the patches' distances (N,h,w).

        "untrained" and "gde" are Mahalanobis distances before and after training, "knn" is after it, "head" the
        log-odds of a negative; "embedding" and "patches" are the distances that negatives taught, and "sum" is that of
        these two and the untrained one, each standardised.
        """
        scores = {
            "untrained": gaussian_scores(self.untrained, features.pretrained),
            "embedding": gaussian_scores(self.embedding, features.pretrained),
            "patches": top_mean(distances).double().cpu().numpy(),
            "gde": gaussian_scores(self.gde, features.trained),
            "knn": k_nearest_scores(self.knn, features.trained),
        }
        if self.network is not None:
            scores["head"] = features.negative
        parts = [standardiser.standardise(scores[name]) for name, standardiser in self.standardisers.items()]
        return scores | {"sum": np.sum(parts, axis=0)}

    def distances(self, patches: Tensor) -> Tensor:
        """(B,h,w) distances of patch embeddings (B,E,h,w) to the nearest normal one, in the learned directions."""
        flat = patches.permute(0, 2, 3, 1).flatten(0, 2)
        projected = flat if self.projection is None else flat @ self.projection
        return self.patches.scores(projected).view(len(patches), *patches.shape[2:])

    def anomaly_maps(self, distances: Tensor) -> NDArray[np.float32]:
        """Patch distances (N,h,w) to anomaly maps (N,size,size), a few at a time."""
        smooth = [smooth_maps(part, self.cache.image_size).cpu().numpy() for part in distances.split(_MAPS_AT_ONCE)]
        return np.concatenate(smooth).astype(np.float32)


def top_mean(distances: Tensor) -> Tensor:
    """(B,) mean of the highest 8 % of the distances (B,h,w), at least one: a defect is seldom one cell alone."""
    flat = distances.flatten(1)
    return flat.topk(max(1, round(_TOP_SHARE * flat.shape[1])), dim=1).values.mean(1)


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
        "one_trunk": d.network is not None and d.network.frozen,
        "classes": 0 if d.network is None else d.network.classes,
        "scorers": {name: getattr(d, name).state() for name in _SCORERS},
        "projection": d.projection,
        "standardisers": {name: s.state() for name, s in d.standardisers.items()},
        "map_range": list(d.map_range),
        "threshold": d.threshold,
    }
    write_tensors(path, content)


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
        network = CutSwapNetwork(trunk, state["classes"], state["one_trunk"])
        network.load_state_dict(state["network"])
        network.eval().to(device)
    scorers = state["scorers"]
    return Detector(
        cache,
        TrainSettings(**state["settings"]),
        pretrained.to(device),
        network,
        untrained=Gaussian.from_state(scorers["untrained"]),
        embedding=Gaussian.from_state(scorers["embedding"]),
        gde=Gaussian.from_state(scorers["gde"]),
        knn=KNearest.from_state(scorers["knn"]),
        projection=state["projection"],
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
    contrast: Contrast | None,
    normals: Normals,
    held_out: Sequence[NDArray[np.uint8]],
    seed: int,
) -> Detector:
    """Fit every scorer to `normals` and what `contrast` holds of negatives, standardisers and threshold to `held_out`.

    held_out: normals seen by none of them. contrast: None for the untrained arm, whose distances weigh all directions
    alike.
    """
    device = pretrained.device
    trained = normals.pooled
    if network is not None and not network.frozen:
        trained = extract(pretrained, network, normals.images, lambda _: None).trained
    projection = None if contrast is None else contrast.patch_projection()
    patches = normals.patches.flatten(0, 1).to(device)
    projected = patches if projection is None else patches @ projection
    detector = Detector(
        cache,
        settings,
        pretrained,
        network,
        untrained=normals.gaussian,
        embedding=normals.gaussian if contrast is None else contrast.embedding_discriminant(),
        gde=normals.gaussian if trained is normals.pooled else fit_gaussian(trained),
        knn=fit_k_nearest(trained, settings.neighbours),
        projection=projection,
        patches=PatchNearest.fit(projected, min(settings.coreset, len(projected)), seed),
        standardisers={},
        map_range=(0.0, 1.0),
        threshold=0.0,
    )
    unseen = extract(pretrained, network, held_out, detector.distances)
    distances = torch.cat(unseen.of_patches)
    maps = detector.anomaly_maps(distances)
    scores = detector.image_scores(unseen, distances)
    detector = replace(
        detector,
        standardisers={name: fit_standardiser(scores[name]) for name in SUMMED},
        map_range=(float(np.median(maps)), float(maps.max())),
    )
    decisive = detector.image_scores(unseen, distances)[settings.scorer]
    return replace(detector, threshold=threshold_at(decisive, settings.false_alarms))
