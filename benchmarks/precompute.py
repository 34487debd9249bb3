"""How fast precompute is, as ratios measured side by side: `python benchmarks/precompute.py [IMAGES] [REPEATS]`.

The images are real solar cells, enlarged to 512 px PNG files; the settings are the defaults. Each ratio is the median
of `REPEATS` pairs of runs, one after the other. Further tables show where the time goes and how far a lower precision
moves the maps. Where torch finds a CUDA device, `benchmarks/precompute_gpu.py` adds a table.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from pathlib import Path
from statistics import median

import naive
import numpy as np
import torch
from common import CORES, add_spread, decode, integers, precompute_folder, spread_table, time_ratios, write_images
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table
from sklearn.cluster import KMeans
from torch import Tensor

from pipeline.backbones.load import Backbone, load_backbone
from pipeline.backbones.spec import choose_stages
from pipeline.cache.category import CachedCategory
from pipeline.clusters import cluster_maps
from pipeline.saliency import layercam, scale_maps
from pipeline.settings import PRECISIONS, PrecomputeSettings

SETTINGS = replace(PrecomputeSettings(), stages=choose_stages("efficientnet_lite0"))


def bare(backbone: Backbone, images: Tensor) -> None:
    """Only the forward pass and the activation gradients, one image at a time per core, one torch thread each."""
    torch.set_num_threads(1)

    def one(image: Tensor) -> None:
        layercam(backbone, backbone.normalise(image[None]), SETTINGS.stages)

    with ThreadPoolExecutor(CORES) as pool:
        list(pool.map(one, images))


def gradcam_one_pass(backbone: Backbone, images: Tensor) -> None:
    """grad-cam's raw maps of all stages from one pass, by its own steps."""
    # Here, since pipeline must be imported before anything that imports torchvision.
    from pytorch_grad_cam import LayerCAM
    from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget

    layers = [backbone.stages[backbone.stage_names.index(stage)] for stage in SETTINGS.stages]
    cam = LayerCAM(model=naive.Whole(backbone), target_layers=layers)
    for x in images:
        scores = cam.activations_and_grads(x[None])
        target = int(scores.argmax())
        cam.model.zero_grad()
        ClassifierOutputTarget(target)(scores[0]).backward(retain_graph=True)
        cam.compute_cam_per_layer(x[None], [ClassifierOutputTarget(target)], False)


def kmeans_by_map(maps: NDArray[np.uint8]) -> list[KMeans]:
    return [KMeans(SETTINGS.clusters, n_init=1).fit(m.reshape(-1, 1)) for m in maps]


def inertia(maps: Tensor) -> float:
    """Sum over all maps (M,h,w) of the inertia of our clusters."""
    labels, _ = cluster_maps(maps, SETTINGS.clusters)
    total = 0.0
    for values, clusters in zip(maps.numpy().astype(float), labels.numpy(), strict=True):
        groups = [values[clusters == cluster] for cluster in np.unique(clusters)]
        total += sum(((group - group.mean()) ** 2).sum() for group in groups)
    return total


def time_table(root: Path) -> Table:
    """Milliseconds of a worker per image, for every step of a task."""
    report = precompute_folder(root, SETTINGS)
    whole = sum(report.seconds.values())
    table = Table("step", "ms per image", "percent", title="where a worker's time goes")
    for step, spent in report.seconds.items():
        table.add_row(step, f"{1000 * spent / report.images:.2f}", f"{100 * spent / whole:.1f}")
    return table


def precision_table(backbone: Backbone, images: Tensor) -> Table:
    """Distance per stage of the maps of lower precisions from the exact maps of the same class."""
    table = Table("precision", "same top class", *SETTINGS.stages, title="|map - exact map| / |exact map|, percent")
    x = backbone.normalise(images)
    exact, classes = layercam(backbone, x, SETTINGS.stages)
    for precision in PRECISIONS[1:]:
        _, found = layercam(backbone, x, SETTINGS.stages, precision=precision)
        maps, _ = layercam(backbone, x, SETTINGS.stages, target_class=classes, precision=precision)
        lost = [((a - b).norm(dim=(1, 2)) / a.norm(dim=(1, 2))).mean() for a, b in zip(exact, maps, strict=True)]
        table.add_row(precision, f"{100 * (found == classes).float().mean():.0f}", *(f"{100 * v:.1f}" for v in lost))
    return table


def main(count: int, repeats: int) -> None:
    backbone = load_backbone("efficientnet_lite0")
    table = spread_table("ratio", f"{count} images, {repeats} repeats, {CORES} cores, CPU")

    def row(name: str, ours: Callable[[], object], theirs: Callable[[], object], scale: float = 1.0) -> None:
        ratios = time_ratios(theirs, ours, repeats, scale)
        add_spread(table, name, ratios)
        Console(stderr=True).print(f"{name}: {median(ratios):.2f}")

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        paths = write_images(folder / "images", count)
        images = torch.from_numpy(np.stack(decode(paths, SETTINGS.image_size))).permute(0, 3, 1, 2)
        whole = partial(precompute_folder, folder / "images", SETTINGS)
        whole()  # warm up: weights, thread pools, files
        row("precompute over the bare network", whole, lambda: bare(backbone, images))
        few = paths[: max(4, count // 16)]
        torch.set_num_threads(CORES)
        trained = load_backbone("efficientnet_lite0").requires_grad_(True)

        def script() -> None:
            torch.set_num_threads(CORES)
            naive.run(trained, few, SETTINGS, folder / "naive")

        row("precompute over the script", whole, script, count / len(few))
        torch.set_num_threads(CORES)
        part = backbone.normalise(images[: len(few)])
        ours = lambda: [layercam(backbone, x[None], SETTINGS.stages) for x in part]  # noqa: E731
        row("LayerCAM over grad-cam's one pass", ours, lambda: gradcam_one_pass(trained, part))
        # The maps of a chunk; both sides have all cores.
        chunk = backbone.normalise(images[: CachedCategory.rows_per_chunk])
        maps = torch.cat(
            [scale_maps(layercam(backbone, x[None], SETTINGS.stages)[0], SETTINGS.map_size) for x in chunk]
        )
        flat = maps.flatten(0, 1)
        name = "k-means over scikit-learn, n_init=1"
        row(name, lambda: cluster_maps(flat, SETTINGS.clusters), lambda: kmeans_by_map(flat.numpy()))
        ratio = inertia(flat) / sum(kmeans.inertia_ for kmeans in kmeans_by_map(flat.numpy()))
        table.add_row("inertia over scikit-learn's", f"{ratio:.4f}", "", "")
        Console().print(table, time_table(folder / "images"), precision_table(backbone, images[:32]))
        if torch.cuda.is_available():
            import precompute_gpu

            Console().print(precompute_gpu.gpu_table(folder, paths, SETTINGS, repeats))


if __name__ == "__main__":
    main(*integers(sys.argv[1:], 640, 5))
