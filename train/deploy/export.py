"""A detector as one program for any torch, without this package: `torch.export`."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn

from pipeline.files import replacing
from train.detector import Detector
from train.scorers.fitted import needs_network


class DetectorProgram(nn.Module):
    """Images (B,3,S,S) uint8 to the scores (B,) that decide and anomaly maps (B,S,S), float32, in torch only."""

    def __init__(self, detector: Detector) -> None:
        super().__init__()
        self.detector = detector
        # Submodules, so that their weights become the program's; the network only where a deciding score needs it.
        self.pretrained = detector.fitted.pretrained
        self.network = detector.fitted.network if needs_network(detector.recipe.deciding_scorers) else None

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Score."""
        recipe = self.detector.recipe
        scores, maps = self.detector.fitted.score(images, recipe.deciding_scorers, at_once=True)
        return self.detector.calibration.score(recipe.deciding_score, scores).float(), maps


def export_model(detector: Detector, out: Path) -> None:
    """Write `out` (.pt2), for batches of any size; `torch.export.load(out).module()` runs it."""
    program = DetectorProgram(detector).eval()
    size = detector.precompute_settings.image_size
    example = torch.zeros(2, 3, size, size, dtype=torch.uint8)
    with torch.no_grad():
        exported = torch.export.export(program, (example,), dynamic_shapes=({0: torch.export.Dim("batch", max=4096)},))
    with replacing(out) as file:
        torch.export.save(exported, file)
