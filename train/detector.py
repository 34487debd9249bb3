"""The detector: the result of training, fitting and calibration, enough to score any image without the cache."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from pipeline.backbones.inference import for_inference
from pipeline.backbones.load import StateDict, load_backbone
from pipeline.data.images import read_rgb, resize_rgb
from pipeline.device import choose_device
from pipeline.errors import UserError
from pipeline.files import write_tensors
from pipeline.settings import PrecomputeSettings
from train.calibration import Calibration
from train.features.extract import Images, Item, as_it_is
from train.features.network import CutSwapNetwork
from train.recipe import Recipe
from train.run_folder import find_detector
from train.scorers.fitted import Fitted
from train.scorers.gaussian import Gaussian
from train.scorers.nearest import KNearest, PatchNearest
from train.scorers.standardise import Standardiser
from train.scorers.state import from_state, state_of

FORMAT = 5

# An image to predict: a file, or an RGB array (H,W,3) uint8.
Source = str | Path | NDArray[np.uint8]


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
    """What is fitted and its calibration, and the settings of the cache and of the arm.

    pretrained: the weights of the backbone as they were loaded; `fitted` has them folded for inference.
    """

    precompute_settings: PrecomputeSettings
    settings: Mapping[str, Any]
    pretrained: StateDict
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
            "pretrained": dict(self.pretrained),
            "network": None if network is None else network.learned_state(),
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
        return self.score_items(images, as_it_is)

    def score_items(self, items: Iterable[Item], load: Callable[[Item], NDArray[np.uint8]]) -> Scores:
        """What `score` gives of the images that `load` makes of items, read ahead and spread over the cores."""
        scores, maps = self.fitted.score_all(items, load, self.recipe.scorers)
        if self.recipe.members:
            scores["sum"] = self.calibration.score("sum", scores)
        return Scores({name: values.numpy() for name, values in scores.items()}, maps.numpy())

    def decision_scores(self, scores: Scores) -> NDArray[np.float64]:
        """The scores (N,) that the threshold is for."""
        return scores.image[self.recipe.deciding_score]

    def predict(self, images: Iterable[Source]) -> list[Prediction]:
        """Score image files, and RGB images (H,W,3) uint8 of any size, in their order; mixed is fine.

        Only the scorers that decide are asked. Raises ImageError for a file that cannot be read, ValueError for an
        array of another shape or dtype.
        """
        return list(self.predict_each(images))

    def predict_each(self, images: Iterable[Source]) -> Iterator[Prediction]:
        """What `predict` gives, one by one: images are read and scored a bounded number ahead."""
        if isinstance(images, str | Path):
            raise TypeError("predict takes a list of images: give [path] for a single one")
        paths: deque[str | None] = deque()

        def numbered() -> Iterator[tuple[int, Source]]:
            for number, image in enumerate(images):
                paths.append(None if isinstance(image, np.ndarray) else str(image))
                yield number, image

        for scores, maps in self.fitted.score_batches(numbered(), self._load, self.recipe.deciding_scorers):
            deciding = self.calibration.score(self.recipe.deciding_score, scores)
            for score, anomaly_map in zip(deciding.tolist(), maps.numpy(), strict=True):
                yield Prediction(paths.popleft(), score, self.threshold, score > self.threshold, anomaly_map)

    def _load(self, numbered: tuple[int, Source]) -> NDArray[np.uint8]:
        number, image = numbered
        size, resize = self.precompute_settings.image_size, self.precompute_settings.resize
        if isinstance(image, np.ndarray):
            return resize_rgb(image, size, resize, f"images[{number}]")
        return read_rgb(Path(image), size, resize)


def _read(path: Path, device: torch.device) -> Detector:
    """What `save` wrote, now or as formats 3 (commit 091a564) and 4; UserError for another file or another format."""
    try:
        state = torch.load(path, map_location=device, weights_only=True)
    except Exception as error:  # torch.load raises whatever its unpickler met
        raise UserError(f"{path} cannot be read as a detector: train again") from error
    found = state.get("format") if isinstance(state, dict) else None
    if found is None:
        raise UserError(f"{path} is no detector: train again")
    if found not in (3, 4, FORMAT):
        known = f"this version reads 3, 4 and {FORMAT}"
        raise UserError(f"{path} is of format {found}, {known}: train again, or use the version that wrote it")
    precomputed = PrecomputeSettings.from_attributes(state["cache"])
    recipe = (
        _recipe_of_format_3(precomputed.backbone, state["settings"]) if found == 3 else _recipe(path, state["recipe"])
    )
    plain = load_backbone(precomputed.backbone, "none").to(device)
    plain.load_state_dict(state["pretrained"])
    pretrained = for_inference(plain)
    network = None
    if state["network"] is not None:
        trunk = pretrained if state["one_trunk"] else load_backbone(precomputed.backbone, "none")
        network = CutSwapNetwork(trunk, recipe, state["classes"], state["one_trunk"])
        network.load_learned(state["network"])
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
        state["pretrained"],
        Fitted(recipe, pretrained, network, scorers, state["projection"], references),
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
