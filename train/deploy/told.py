"""What `predict` tells of its outcome: which images are worst, what the threshold rests on, whether scores drifted."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from statistics import median

import numpy as np
from rich.box import SIMPLE
from rich.markup import escape
from rich.table import Table

from pipeline.errors import brief
from train.deploy.predict import TABLE, Part, Predicted
from train.deploy.table import Line, worst_first
from train.deploy.wanted import MAPS, MASKS, OVERLAYS, SUFFIXES, Wanted
from train.outcome import rests_on
from train.threshold import DECIMALS, rounded

_SHOWN = 20
# Drift is told of at least so many images, where half of them are above this quantile of the held-out normals.
_ENOUGH, _HIGH = 50, 0.9


def worst_table(lines: Sequence[Line]) -> Table:
    """The images with the highest scores, and how many more there are."""
    table = Table(box=SIMPLE, padding=(0, 1, 0, 0))
    table.add_column("path", overflow="fold")
    for heading in ("score", "p-value", "threshold"):
        table.add_column(heading, justify="right")
    table.add_column("verdict")
    table.add_column("status", overflow="fold")
    ordered = worst_first(lines)
    for line in ordered[:_SHOWN]:
        numbers = ("" if n is None else f"{n:.{DECIMALS}f}" for n in (line.score, line.p_value, line.threshold))
        style = "bold" if line.anomalous else ""
        verdict = "anomalous" if line.anomalous else "normal"
        table.add_row(escape(brief(line.path)), *numbers, verdict, escape(line.status), style=style)
    if len(ordered) > _SHOWN:
        table.caption = f"and {len(ordered) - _SHOWN} more with lower scores"
    return table


def threshold_line(part: Part) -> str:
    """A threshold and what it rests on."""
    calibration, own = part.calibration, rounded(part.own)
    line = f"{_of(part)}threshold {rounded(calibration.threshold):.{DECIMALS}f}"
    if part.given:
        line += f", given by --threshold (the detector's own is {own:.{DECIMALS}f})"
    if not calibration.normal_scores:
        return f"{line}; the detector is of an earlier version, which kept no scores of its held-out normals"
    if part.card is not None:
        line += f", calibrated on {part.card.date}"
    what = "held-out normals" if part.card is None else "fresh good parts"
    return f"{line}: {rests_on(calibration.false_positives, what)}"


def drift_line(part: Part) -> str | None:
    """A warning where half of the images score higher than nearly all held-out normals."""
    scores = [line.score for line in part.lines if line.score is not None]
    normals = part.calibration.normal_scores
    if len(scores) < _ENOUGH or not normals or median(scores) <= (high := float(np.quantile(normals, _HIGH))):
        return None
    return (
        f"{_of(part)}the median score of these {len(scores)} images, {median(scores):.{DECIMALS}f}, is above the 90th"
        f" percentile of the held-out normals, {high:.{DECIMALS}f}: the line may have drifted (light, camera,"
        " material), unless most of these parts are bad"
    )


def outcome_line(predicted: Predicted, out: Path, wanted: Wanted) -> str:
    """What was found and what was written."""
    scored = predicted.scored
    said = f"{out / TABLE}: {sum(bool(line.anomalous) for line in scored)} of {len(scored)} images anomalous"
    counts = {OVERLAYS: sum(line.drawn for line in predicted.lines), MAPS: len(scored), MASKS: len(scored)}
    asked = {OVERLAYS, *wanted.folders}
    written = ", ".join(f"{counts[folder]} {folder} in {out / folder}" for folder in SUFFIXES if folder in asked)
    rate = len(scored) / max(predicted.seconds, 1e-9)
    return f"{said}; {written}; {rate:.1f} images/s"


def _of(part: Part) -> str:
    return f"{part.category}: " if part.category else ""
