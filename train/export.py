"""A detector as one program for any torch, without this package: `torch.export`."""

from __future__ import annotations

from pathlib import Path
from typing import cast

import torch
from torch import Tensor, nn

from pipeline.files import replacing
from train.detector import Detector, load_detector, smooth_maps, top_mean
from train.network import embed


class DetectorProgram(nn.Module):
    """Images (B,3,S,S) uint8 to anomaly scores (B,) and maps (B,S,S), float32: the sum scorer, in torch alone."""

    def __init__(self, detector: Detector) -> None:
        super().__init__()
        self.detector_size = detector.cache.image_size
        self.pretrained = detector.pretrained
        self.standardisers = detector.standardisers
        self.register_buffer("mean", detector.untrained.mean.float())
        self.register_buffer("factor", detector.untrained.factor.float())
        self.register_buffer("learned_factor", detector.embedding.factor.float())
        self.register_buffer("projection", detector.projection)
        self.register_buffer("coreset", detector.patches.coreset)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Score."""
        pooled, patches = embed(self.pretrained, images)
        centred = pooled - cast(Tensor, self.mean)
        patches = patches.permute(0, 2, 3, 1)
        flat = patches.flatten(0, 2)
        if self.projection is not None:
            flat = flat @ cast(Tensor, self.projection)
        nearest = torch.cdist(flat, cast(Tensor, self.coreset)).amin(1).view(patches.shape[:3])
        scores = {
            "untrained": torch.linalg.vector_norm(centred @ cast(Tensor, self.factor), dim=1),
            "embedding": torch.linalg.vector_norm(centred @ cast(Tensor, self.learned_factor), dim=1),
            "patches": top_mean(nearest),
        }
        parts = [(scores[name] - scale.mean) / scale.deviation for name, scale in self.standardisers.items()]
        return torch.stack(parts).sum(0), smooth_maps(nearest, self.detector_size)


def export_model(detector_file: Path, out: Path) -> None:
    """Write `out` (.pt2), for batches of any size; `torch.export.load(out).module()` runs it."""
    program = DetectorProgram(load_detector(detector_file, torch.device("cpu"))).eval()
    size = program.detector_size
    example = torch.zeros(2, 3, size, size, dtype=torch.uint8)
    with torch.no_grad():
        exported = torch.export.export(program, (example,), dynamic_shapes=({0: torch.export.Dim("batch", max=4096)},))
    with replacing(out) as file:
        torch.export.save(exported, file)
