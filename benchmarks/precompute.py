"""How fast stage 1 is, as ratios measured side by side: `python benchmarks/precompute.py [IMAGES] [REPEATS]`.

Real solar-cell images, enlarged to 512 px PNG files, the default settings. Ratios are medians of `REPEATS` pairs, run
in turn; further tables say where the time goes and what a lower precision costs the maps. Where torch finds a CUDA
device its rows follow (`benchmarks/precompute_gpu.py`).
"""

from __future__ import annotations

import os
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from statistics import median

import naive
import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from rich.console import Console
from rich.table import Table
from sklearn.cluster import KMeans
from torch import Tensor

from pipeline.backbones.load import Backbone, load_backbone
from pipeline.backbones.spec import choose_stages
from pipeline.cache.category import CachedCategory
from pipeline.clusters import cluster_maps
from pipeline.data.datasets import load
from pipeline.data.images import decode_rgb
from pipeline.precompute import precompute
from pipeline.saliency import layercam, scale_maps
from pipeline.settings import PRECISIONS, PrecomputeSettings

CORES = os.cpu_count() or 1
SETTINGS = replace(PrecomputeSettings(), stages=choose_stages("efficientnet_lite0"))


def seconds(action: Callable[[], object]) -> float:
    start = time.perf_counter()
    action()
    return time.perf_counter() - start


def write_images(folder: Path, count: int) -> list[Path]:
    """512 px PNG files of real images, repeated with another brightness where there are too few."""
    dataset = load("elpv")
    sources = [Path(dataset.image_root, sample.path) for category in dataset.categories for sample in category.train]
    target = folder / "images" / "cells" / "train" / "good"
    target.mkdir(parents=True)
    for i in range(count):
        image = Image.open(sources[i % len(sources)]).convert("L").resize((512, 512), Image.Resampling.BICUBIC)
        image.point(lambda value, i=i: value * (100 - i // len(sources)) // 100).save(target / f"{i:05}.png")
    return sorted(target.iterdir())


def bare(backbone: Backbone, images: Tensor) -> None:
    """Forward and activation gradients alone, an image at a time, a torch thread in each of all cores."""
    torch.set_num_threads(1)

    def one(image: Tensor) -> None:
        layercam(backbone, backbone.normalise(image[None]), SETTINGS.stages)

    with ThreadPoolExecutor(CORES) as pool:
        list(pool.map(one, images))


def stage(folder: Path) -> None:
    """The whole of stage 1 into a new cache."""
    with tempfile.TemporaryDirectory(dir=folder) as out:
        precompute([(load("folder", str(folder / "images")), f"{out}/cache.zarr")], SETTINGS)


def gradcam_one_pass(backbone: Backbone, images: Tensor) -> None:
    """grad-cam's raw maps of all stages in its one pass, its own steps one after the other."""
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
    """Of all maps together, by our clusters."""
    labels, _ = cluster_maps(maps, SETTINGS.clusters)
    total = 0.0
    for values, clusters in zip(maps.numpy().astype(float), labels.numpy(), strict=True):
        groups = [values[clusters == cluster] for cluster in np.unique(clusters)]
        total += sum(((group - group.mean()) ** 2).sum() for group in groups)
    return total


def time_table(folder: Path, count: int) -> Table:
    """Milliseconds an image and worker of every step of a task."""
    with tempfile.TemporaryDirectory(dir=folder) as out:
        report = precompute([(load("folder", str(folder / "images")), f"{out}/cache.zarr")], SETTINGS).caches[0]
    whole = sum(report.seconds.values())
    table = Table("step", "ms an image", "percent", title="where a worker's time goes")
    for step, spent in report.seconds.items():
        table.add_row(step, f"{1000 * spent / count:.2f}", f"{100 * spent / whole:.1f}")
    return table


def precision_table(backbone: Backbone, images: Tensor) -> Table:
    """Distance of the maps of lower precisions from the exact ones, of the same class, by stage."""
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
    table = Table("ratio", "median", "least", "most", title=f"{count} images, {repeats} repeats, {CORES} cores, CPU")

    def row(name: str, ours: Callable[[], object], theirs: Callable[[], object], scale: float = 1.0) -> None:
        ratios = [scale * seconds(theirs) / seconds(ours) for _ in range(repeats)]
        table.add_row(name, f"{median(ratios):.2f}", f"{min(ratios):.2f}", f"{max(ratios):.2f}")
        Console(stderr=True).print(f"{name}: {median(ratios):.2f}")

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        paths = write_images(folder, count)
        pixels = np.stack([decode_rgb(path.read_bytes(), SETTINGS.image_size, "stretch", path.name) for path in paths])
        images = torch.from_numpy(pixels).permute(0, 3, 1, 2)
        stage(folder)  # warm up: weights, thread pools, files
        row("stage 1 over the bare network", lambda: stage(folder), lambda: bare(backbone, images))
        few = paths[: max(4, count // 16)]
        torch.set_num_threads(CORES)
        trained = load_backbone("efficientnet_lite0").requires_grad_(True)

        def script() -> None:
            torch.set_num_threads(CORES)
            naive.run(trained, few, SETTINGS, folder / "naive")

        row("stage 1 over the script", lambda: stage(folder), script, count / len(few))
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
        Console().print(table, time_table(folder, count), precision_table(backbone, images[:32]))
        if torch.cuda.is_available():
            import precompute_gpu

            Console().print(precompute_gpu.gpu_table(folder, paths, repeats))


if __name__ == "__main__":
    given = [int(value) for value in sys.argv[1:]]
    main(*given, *(640, 5)[len(given) :])
