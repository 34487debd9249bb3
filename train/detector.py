"""The detector: the result of training, fitting and calibration, enough to score any image without the cache."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from pipeline.backbones.load import load_backbone
from pipeline.data.images import read_rgb, resize_rgb
from pipeline.device import choose_device
from pipeline.errors import UserError
from pipeline.files import write_tensors
from pipeline.settings import PrecomputeSettings
from train.calibration import Calibration
from train.features.extract import Images
from train.features.network import CutSwapNetwork
from train.recipe import Recipe
from train.run_folder import find_detector
from train.scorers.fitted import Fitted
from train.scorers.gaussian import Gaussian
from train.scorers.nearest import KNearest, PatchNearest
from train.scorers.standardise import Standardiser
from train.scorers.state import from_state, state_of

FORMAT = 4


@dataclass(frozen=True)
class Scores:
    """Of N images the scores (N,) float64 by scorer, higher more anomalous, and maps (N,H,W) float32, 0 or more."""

    image: dict[str, NDArray[np.float64]]
    maps: NDArray[np.float32]


@dataclass(frozen=True, eq=False)
class Prediction:
    """What a detector says of an image.

    path: as it was given, None for an array. score: on the scale of threshold, above which it is anomalous. map: (H,W)
    float32 at the detector's image size, 0 or more, higher where the image is unlike the normals.
    """

    path: str | None
    score: float
    threshold: float
    anomalous: bool
    map: NDArray[np.float32]


@dataclass(frozen=True, eq=False)
class Detector:
    """What is fitted and its calibration, and the settings of the cache and of the arm."""

    precompute_settings: PrecomputeSettings
    settings: Mapping[str, Any]
    fitted: Fitted
    calibration: Calibration

    @property
    def recipe(self) -> Recipe:
        """The rules it was made by."""
        return self.fitted.recipe

    @property
    def threshold(self) -> float:
        """On the scale of `decision_scores`; an image above it is anomalous."""
        return self.calibration.threshold

    @classmethod
    def load(cls, run: str | Path, device: str = "auto") -> Detector:
        """The detector of a run of one category, of a category's (its lowest seed) or a seed's folder, or of a file.

        device: "auto", "cpu" or "cuda". Raises UserError where there is none, or one that cannot be read.
        """
        return _read(find_detector(Path(run)), choose_device(device))

    def save(self, path: Path) -> None:
        """Write it to one file, atomically."""
        fitted, network = self.fitted, self.fitted.network
        content = {
            "format": FORMAT,
            "cache": self.precompute_settings.to_attributes(),
            "settings": dict(self.settings),
            "recipe": asdict(self.recipe),
            "pretrained": fitted.pretrained.state_dict(),
            "network": None if network is None else network.state_dict(),
            "one_trunk": network is not None and network.frozen,
            "classes": 0 if network is None else network.classes,
            "scorers": {name: state_of(s) for name, s in (*fitted.scorers.items(), ("patches", fitted.references))},
            "projection": fitted.projection,
            "standardisers": {name: state_of(s) for name, s in self.calibration.standardisers.items()},
            "map_range": list(self.calibration.map_range),
            "threshold": self.threshold,
        }
        write_tensors(path, content)

    def score(self, images: Images) -> Scores:
        """Every score of one image or more (size,size,3) uint8, as `pipeline.data.images.decode_rgb` gives them."""
        scores, maps = self.fitted.score_all(images, self.recipe.scorers)
        if self.recipe.members:
            scores["sum"] = self.calibration.score("sum", scores)
        return Scores({name: values.numpy() for name, values in scores.items()}, maps.numpy())

    def decision_scores(self, scores: Scores) -> NDArray[np.float64]:
        """The scores (N,) that the threshold is for."""
        return scores.image[self.recipe.deciding_score]

    def predict(self, images: Sequence[str | Path | NDArray[np.uint8]]) -> list[Prediction]:
        """Score image files, and RGB images (H,W,3) uint8 of any size, in their order; mixed is fine.

        Images are read and scored a bounded batch at a time, and only the scorers that decide are asked. Raises
        ImageError for a file that cannot be read, ValueError for an array of another shape or dtype.
        """
        if isinstance(images, str | Path):
            raise TypeError("predict takes a list of images: give [path] for a single one")
        found: list[Prediction] = []
        for scores, maps in self.fitted.score_batches(self._square(images), self.recipe.deciding_scorers):
            deciding = self.calibration.score(self.recipe.deciding_score, scores)
            for score, anomaly_map in zip(deciding.tolist(), maps.numpy(), strict=True):
                image = images[len(found)]
                path = None if isinstance(image, np.ndarray) else str(image)
                found.append(Prediction(path, score, self.threshold, score > self.threshold, anomaly_map))
        return found

    def _square(self, images: Sequence[str | Path | NDArray[np.uint8]]) -> Iterator[NDArray[np.uint8]]:
        size, resize = self.precompute_settings.image_size, self.precompute_settings.resize
        for i, image in enumerate(images):
            if isinstance(image, np.ndarray):
                yield resize_rgb(image, size, resize, f"images[{i}]")
            else:
                yield read_rgb(Path(image), size, resize)


def _read(path: Path, device: torch.device) -> Detector:
    """What `save` wrote, or commit 091a564 (format 3); UserError for another file or another format."""
    try:
        state = torch.load(path, map_location=device, weights_only=True)
    except Exception as error:  # torch.load raises whatever its unpickler met
        raise UserError(f"{path} cannot be read as a detector: train again") from error
    found = state.get("format") if isinstance(state, dict) else None
    if found is None:
        raise UserError(f"{path} is no detector: train again")
    if found not in (3, FORMAT):
        known = f"this version reads 3 and {FORMAT}"
        raise UserError(f"{path} is of format {found}, {known}: train again, or use the version that wrote it")
    precomputed = PrecomputeSettings.from_attributes(state["cache"])
    recipe = (
        _recipe_of_format_3(precomputed.backbone, state["settings"]) if found == 3 else _recipe(path, state["recipe"])
    )
    pretrained = load_backbone(precomputed.backbone, "none")
    pretrained.load_state_dict(state["pretrained"])
    network = None
    if state["network"] is not None:
        trunk = pretrained if state["one_trunk"] else load_backbone(precomputed.backbone, "none")
        network = CutSwapNetwork(trunk, recipe, state["classes"], state["one_trunk"])
        network.load_state_dict(state["network"])
        network.eval().requires_grad_(False).to(device)
    references = from_state(PatchNearest, state["scorers"].pop("patches"))
    scorers: dict[str, Gaussian | KNearest] = {
        name: from_state(KNearest, s) if name == "knn" else from_state(Gaussian, s)
        for name, s in state["scorers"].items()
    }
    standardisers = {name: from_state(Standardiser, s) for name, s in state["standardisers"].items()}
    return Detector(
        precomputed,
        state["settings"],
        Fitted(recipe, pretrained.to(device), network, scorers, state["projection"], references),
        Calibration(standardisers, tuple(state["map_range"]), state["threshold"]),
    )


def _recipe(path: Path, stored: Mapping[str, Any]) -> Recipe:
    if others := stored.keys() ^ {field.name for field in fields(Recipe)}:
        named = ", ".join(sorted(others))
        raise UserError(f"{path} was made by rules of another version ({named}): train again, or use that version")
    return Recipe(**stored)


def _recipe_of_format_3(backbone: str, settings: Mapping[str, Any]) -> Recipe:
    """The rules of commit 091a564, in full, so that a change of today's rules does not reach its detectors."""
    lite = backbone == "efficientnet_lite0"
    head = () if settings["negatives"] == "none" else ("head",)
    return Recipe(
        embedding_stages=tuple(f"blocks.{i}" for i in range(2, 7))
        if lite
        else ("layer1", "layer2", "layer3", "layer4"),
        pooling=("mean",),
        patch_stages=tuple(f"blocks.{i}" for i in range(1, 5)) if lite else ("layer1", "layer2", "layer3"),
        patch_grid="blocks.2" if lite else "layer2",
        neighbourhood=3,
        directions=64,
        ridge=1e-3,
        changed_share=0.5,
        way_references=2000,
        way_candidates=30_000,
        reference_candidates=50_000,
        reference_share=1.0,
        most_references=settings["coreset"],
        coreset_width=128,
        top_share=0.08,
        blur=4 / 224,
        neighbours=settings["neighbours"],
        scorers=("untrained", "embedding", "patches", "gde", "knn", *head),
        members=("untrained", "embedding", "patches"),
        deciding_score=settings["scorer"],
    )
