"""Plots of one category and seed: how the scores separate, and where the detector sees anomalies."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray
from sklearn.metrics import roc_auc_score, roc_curve

from pipeline.files import replacing
from pipeline.views.drawing import drawable
from train.evaluate import Evaluation
from train.evaluation.test_set import TestSet
from train.views.heat import Heat, outline

_SHOWN = 6
LABELS = ("normal", "anomalous")


def histogram(
    axes: Axes, labels: NDArray[np.int64], scores: NDArray[np.float64], edges: int, names: Sequence[str] = LABELS
) -> None:
    """Histograms of the scores (N,) of labels (N,) 0 and 1, by these names, one over the other."""
    # Robust bounds: a single far outlier must not squeeze all others into one bar.
    bins = np.linspace(scores.min(), np.quantile(scores, 0.99) + 1e-9, edges).tolist()
    for label, (name, colour) in enumerate(zip(names, ("#4477aa", "#cc3311"), strict=True)):
        axes.hist(np.minimum(scores[labels == label], bins[-1]), bins=bins, alpha=0.6, color=colour, label=name)


def plot_scores(
    path: Path, labels: NDArray[np.int64], scores: NDArray[np.float64], threshold: float, title: str
) -> None:
    """Histogram of the anomaly scores of normals and anomalies with the threshold, and their ROC curve."""
    figure = Figure(figsize=(10, 4))
    figure.subplots_adjust(left=0.08, right=0.98, bottom=0.13, top=0.91, wspace=0.16)
    left, right = figure.subplots(1, 2)
    histogram(left, labels, scores, 40, [f"{name} ({(labels == i).sum()})" for i, name in enumerate(LABELS)])
    left.axvline(threshold, color="black", linestyle="--", label="threshold")
    left.set(xlabel="anomaly score", ylabel="test images", title=drawable(title))
    left.legend()
    if 0 < labels.sum() < len(labels):
        _draw_roc(right, labels, scores)
    with replacing(path) as file:
        figure.savefig(file, format="png", dpi=100)


def _draw_roc(axes: Axes, labels: NDArray[np.int64], scores: NDArray[np.float64]) -> None:
    # Not by RocCurveDisplay: it imports pyplot, which looks for the backend of the user's notebook.
    false_positives, true_positives, _ = roc_curve(labels, scores)
    axes.plot(false_positives, true_positives, label=f"image (AUC = {roc_auc_score(labels, scores):.2f})")
    axes.plot((0, 1), (0, 1), "k--", label="chance level (AUC = 0.5)")
    axes.set(xlabel="false positive rate", ylabel="true positive rate", aspect="equal")
    axes.set(xlim=(-0.01, 1.01), ylim=(-0.01, 1.01))
    axes.legend(loc="lower right")


def plot_maps(path: Path, tests: TestSet, evaluation: Evaluation, threshold: float) -> None:
    """The highest and the median scores among the anomalies, and the highest among the normals, with anomaly maps.

    White contours are the masks, the others surround what is above the map's threshold, as in the pictures of
    `predict`; all maps are on the one scale of `train.views.heat`.
    """
    scores = evaluation.decision_scores
    rows = _choose(scores, tests.labels)
    heat = Heat.of(evaluation.calibration)
    figure = Figure(figsize=(2.2 * len(rows), 5.2))
    # Margins by hand: matplotlib's "constrained" layout takes longer than a small category's training.
    figure.subplots_adjust(left=0.01, right=0.99, bottom=0.01, top=0.83, wspace=0.04, hspace=0.03)
    for column, i in enumerate(rows):
        above, below = (figure.add_subplot(2, len(rows), 1 + column + len(rows) * line) for line in range(2))
        image = tests.image(i)
        above.imshow(image)
        above.set_title(f"{drawable(tests.samples[i].defect)}\nscore {scores[i]:.1f}", fontsize=9)
        anomaly_map, flagged = evaluation.scores.maps[i], evaluation.calibration.exceeds(float(scores[i]))
        region = heat.region(anomaly_map, (image.shape[1], image.shape[0]), flagged=flagged)
        below.imshow(outline(heat.over(image, anomaly_map), region, width=1))
        if tests.samples[i].masks:
            below.contour(tests.masks[i], levels=[0.5], colors="white", linewidths=1)
        above.axis("off")
        below.axis("off")
    figure.suptitle(f"threshold {threshold:.1f}")
    with replacing(path) as file:
        figure.savefig(file, format="png", dpi=80)


def _choose(scores: NDArray[np.float64], labels: NDArray[np.int64]) -> list[int]:
    normal, anomalous = (np.flatnonzero(labels == label) for label in (0, 1))
    normal, anomalous = (members[np.argsort(-scores[members])] for members in (normal, anomalous))
    third, middle = _SHOWN // 3, len(anomalous) // 2
    chosen = (anomalous[:third], anomalous[middle : middle + third], normal[:third])
    return list(dict.fromkeys(np.concatenate(chosen).tolist()))
