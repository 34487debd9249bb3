"""The calibration card beside a detector: a threshold from fresh good parts, used while the detector stays the same."""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass, replace
from math import isfinite
from pathlib import Path
from typing import Any

from pipeline.errors import UserError
from pipeline.files import sha256_of, write_json
from train.calibration import Calibration
from train.threshold import FalsePositives

NAME = "calibration.json"


@dataclass(frozen=True)
class Card:
    """A threshold from fresh parts, and what it rests on.

    threshold, map_threshold, normal_scores: as in `Calibration`, of the good parts. asked: the rate of false positives
    that it is for. n_bad, n_bad_found: how many bad parts were shown and are above it. date: of the day, ISO 8601.
    detector_sha256: of the bytes of the detector's file.
    """

    threshold: float
    map_threshold: float
    normal_scores: tuple[float, ...]
    asked: float
    n_bad: int
    n_bad_found: int
    date: str
    detector_sha256: str

    @property
    def false_positives(self) -> FalsePositives:
        """What the good parts say of the rate of false positives."""
        return FalsePositives.of(self.normal_scores, self.threshold)

    def applied_to(self, calibration: Calibration) -> Calibration:
        """A calibration with the card's thresholds, and with p-values against the card's good parts."""
        return replace(
            calibration,
            threshold=self.threshold,
            map_threshold=self.map_threshold,
            normal_scores=self.normal_scores,
        )

    def write(self, detector: Path) -> Path:
        """Write the card beside the detector's file, and return where."""
        value = {
            "threshold": self.threshold,
            "map_threshold": self.map_threshold,
            "n_good": len(self.normal_scores),
            "n_bad": self.n_bad,
            "n_bad_found": self.n_bad_found,
            "false_positive_rate": {"asked": self.asked, **self.false_positives.rates},
            "date": self.date,
            "detector_sha256": self.detector_sha256,
            "normal_scores": list(self.normal_scores),
        }
        write_json(detector.with_name(NAME), value)
        return detector.with_name(NAME)


def card_of(detector: Path) -> Card | None:
    """The card beside a detector's file; None where there is none, or one for another detector, which a line tells.

    UserError where it is damaged.
    """
    path = detector.with_name(NAME)
    try:
        card = _card(json.loads(path.read_text(encoding="utf-8")))
    except FileNotFoundError:
        return None
    except (OSError, KeyError, TypeError, ValueError, AttributeError) as error:
        raise UserError(f"{path} is damaged: calibrate again, or delete it") from error
    if card.detector_sha256 == sha256_of(detector):
        return card
    print(f"{path} is for another detector and is not used: calibrate again", file=sys.stderr, flush=True)
    return None


def _card(value: Any) -> Card:  # noqa: ANN401 - any JSON value
    numbers = value["threshold"], value["map_threshold"], value["false_positive_rate"]["asked"]
    scores = tuple(sorted(float(score) for score in value["normal_scores"]))
    threshold, map_threshold, asked = map(float, numbers)
    if not scores or not all(map(isfinite, (threshold, map_threshold, asked, *scores))):
        raise ValueError("a number is not finite, or there is no score")
    counts = int(value["n_bad"]), int(value["n_bad_found"])
    return Card(threshold, map_threshold, scores, asked, *counts, str(value["date"]), str(value["detector_sha256"]))
