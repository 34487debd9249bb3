"""Pictures of what was computed for an image: heat maps, clusters, patch pairs, negatives; and a figure of them all."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

import numpy as np
from matplotlib import colormaps
from matplotlib.cm import ScalarMappable
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.gridspec import GridSpec
from matplotlib.patches import Patch, Rectangle
from numpy.typing import NDArray
from PIL import Image

from pipeline.cache.cache import open_cache
from pipeline.cache.summary import ImageRecord, find_image, read_image, top_shares
from pipeline.files import fitting, replacing
from pipeline.settings import PrecomputeSettings
from pipeline.swap import swap_patches
from pipeline.views.drawing import drawable, own_style

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Colour = tuple[float, float, float]

HEAT = "turbo"
_NEGATIVES = 2
_DASHES = (0.0, (4.0, 2.5))
_BOLD = 6
_PAIR_COLOURS = ("#1f5fd0", "#d62728", "#0a8f3c", "#b5179e", "#e07b00", "#00838f", "#6b4cc9", "#8c564b")
_HOW_TO_READ = """\
Saliency: LayerCAM of the explained class, each map scaled to 0..1 by itself. The hotter, the more it spoke for it.
Clusters: k-means of the map, with the mean saliency (centroid) of each. Pairs come from the highest, the lightest.
Pairs: the two patches of a pair have one colour and number. Dashed: relaxed, the highest cluster was too small for
both, and the second patch comes from a lower one. The first six are drawn bold.
Negative: the image with the two patches of a pair swapped. The detector learns to tell it from the image."""


def heat_overlay(image: NDArray[np.uint8], saliency: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """The image (H,W,3) in grey under the colours of its map (h,w), which cover it the more the hotter: (H,W,3)."""
    heat = np.asarray(Image.fromarray(saliency).resize(image.shape[1::-1], Image.Resampling.BILINEAR)) / 255
    return _blend(image, colormaps[HEAT](heat)[..., :3], 0.25 + 0.5 * np.sqrt(heat))


def cluster_overlay(image: NDArray[np.uint8], clusters: NDArray[np.uint8], count: int) -> NDArray[np.uint8]:
    """The image (H,W,3) in grey under the colours of its clusters (h,w), numbered below `count`: (H,W,3)."""
    labels = np.asarray(Image.fromarray(clusters).resize(image.shape[1::-1], Image.Resampling.NEAREST))
    colours = np.array(cluster_colours(count))[np.minimum(labels, count - 1)]
    return _blend(image, colours, np.full(labels.shape, 0.75))


def pale(image: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """The image (H,W,3) in faint grey, on which coloured boxes stand out."""
    return _blend(image, np.ones(image.shape), np.full(image.shape[:2], 0.35))


def cluster_colours(count: int) -> list[Colour]:
    """RGB 0..1 of each cluster, dark to light by rising centroid."""
    return [tuple(rgb[:3]) for rgb in colormaps["plasma"](np.linspace(0.05, 0.95, count))]


def pair_colour(pair: int) -> Colour:
    """RGB 0..1 of a pair, strong on pale grey; after eight pairs they repeat."""
    return to_rgb(_PAIR_COLOURS[pair % len(_PAIR_COLOURS)])


def class_name(settings: PrecomputeSettings, index: int) -> str:
    """Name of an ImageNet class; empty where the weights are not ImageNet's, whose classes have no known names."""
    if settings.weights != "imagenet":
        return ""
    return str(_imagenet().index_to_description(index))


def stage_title(stages: tuple[str, ...], stage: int) -> str:
    """Such as "blocks.1 (stage 1 of 4, shallowest)"."""
    ends = {0: ", shallowest", len(stages) - 1: ", deepest"} if len(stages) > 1 else {}
    return f"{stages[stage]} (stage {stage + 1} of {len(stages)}{ends.get(stage, '')})"


def draw_image(store: str, wanted: str, categories: Sequence[str], folder: Path) -> Path:
    """Write the figure of one image of a cache as `folder`/<category>-<file name without suffix>.png; returns the path.

    wanted: see `inspect.find_image`. The category is part of the name so that no source image, which may be in
    `folder`, is overwritten.
    """
    record = read_image(store, *find_image(store, wanted, categories))
    name = fitting(f"{record.category}-{PurePosixPath(record.path).stem}.png")
    return image_figure(record, open_cache(store)[record.category].settings, folder / name)


@own_style()
def image_figure(record: ImageRecord, settings: PrecomputeSettings, out: Path) -> Path:
    """Write a PNG of one image with its maps, clusters, pairs and negatives, a row per stage; returns its path."""
    rows = len(record.stages)
    figure = Figure(figsize=(16, 3.3 + 3.55 * rows), dpi=100)
    figure.set_layout_engine("constrained", w_pad=0.06, h_pad=0.08)
    grid = GridSpec(rows + 1, 3 + _NEGATIVES, figure, height_ratios=[0.85] + [1] * rows)
    _draw_header(figure, grid, record, settings)
    for stage in range(rows):
        _draw_stage([figure.add_subplot(grid[stage + 1, column]) for column in range(3 + _NEGATIVES)], record, stage)
    with replacing(out) as file:
        figure.savefig(file, format="png")
    return out


def _draw_header(figure: Figure, grid: GridSpec, record: ImageRecord, settings: PrecomputeSettings) -> None:
    axes = figure.add_subplot(grid[0, 0])
    _show(axes, record.image)
    axes.set_title("image as the network saw it", fontsize=10)
    text = figure.add_subplot(grid[0, 1:])
    text.axis("off")
    name = class_name(settings, record.target_class)
    category, weights, path = map(drawable, (record.category, Path(settings.weights).name, record.path))
    facts = (
        f"category {category}, row {record.row};  explained class {record.target_class}{name and f', {name}'}\n"
        f"{settings.backbone}, weights {weights};  "
        f"{settings.image_size} x {settings.image_size} px ({settings.resize})"
    )
    lines = (
        (0.99, path, 17 * min(1, 80 / len(path)), "bold", "0"),
        (0.83, facts, 11, "normal", "0"),
        (0.57, _HOW_TO_READ, 11, "normal", "0.25"),
    )
    for y, words, size, weight, colour in lines:
        one = text.text(0, y, words, fontsize=size, weight=weight, color=colour, va="top")
        # A long name must not push the pictures aside.
        one.set(linespacing=1.5, in_layout=False)


def _draw_stage(axes: list[Axes], record: ImageRecord, stage: int) -> None:
    centroids, clusters, relaxed = record.centroids[stage], record.clusters[stage], record.relaxed[stage]
    _show(axes[0], heat_overlay(record.image, record.saliency[stage]))
    axes[0].set_title("saliency" if centroids[-1] else "saliency: flat", fontsize=10)
    axes[0].set_ylabel(stage_title(record.stages, stage), fontsize=12, weight="bold")
    scale = axes[0].inset_axes((0.2, -0.075, 0.6, 0.035))
    axes[0].figure.colorbar(ScalarMappable(cmap=HEAT), cax=scale, orientation="horizontal", ticks=[])
    axes[0].text(0.17, -0.06, "0", transform=axes[0].transAxes, ha="right", va="center", fontsize=9)
    axes[0].text(0.83, -0.06, "1", transform=axes[0].transAxes, va="center", fontsize=9)
    _show(axes[1], cluster_overlay(record.image, clusters, len(centroids)))
    axes[1].set_title(f"clusters; the highest holds {100 * float(top_shares(clusters)):.1f} % of the map", fontsize=10)
    _draw_centroids(axes[1], centroids)
    _show(axes[2], pale(record.image))
    for pair in reversed(range(len(relaxed))):
        _outline(axes[2], record, stage, pair, bold=pair < _BOLD, label=pair < _BOLD)
    axes[2].set_title(f"{len(relaxed)} pairs, {int(relaxed.sum())} relaxed", fontsize=10)
    for pair, one in enumerate(axes[3:]):
        _draw_negative(one, record, stage, pair)


def _draw_centroids(axes: Axes, centroids: NDArray[np.float32]) -> None:
    keys = [
        Patch(facecolor=colour, edgecolor="0.4", label=f"{centroid:.2f}")
        for colour, centroid in zip(cluster_colours(len(centroids)), centroids, strict=True)
    ]
    axes.legend(
        handles=keys,
        loc="upper center",
        bbox_to_anchor=(0.5, -0.01),
        ncols=min(len(keys), 5),
        frameon=False,
        fontsize=9,
        handlelength=1,
        handleheight=1,
        columnspacing=0.9,
    )


def _draw_negative(axes: Axes, record: ImageRecord, stage: int, pair: int) -> None:
    if pair >= len(record.pairs[stage]):
        axes.axis("off")
        return
    _show(axes, swap_patches(record.image, record.pairs[stage, pair]))
    _outline(axes, record, stage, pair, bold=True, label=False)
    relaxed = ", relaxed" if record.relaxed[stage, pair] else ""
    axes.set_title(f"negative: pair {pair + 1} swapped{relaxed}", fontsize=10)


def _outline(axes: Axes, record: ImageRecord, stage: int, pair: int, *, bold: bool, label: bool) -> None:
    y1, x1, y2, x2, height, width = (int(v) for v in record.pairs[stage, pair])
    colour = pair_colour(pair)
    line, alpha = (2.0, 1.0) if bold else (0.7, 0.45)
    for y, x in ((y1, x1), (y2, x2)):
        box = Rectangle((x - 0.5, y - 0.5), width, height, fill=False, edgecolor=colour, linewidth=line, alpha=alpha)
        if record.relaxed[stage, pair]:
            box.set_linestyle(_DASHES)
        axes.add_patch(box)
        if label:
            chip = {"facecolor": colour, "edgecolor": "none", "pad": 1.2}
            number, size = str(pair + 1), record.image.shape[0] / 256
            spot = x + 2 * size, y + 2 * size
            axes.text(*spot, number, color="white", fontsize=8, weight="bold", va="top", bbox=chip, clip_on=True)


def _show(axes: Axes, pixels: NDArray[np.uint8]) -> None:
    axes.imshow(pixels)
    axes.set_xticks([])
    axes.set_yticks([])


@cache
def _imagenet() -> Any:  # noqa: ANN401 - timm has no types
    # Imported here: timm takes seconds to import, and the tables do not need it.
    from timm.data.imagenet_info import ImageNetInfo

    return ImageNetInfo()


def _blend(image: NDArray[np.uint8], colours: NDArray[np.float64], cover: NDArray[np.float64]) -> NDArray[np.uint8]:
    """Grey of `image` under `colours` (H,W,3) in 0..1, which cover it by `cover` (H,W) in 0..1."""
    grey = image.mean(2, keepdims=True) / 255
    mixed: NDArray[np.uint8] = np.rint(255 * (grey + cover[..., None] * (colours - grey))).astype(np.uint8)
    return mixed
