"""The detector: the result of training, fitting and calibration, enough to score any image without the cache."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pipeline.backbones.inference import for_inference
from pipeline.backbones.load import StateDict, bare_backbone
from pipeline.data.images import Decoding, read_rgb, resize_rgb
from pipeline.data.levels import Levels
from pipeline.device import choose_device
from pipeline.errors import UserError, one_line
from pipeline.files import read_tensors, write_tensors
from pipeline.settings import PrecomputeSettings
from pipeline.threads import torch_threads
from train.calibration import Calibration
from train.card import Card, card_of
from train.earlier_detectors import EARLIER, bring_up
from train.features.extract import Images, Item, as_it_is
from train.frames import Frames
from train.localiser.network import Localiser
from train.prediction import Prediction, Scores, Source
from train.recipe import Recipe
from train.run_folder import find_detector
from train.scorers.cells import CellScale
from train.scorers.finite import not_finite
from train.scorers.fitted import Evidence, Fitted
from train.scorers.gaussian import Gaussian
from train.scorers.maps import smooth_maps
from train.scorers.nearest import PatchNearest
from train.scorers.standardise import Standardiser
from train.scorers.state import from_state, state_of
from train.threshold import rounded

FORMAT = 7
# Of a SHA-256, hexadecimal: enough to tell files apart.
DIGITS = 16


@dataclass(frozen=True, eq=False)
class Detector:
    """What is fitted and its calibration, and the settings of the cache and of the arm.

    levels: of the category's images, None in a detector of an earlier version. pretrained: the weights of the backbone
    as they were loaded; `fitted` has them folded for inference. frames: what the normals are like; trained_on: what the
    digests of their files begin with; None and empty in a detector of an earlier version. card: the one beside its
    file, which `calibration` follows.
    """

    precompute_settings: PrecomputeSettings
    levels: Levels | None
    settings: Mapping[str, Any]
    pretrained: StateDict
    fitted: Fitted
    calibration: Calibration
    frames: Frames | None = None
    trained_on: frozenset[str] = frozenset()
    card: Card | None = None

    @property
    def recipe(self) -> Recipe:
        """The rules it was made by."""
        return self.fitted.recipe

    @property
    def decoding(self) -> Decoding:
        """How image files become what it scores."""
        return Decoding(self.precompute_settings.image_size, self.precompute_settings.resize, self.levels)

    @property
    def threshold(self) -> float:
        """On the scale of `decision_scores`; an image above it is anomalous (`Calibration.exceeds`)."""
        return self.calibration.threshold

    @classmethod
    def load(cls, run: str | Path, device: str = "auto") -> Detector:
        """The detector of a run of one category, of a category's (its lowest seed) or a seed's folder, or of a file.

        A calibration card beside it sets its threshold. device: "auto", "cpu" or "cuda". Raises UserError where there
        is none, or one that cannot be read, and for a damaged card.
        """
        path = find_detector(Path(run))
        # In one thread: several spin where others use the cores, and take longer.
        with torch_threads(1):
            detector = _read(path, choose_device(device))
        if (card := card_of(path)) is None:
            return detector
        return replace(detector, calibration=card.applied_to(detector.calibration), card=card)

    def knows(self, digest: str) -> bool:
        """Whether a file with this SHA-256 is among the normals that it was made from."""
        return digest[:DIGITS] in self.trained_on

    def save(self, path: Path) -> None:
        """Write it to one file, atomically."""
        fitted = self.fitted
        content = {
            "format": FORMAT,
            "cache": self.precompute_settings.to_attributes(),
            "levels": None if self.levels is None else self.levels.to_attributes(),
            "settings": dict(self.settings),
            "recipe": asdict(self.recipe),
            "pretrained": dict(self.pretrained),
            "finetuned": None if fitted.finetuned is None else fitted.finetuned.state_dict(),
            "localiser": None if fitted.localiser is None else fitted.localiser.state_dict(),
            "scorers": {name: state_of(scorer) for name, scorer in fitted.scorers.items()},
            "projection": fitted.projection,
            "references": state_of(fitted.references),
            "cells": state_of(self.calibration.cells),
            "standardisers": {name: state_of(s) for name, s in self.calibration.standardisers.items()},
            "map_range": list(self.calibration.map_range),
            "map_threshold": self.calibration.map_threshold,
            "threshold": self.threshold,
            "normal_scores": list(self.calibration.normal_scores),
            "trained_on": "".join(sorted(self.trained_on)),
            "frames": None if self.frames is None else self.frames.to_state(),
        }
        write_tensors(path, content)

    def score(self, images: Images) -> Scores:
        """Every score of one image or more (size,size,3) uint8, as `pipeline.data.images.decode_rgb` gives them."""
        return self.score_items(images, as_it_is)

    def score_items(self, items: Iterable[Item], load: Callable[[Item], NDArray[np.uint8]]) -> Scores:
        """What `score` gives of the images that `load` makes of items, read ahead and spread over the cores."""
        found = [self.judge(evidence) for evidence in self.fitted.each(items, load)]
        scores = {name: torch.cat([scores[name] for scores, _ in found]).numpy() for name in found[0][0]}
        return Scores(scores, torch.cat([maps for _, maps in found]).numpy())

    def judge(self, found: Evidence) -> tuple[dict[str, Tensor], Tensor]:
        """Scores (B,) float64 by name and maps (B,H,W) of what `fitted` found of images."""
        scores, cells = self.calibration.scores(self.recipe, found)
        return scores, smooth_maps(cells, self.precompute_settings.image_size, self.recipe.blur)

    def decision_scores(self, scores: Scores) -> NDArray[np.float64]:
        """The scores (N,) that the threshold is for."""
        return scores.image[self.recipe.deciding_score]

    def predict(self, images: Iterable[Source]) -> list[Prediction]:
        """Score image files, and RGB images (H,W,3) uint8 of any size, in their order; mixed is fine.

        Raises ImageError for a file that cannot be read, ValueError for an array of another shape or dtype.
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

        for found in self.fitted.each(numbered(), self._load):
            scores, maps = self.judge(found)
            for score, anomaly_map in zip(scores[self.recipe.deciding_score].tolist(), maps.numpy(), strict=True):
                verdict, p_value = self.calibration.exceeds(score), self.calibration.p_value(score)
                told = rounded(score), p_value, rounded(self.threshold)
                yield Prediction(paths.popleft(), *told, verdict, anomaly_map)

    def _load(self, numbered: tuple[int, Source]) -> NDArray[np.uint8]:
        number, image = numbered
        if isinstance(image, np.ndarray):
            return resize_rgb(image, self.decoding, f"images[{number}]")
        return read_rgb(Path(image), self.decoding)


def _read(path: Path, device: torch.device) -> Detector:
    """What `save` wrote, now or as formats 3 (commit 091a564) to 6; UserError for another file or another format."""
    try:
        state = read_tensors(path, device)
    except Exception as error:  # read_tensors raises whatever an unpickler met
        reason = one_line(error)
        raise UserError(f"{path} is damaged or no detector ({reason}): copy it again, or train again") from error
    found = state.get("format") if isinstance(state, dict) else None
    if found is None:
        raise UserError(f"{path} is no detector: train again")
    if found not in (*EARLIER, FORMAT):
        known = f"this version reads {', '.join(map(str, EARLIER))} and {FORMAT}"
        raise UserError(f"{path} is of format {found}, {known}: train again, or use the version that wrote it")
    try:
        # One that was of a format before 6 has no variance beside its directions, which is kept as an infinite one.
        if wrong := list(not_finite(state, endless="rest")):
            raise UserError(f"{path} holds values that are not finite ({', '.join(wrong[:3])}): train again")
        return _made_of(path, state, device)
    except UserError:
        raise
    except (AttributeError, KeyError, RuntimeError, TypeError, ValueError) as error:
        raise UserError(f"{path} holds no whole detector ({one_line(error)}): train again") from error


def _made_of(path: Path, state: Mapping[str, Any], device: torch.device) -> Detector:
    precomputed = PrecomputeSettings.from_attributes(state["cache"])
    if state["format"] != FORMAT:
        state = bring_up(path, state, precomputed.backbone)
    plain = bare_backbone(precomputed.backbone).to(device)
    plain.load_state_dict(state["pretrained"])
    pretrained = for_inference(plain)
    localiser = finetuned = None
    if state["localiser"] is not None:
        localiser = Localiser(pretrained)
        localiser.load_state_dict(state["localiser"])
        localiser.eval().requires_grad_(False)
    if state["finetuned"] is not None:
        finetuned = for_inference(plain)
        finetuned.load_state_dict(state["finetuned"])
    fitted = Fitted(
        _recipe(path, state["recipe"]),
        pretrained,
        {name: from_state(Gaussian, scorer) for name, scorer in state["scorers"].items()},
        state["projection"],
        from_state(PatchNearest, state["references"]),
        localiser,
        finetuned,
    )
    standardisers = {name: from_state(Standardiser, scale) for name, scale in state["standardisers"].items()}
    calibration = Calibration(
        from_state(CellScale, state["cells"]),
        standardisers,
        tuple(state["map_range"]),
        state["map_threshold"],
        state["threshold"],
        tuple(state["normal_scores"]),
    )
    levels = None if state.get("levels") is None else Levels.from_attributes(state["levels"])
    frames = Frames.from_state(state.get("frames"))
    digits = state.get("trained_on", "")
    trained_on = frozenset(digits[start : start + DIGITS] for start in range(0, len(digits), DIGITS))
    made = state["settings"], state["pretrained"], fitted, calibration
    return Detector(precomputed, levels, *made, frames, trained_on)


def _recipe(path: Path, stored: Mapping[str, Any]) -> Recipe:
    if others := stored.keys() ^ {field.name for field in fields(Recipe)}:
        named = ", ".join(sorted(others))
        raise UserError(f"{path} was made by rules of another version ({named}): train again, or use that version")
    return Recipe(**stored)
