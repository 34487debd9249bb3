"""A detector as one program for any torch, without this package: `torch.export`."""

from __future__ import annotations

from pathlib import Path
from typing import cast

import torch
from torch import Tensor, nn

from train.detector import HEAD_WEIGHT, Detector, load_detector, smooth_maps
from train.network import embed, log_odds


class DetectorProgram(nn.Module):
    """Images (B,3,S,S) uint8 to anomaly scores (B,) and maps (B,S,S), float32: the sum scorer, in torch alone."""

    def __init__(self, detector: Detector) -> None:
        super().__init__()
        self.detector_size = detector.cache.image_size
        self.backbone_name = detector.cache.backbone
        self.pretrained, self.network = detector.pretrained, detector.network
        self.standardisers = detector.standardisers
        self.register_buffer("mean", detector.untrained.mean.float())
        self.register_buffer("factor", detector.untrained.factor.float())
        self.register_buffer("coreset", detector.patches.coreset)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Score."""
        pooled, patches = embed(self.pretrained, self.backbone_name, images)
        distance = torch.linalg.vector_norm((pooled - cast(Tensor, self.mean)) @ cast(Tensor, self.factor), dim=1)
        scale = self.standardisers["untrained"]
        score = (distance - scale.mean) / scale.deviation
        if self.network is not None:
            scale = self.standardisers["head"]
            trained = pooled if self.network.backbone is self.pretrained else self.network.embedding(images)
            odds = log_odds(self.network.classify(trained))
            score = score + HEAD_WEIGHT * (odds - scale.mean) / scale.deviation
        patches = patches.permute(0, 2, 3, 1)
        nearest = torch.cdist(patches.flatten(0, 2), cast(Tensor, self.coreset)).amin(1)
        return score, smooth_maps(nearest.view(patches.shape[:3]), self.detector_size)


def export_model(detector_file: Path, out: Path) -> None:
    """Write `out` (.pt2), for batches of any size; `torch.export.load(out).module()` runs it."""
    program = DetectorProgram(load_detector(detector_file, torch.device("cpu"))).eval()
    size = program.detector_size
    example = torch.zeros(2, 3, size, size, dtype=torch.uint8)
    with torch.no_grad():
        exported = torch.export.export(program, (example,), dynamic_shapes=({0: torch.export.Dim("batch", max=4096)},))
    out.parent.mkdir(parents=True, exist_ok=True)
    torch.export.save(exported, out)
