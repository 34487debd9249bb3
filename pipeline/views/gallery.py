"""An HTML gallery of a cache: some images of each category with their maps, clusters, pairs and negatives.

The page and its pictures need nothing from outside their folder: no script, no font, no address.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from matplotlib.colors import to_hex
from numpy.typing import NDArray
from PIL import Image, ImageDraw
from rich.filesize import decimal

from pipeline.cache.cache import open_cache
from pipeline.cache.summary import CacheSummary, ImageRecord, read_images, summarise, top_shares
from pipeline.files import fitting, replacing_folder
from pipeline.progress import progress
from pipeline.settings import PrecomputeSettings
from pipeline.swap import swap_patches
from pipeline.views.figures import (
    class_name,
    cluster_colours,
    cluster_overlay,
    heat_overlay,
    pair_colour,
    pale,
    stage_title,
)
from pipeline.views.tables import percent, setting_lines, stage_cells

IMAGES_A_CATEGORY = 24
_PAGE = "index.html"
_TILE = 256
_PAIRS_DRAWN = 4
_DASH, _GAP = 6, 4


@dataclass(frozen=True)
class Picture:
    """A picture of the page: its relative address, its caption, and what it shows in words."""

    address: str
    caption: str
    alt: str


@dataclass(frozen=True)
class StageView:
    """One stage of a card: title, (colour, centroid) of each cluster, a line of facts, and its pictures."""

    title: str
    centroids: tuple[tuple[str, str], ...]
    facts: str
    pictures: tuple[Picture, ...]


@dataclass(frozen=True)
class Card:
    """One image of the gallery."""

    path: str
    facts: str
    original: Picture
    stages: tuple[StageView, ...]


def write_gallery(store: str, out: Path, categories: Sequence[str] = ()) -> Path:
    """Write `out`/index.html and the pictures in `out`/images; returns the page.

    Shows 24 images per category, evenly spread over those computed, and the summary of the whole category. Files of
    the same names are replaced, and those of an earlier gallery go. UserError where there is no cache or no such
    category.
    """
    summary = summarise(store, categories)
    chosen = open_cache(store).choose(categories)
    rows = {category.name: spread_rows(category.usable) for category in chosen}
    cards: dict[str, list[Card]] = {name: [] for name in rows}
    shown = sum(map(len, rows.values()))
    with replacing_folder(out, last=_PAGE) as new, progress("gallery", shown, "images") as advance:
        for number, category in enumerate(chosen, 1):
            folder = f"images/{fitting(f'{number}-' + re.sub('[^a-z0-9]+', '-', category.name.lower()))}"
            (new / folder).mkdir(parents=True)
            for record in read_images(category, rows[category.name]):
                cards[category.name].append(_make_card(record, category.settings, new, folder))
                advance(1)
        (new / _PAGE).write_text(_render(summary, cards), encoding="utf-8")
    return out / _PAGE


def spread_rows(rows: NDArray[np.int64]) -> list[int]:
    """At most `IMAGES_A_CATEGORY` of the rising `rows`, evenly spread, the first and the last among them."""
    places = np.linspace(0, len(rows) - 1, min(IMAGES_A_CATEGORY, len(rows))).round().astype(int)
    return [int(row) for row in rows[places]]


def draw_pairs_on(image: NDArray[np.uint8], record: ImageRecord, stage: int, pairs: Sequence[int]) -> Image.Image:
    """`image` (H,W,3) at the size of a tile, with the patches of `pairs` outlined; dashed where relaxed."""
    tile = Image.fromarray(image).resize((_TILE, _TILE), Image.Resampling.BILINEAR)
    draw = ImageDraw.Draw(tile)
    scale = _TILE / image.shape[0]
    for pair in pairs:
        y1, x1, y2, x2, height, width = (float(v) * scale for v in record.pairs[stage, pair])
        colour = to_hex(pair_colour(pair))
        for y, x in ((y1, x1), (y2, x2)):
            left, top = round(x), round(y)
            box = left, top, max(left, round(x + width) - 1), max(top, round(y + height) - 1)
            _draw_box(draw, box, colour, dashed=bool(record.relaxed[stage, pair]))
    return tile


def _draw_box(draw: ImageDraw.ImageDraw, box: tuple[int, int, int, int], colour: str, *, dashed: bool) -> None:
    if not dashed:
        draw.rectangle(box, outline=colour, width=2)
        return
    left, top, right, bottom = box
    for x in range(left, right, _DASH + _GAP):
        end = min(x + _DASH, right)
        draw.rectangle((x, top, end, top + 1), fill=colour)
        draw.rectangle((x, bottom - 1, end, bottom), fill=colour)
    for y in range(top, bottom, _DASH + _GAP):
        end = min(y + _DASH, bottom)
        draw.rectangle((left, y, left + 1, end), fill=colour)
        draw.rectangle((right - 1, y, right, end), fill=colour)


def _make_card(record: ImageRecord, settings: PrecomputeSettings, out: Path, folder: str) -> Card:
    original = f"{folder}/{record.row:06d}.jpg"
    _save(Image.fromarray(record.image), out / original)
    name = class_name(settings, record.target_class)
    return Card(
        record.path,
        f"row {record.row}; explained class {record.target_class}{f', {name}' if name else ''}",
        Picture(original, "image", f"the image {record.path}"),
        tuple(_make_stage(record, stage, out, folder) for stage in range(len(record.stages))),
    )


def _make_stage(record: ImageRecord, stage: int, out: Path, folder: str) -> StageView:
    relaxed = record.relaxed[stage]
    top = percent(float(top_shares(record.clusters[stage])))
    pictures = []
    for letter, (caption, alt, tile) in zip("abcd", _make_tiles(record, stage), strict=True):
        address = f"{folder}/{record.row:06d}-{stage + 1}{letter}.jpg"
        _save(tile, out / address)
        pictures.append(Picture(address, caption, f"{alt}: {record.path}, {record.stages[stage]}"))
    centroids = [f"{centroid:.2f}" for centroid in record.centroids[stage]]
    return StageView(
        stage_title(record.stages, stage),
        tuple(zip(map(to_hex, cluster_colours(len(centroids))), centroids, strict=True)),
        f"highest cluster: {top} of the map; {int(relaxed.sum())} of {len(relaxed)} pairs relaxed",
        tuple(pictures),
    )


def _make_tiles(record: ImageRecord, stage: int) -> list[tuple[str, str, Image.Image]]:
    """Caption, what it shows in words, and the picture, of the four tiles of a stage."""
    image, clusters, pairs = record.image, record.clusters[stage], record.pairs[stage]
    drawn = min(_PAIRS_DRAWN, len(pairs))
    which = f"pairs 1 to {drawn}" if drawn > 1 else "pair 1"
    heat = Image.fromarray(heat_overlay(image, record.saliency[stage]))
    colours = Image.fromarray(cluster_overlay(image, clusters, record.centroids.shape[1]))
    boxes = draw_pairs_on(pale(image), record, stage, range(drawn))
    negative = draw_pairs_on(swap_patches(image, pairs[0]), record, stage, [0])
    return [
        ("saliency", "saliency, from blue for 0 to red for 1", heat),
        ("clusters", "clusters of the saliency, the lightest is the highest", colours),
        (which, f"{which}, each the two boxes of one colour", boxes),
        ("negative of pair 1", "the image with the two outlined patches swapped", negative),
    ]


def _save(tile: Image.Image, path: Path) -> None:
    if tile.size != (_TILE, _TILE):
        tile = tile.resize((_TILE, _TILE), Image.Resampling.BILINEAR)
    # Subsampled colours would smear the outlines.
    tile.save(path, quality=85, subsampling=0)


def _render(summary: CacheSummary, cards: dict[str, list[Card]]) -> str:
    loader = FileSystemLoader(Path(__file__).parent)
    environment = Environment(
        loader=loader, autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    return environment.get_template("gallery.html.j2").render(
        summary=summary,
        settings=setting_lines(summary),
        cards=cards,
        tile=_TILE,
        decimal=decimal,
        stage_cells=stage_cells,
    )
