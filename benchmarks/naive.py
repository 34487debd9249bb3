"""A plain script in place of precompute: grad-cam per stage, scikit-learn per map, `np.save` per file.

The comparison is fair: the script has one network, takes one image at a time, and gives torch all cores. It has the
same stages, sizes, clusters and number of pairs as precompute. numpy draws each pixel pair from the top cluster.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from sklearn.cluster import KMeans

from pipeline.backbones.load import Backbone
from pipeline.settings import PrecomputeSettings


class Whole(torch.nn.Module):
    """The backbone as one plain classification network."""

    def __init__(self, backbone: Backbone) -> None:
        super().__init__()
        self.chain = torch.nn.Sequential(backbone.stem, *backbone.stages, backbone.head)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Class scores (B,classes)."""
        scores: torch.Tensor = self.chain(x)
        return scores


def run(backbone: Backbone, paths: Sequence[Path], settings: PrecomputeSettings, out: Path) -> None:
    """Write images, maps, clusters, centroids and pairs of every image to `out` as .npy files."""
    # Here, since pipeline must be imported before anything that imports torchvision.
    from pytorch_grad_cam import LayerCAM

    layers = [backbone.stages[backbone.stage_names.index(stage)] for stage in settings.stages]
    size, cells = settings.image_size, settings.map_size
    cams = [LayerCAM(model=Whole(backbone), target_layers=[layer]) for layer in layers]
    rng = np.random.default_rng(settings.seed)
    out.mkdir(parents=True, exist_ok=True)
    for path in paths:
        image = np.asarray(Image.open(path).convert("RGB").resize((size, size), Image.Resampling.BILINEAR))
        pixels = torch.from_numpy(image.copy()).to(next(backbone.parameters()).device)
        x = backbone.normalise(pixels.permute(2, 0, 1)[None])
        np.save(out / f"{path.stem}-image.npy", image)
        for stage, cam in zip(settings.stages, cams, strict=True):
            saliency = np.asarray(Image.fromarray(cam(input_tensor=x, targets=None)[0]).resize((cells, cells)))
            kmeans = KMeans(settings.clusters, n_init=1, random_state=settings.seed).fit(saliency.reshape(-1, 1))
            order = np.argsort(kmeans.cluster_centers_[:, 0])
            labels = np.argsort(order)[kmeans.labels_].reshape(cells, cells).astype(np.uint8)
            top = np.argwhere(labels == labels.max()) * size // cells
            pairs = top[rng.integers(len(top), size=(settings.pairs, 2))]
            for name, array in (("map", saliency), ("clusters", labels), ("pairs", pairs)):
                np.save(out / f"{path.stem}-{stage}-{name}.npy", array)
            np.save(out / f"{path.stem}-{stage}-centroids.npy", kmeans.cluster_centers_[order])
