"""A detector as one program for any torch, without this package: `torch.export`."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn

from pipeline.files import in_memory
from train.detector import Detector
from train.threshold import DECIMALS


class DetectorProgram(nn.Module):
    """Images (B,3,S,S) uint8 to the scores (B,) that decide, rounded, and maps (B,S,S), both float32."""

    def __init__(self, detector: Detector) -> None:
        super().__init__()
        self.detector = detector
        # Submodules, so that their weights become the program's.
        self.pretrained = detector.fitted.pretrained
        self.localiser, self.finetuned = detector.fitted.localiser, detector.fitted.finetuned

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Score."""
        scores, maps = self.detector.judge(self.detector.fitted.evidence(images, at_once=True))
        return scores[self.detector.recipe.deciding_score].double().round(decimals=DECIMALS).float(), maps


def export_model(detector: Detector, out: Path) -> None:
    """Write `out` (.pt2), for batches of any size; `torch.export.load(out).module()` runs it."""
    program = DetectorProgram(detector).eval()
    size = detector.precompute_settings.image_size
    example = torch.zeros(2, 3, size, size, dtype=torch.uint8)
    shapes = ({0: torch.export.Dim("batch", max=4096)},)
    # The file first: a place that cannot be written is told before the export, which takes long.
    with in_memory(out) as file, torch.no_grad():
        torch.export.save(torch.export.export(program, (example,), dynamic_shapes=shapes), file)
