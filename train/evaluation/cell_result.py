"""The result of one category and seed, and its JSON form."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from train.evaluation.metrics import METRICS
from train.threshold import FalsePositives

# By the name of a metric or a scorer.
Measured = Mapping[str, float | None]


@dataclass(frozen=True)
class DefectResult:
    """One class of defect: how many images show it, and the metrics of these with all normal ones.

    n_flagged: how many of the images the detector flags, calls anomalous; None in results of earlier versions.
    """

    n: int
    metrics: Measured
    n_flagged: int | None = None


@dataclass(frozen=True)
class CellResult:
    """The result of one category and seed: metrics in 0..1, by the names of `train.evaluation.metrics.METRICS`.

    None: not defined, such as the AUROC of a test set without anomalies, or not measured, such as AUPRO without masks.
    n_train and n_test count images; threshold is on the scale of the image score. false_positives: what the threshold
    rests on, None in a cell of an earlier version. metrics: of the deciding score, empty without test images. scorers:
    image AUROC of each by name. by_defect: of each class of defect, the folder's name. n_normal: how many of the test
    images are normal, n_flagged_normal: how many of these the detector flags; None without test images, and in results
    of earlier versions. ValueError for a metric outside 0..1, a threshold that is not finite, or more flagged images
    than there are.
    """

    dataset: str
    category: str
    seed: int
    n_train: int
    n_test: int
    threshold: float
    metrics: Measured = field(default_factory=dict)
    scorers: Measured = field(default_factory=dict)
    by_defect: Mapping[str, DefectResult] = field(default_factory=dict)
    n_normal: int | None = None
    n_flagged_normal: int | None = None
    false_positives: FalsePositives | None = None

    def __post_init__(self) -> None:
        measured = {**self.metrics, **{f"scorer {name}": value for name, value in self.scorers.items()}}
        for defect, result in self.by_defect.items():
            measured |= {f"{name} of {defect}": value for name, value in result.metrics.items()}
        for name, value in measured.items():
            if value is not None and not 0 <= value <= 1:
                raise ValueError(f"{name} must be in 0..1, got {value}")
        if not math.isfinite(self.threshold):
            raise ValueError(f"the threshold must be finite, got {self.threshold}")
        counts = [(self.n_normal or 0, self.n_flagged_normal or 0)]
        counts += [(result.n, result.n_flagged or 0) for result in self.by_defect.values()]
        for n, flagged in counts:
            if not 0 <= flagged <= n:
                raise ValueError(f"{flagged} of {n} images cannot be flagged")

    def to_json(self) -> dict[str, Any]:
        """The contents of `cell.json`: all but what its path says."""
        counts: dict[str, Any] = {"threshold": self.threshold, "n_train": self.n_train, "n_test": self.n_test}
        if self.false_positives is not None:
            counts["false_positives"] = {**asdict(self.false_positives), **self.false_positives.rates}
        normals = {"n_normal": self.n_normal, "n_flagged_normal": self.n_flagged_normal}
        by_defect = {
            name: {"n": result.n, "n_flagged": result.n_flagged, **result.metrics}
            for name, result in self.by_defect.items()
        }
        return {**counts, **normals, **self.metrics, "scorers": dict(self.scorers), "by_defect": by_defect}

    @classmethod
    def from_json(cls, value: Mapping[str, Any], dataset: str, category: str, seed: int) -> CellResult:
        """The inverse of `to_json`, also of a `cell.json` that lacks scorers, classes of defect, counts or metrics."""
        by_defect = {
            name: DefectResult(found["n"], _metrics_in(found), found.get("n_flagged"))
            for name, found in value.get("by_defect", {}).items()
        }
        rests_on = value.get("false_positives")
        false_positives = None if rests_on is None else FalsePositives(rests_on["above"], rests_on["normals"])
        counts = value["n_train"], value["n_test"], value["threshold"]
        others = value.get("n_normal"), value.get("n_flagged_normal"), false_positives
        return cls(dataset, category, seed, *counts, _metrics_in(value), value.get("scorers", {}), by_defect, *others)


def _metrics_in(value: Mapping[str, Any]) -> Measured:
    return {metric.name: value[metric.name] for metric in METRICS if metric.name in value}
