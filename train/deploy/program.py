"""A detector as one graph of tensor operations, from pixels to a verdict: what every exported file holds."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram

from train.detector import Detector
from train.threshold import DECIMALS, rounded

INPUT = "images"
OUTPUTS = ("scores", "maps", "anomalous")

_MOST_IMAGES = 4096


class DetectorProgram(nn.Module):
    """Images (B,3,H,W) uint8 to scores (B,) and maps (B,H,W), both float32, and verdicts (B,) bool.

    The scores are those that decide, rounded as `predict` rounds them.
    """

    def __init__(self, detector: Detector) -> None:
        super().__init__()
        scorers = {name: scorer.in_single() for name, scorer in detector.fitted.scorers.items()}
        self.detector = replace(detector, fitted=replace(detector.fitted, scorers=scorers))
        # Submodules, so that their weights become the program's.
        self.pretrained = detector.fitted.pretrained
        self.localiser, self.finetuned = detector.fitted.localiser, detector.fitted.finetuned

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Score and decide."""
        scores, maps = self.detector.judge(self.detector.fitted.evidence(images, at_once=True))
        # Counts of the last decimal: whole numbers, so that every runtime compares them alike.
        last = 10**DECIMALS
        counted = (scores[self.detector.recipe.deciding_score].double() * last).round()
        threshold = round(rounded(self.detector.threshold) * last)
        return (counted / last).float(), maps, counted > threshold


def make_program(detector: Detector) -> ExportedProgram:
    """The program of a detector on the CPU, for batches of any size up to 4,096 images."""
    program = DetectorProgram(detector).eval()
    size = detector.precompute_settings.image_size
    # Of two images: with one, the export would take the batch for fixed.
    example = torch.zeros(2, 3, size, size, dtype=torch.uint8)
    with torch.no_grad():
        exported = torch.export.export(program, (example,), dynamic_shapes=({0: Dim("batch", max=_MOST_IMAGES)},))
    for node in exported.graph.nodes:
        node.meta.pop("stack_trace", None)  # it names the folders of this machine
    return exported
