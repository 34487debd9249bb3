"""How fast precompute is, as ratios side by side: `python benchmarks/precompute.py [IMAGES REPEATS [ROW ...]]`.

The images are real solar cells, enlarged to 512 px PNG files; the settings are the defaults. Each ratio is the median
of `REPEATS` pairs of runs, one after the other, and is printed as soon as it is known. Further tables show where the
time goes and how far a lower precision moves the maps. A ROW (plain, folded, script, layercam, kmeans, steps,
precision) selects one of them; default all. `benchmarks/gpu.py` measures a GPU.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
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

from pipeline import threads
from pipeline.backbones.inference import for_inference
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


def gradcam_one_pass(backbone: Backbone, images: Tensor, batch: int = 1) -> None:
    """grad-cam's raw maps of all stages from one pass per batch, by its own steps."""
    # Here, since pipeline must be imported before anything that imports torchvision.
    from pytorch_grad_cam import LayerCAM
    from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget

    layers = [backbone.stages[backbone.stage_names.index(stage)] for stage in SETTINGS.stages]
    cam = LayerCAM(model=naive.Whole(backbone), target_layers=layers)
    for x in images.split(batch):
        scores = cam.activations_and_grads(x)
        targets = [ClassifierOutputTarget(int(target)) for target in scores.argmax(1)]
        cam.model.zero_grad()
        torch.stack([target(one) for target, one in zip(targets, scores, strict=True)]).sum().backward()
        cam.compute_cam_per_layer(x, targets, False)
    cam.activations_and_grads.release()  # its hooks stay on the network otherwise


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


def kmeans_table(maps: Tensor) -> Table:
    """Inertia of our clusters of all maps over that of scikit-learn's."""
    table = Table("ratio", "value", title="k-means")
    ratio = inertia(maps) / sum(kmeans.inertia_ for kmeans in kmeans_by_map(maps.numpy()))
    table.add_row("inertia over scikit-learn's", f"{ratio:.4f}")
    return table


class Bench:
    """The images and networks that the rows share, and the rows by their names: a ratio or a table each."""

    def __init__(self, folder: Path, count: int, repeats: int) -> None:
        self.folder, self.repeats = folder, repeats
        self.paths = write_images(folder / "images", count)
        decoded = torch.from_numpy(np.stack(decode(self.paths, SETTINGS.image_size)))
        self.images = decoded.permute(0, 3, 1, 2).contiguous()
        self.few = self.paths[: max(4, count // 16)]
        self.plain = load_backbone("efficientnet_lite0")
        self.folded = for_inference(self.plain)
        self.trained = load_backbone("efficientnet_lite0").requires_grad_(True)  # grad-cam wants gradients of weights
        title = f"{count} images, {repeats} repeats, {CORES} cores, CPU"
        self.ratios = spread_table("ratio", title)
        self.rows: dict[str, Callable[[], Table | None]] = {
            "plain": lambda: self.over_bare("plain", self.plain, torch.contiguous_format),
            "folded": lambda: self.over_bare("folded", self.folded, torch.channels_last),
            "script": self.over_script,
            "layercam": self.layercam,
            "kmeans": self.kmeans,
            "steps": lambda: time_table(self.folder / "images"),
            "precision": lambda: precision_table(self.plain, self.images[:32]),
        }

    def show(self, name: str, ours: Callable[[], object], theirs: Callable[[], object], scale: float = 1.0) -> None:
        """Print how many times as fast ours is, and add it to the table."""
        ours()  # warm up: weights, thread pools, files
        ratios = time_ratios(theirs, ours, self.repeats, scale)
        add_spread(self.ratios, name, ratios)
        print(f"{name}: {median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})", flush=True)

    def precompute(self) -> None:
        """From the images to a new cache."""
        precompute_folder(self.folder / "images", SETTINGS)

    def over_bare(self, name: str, backbone: Backbone, memory: torch.memory_format) -> None:
        """Plain: unfolded and NCHW, as anyone loads a network; folded: as the product does."""
        images = self.images.contiguous(memory_format=memory)
        self.show(f"precompute over the {name} bare network", self.precompute, lambda: bare(backbone, images))

    def over_script(self) -> None:
        """The script gets few of the images, and all cores."""

        def script() -> None:
            torch.set_num_threads(CORES)
            naive.run(self.trained, self.few, SETTINGS, self.folder / "naive")

        self.show("precompute over the script", self.precompute, script, len(self.paths) / len(self.few))

    def layercam(self) -> None:
        """Both have all cores: ours with an image per core, grad-cam with all torch threads."""
        x = self.plain.normalise(self.images[: len(self.few)])
        last = x.contiguous(memory_format=torch.channels_last)

        def ours() -> None:
            list(threads.CORES.spread(lambda image: layercam(self.folded, image, SETTINGS.stages), last.split(1)))

        def theirs() -> None:
            torch.set_num_threads(CORES)
            gradcam_one_pass(self.trained, x)

        self.show("LayerCAM over grad-cam's one pass", ours, theirs)

    def kmeans(self) -> Table:
        """The maps of a chunk; both sides have all cores."""
        torch.set_num_threads(CORES)
        chunk = self.plain.normalise(self.images[: CachedCategory.rows_per_chunk])
        raw = [layercam(self.plain, x, SETTINGS.stages)[0] for x in chunk.split(1)]
        maps = torch.cat([scale_maps(one, SETTINGS.map_size) for one in raw]).flatten(0, 1)
        name, values = "k-means over scikit-learn, n_init=1", maps.numpy()
        self.show(name, lambda: cluster_maps(maps, SETTINGS.clusters), lambda: kmeans_by_map(values))
        return kmeans_table(maps)


def main(count: int, repeats: int, names: Sequence[str]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        bench = Bench(Path(folder), count, repeats)
        if unknown := [name for name in names if name not in bench.rows]:
            sys.exit(f"unknown rows {', '.join(unknown)}: choose from {', '.join(bench.rows)}")
        tables = [bench.rows[name]() for name in names or bench.rows]
        Console().print(bench.ratios, *filter(None, tables))


if __name__ == "__main__":
    images, repeats = integers(sys.argv[1:3], 640, 5)
    main(images, repeats, sys.argv[3:])
