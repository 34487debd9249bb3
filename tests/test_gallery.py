import io
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from conftest import SmallCache, fill_cache, place
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from rich.console import Console
from rich.table import Table

from pipeline.cache.cache import open_cache
from pipeline.cache.summary import read_image, summarise
from pipeline.data.counts import CountRow
from pipeline.data.datasets import load
from pipeline.errors import UserError
from pipeline.settings import PrecomputeSettings
from pipeline.swap import swap_patches
from pipeline.views.figures import cluster_overlay, draw_image, heat_overlay, pair_colour
from pipeline.views.gallery import IMAGES_A_CATEGORY, draw_pairs_on, spread_rows, write_gallery
from pipeline.views.tables import cache_table, counts_table, settings_text, stage_table

NASTY = """<script>alert(1)</script> & "quotes" 'x' $\\frac{1}{2}$ [red].png""".replace("/", "∕")
VOID = {"meta", "img", "br", "link", "hr"}


class Page(HTMLParser):
    """Tags with their attributes and text of a page; fails where tags are not closed in order."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self._open: list[str] = []
        self.feed(path.read_text(encoding="utf-8"))
        assert not self._open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self._open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.tags if name == tag]


@pytest.fixture(scope="module")
def gallery(small_cache: SmallCache, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_gallery(small_cache.store, tmp_path_factory.mktemp("gallery") / "new" / "folder")


@pytest.fixture
def nasty_cache(elpv: dict[str, tuple[list[Path], list[Path]]], tmp_path: Path) -> str:
    """A cache of two images, of which one has a file name that HTML, matplotlib and rich could take for markup."""
    files = place(tmp_path / "cells", "a & <b>/train/good", elpv["poly"][0][:2])
    files[0].rename(files[0].with_name(NASTY))
    store = str(tmp_path / "nasty.zarr")
    tiny = PrecomputeSettings(image_size=32, pairs=1, clusters=2, stages=("blocks.2", "blocks.6"))
    fill_cache(load("folder", str(tmp_path / "cells")), store, tiny, device="cpu")
    return store


def text_of(table: Table) -> str:
    console = Console(width=200, record=True, file=io.StringIO())
    console.print(table)
    return console.export_text()


# --- the page ---------------------------------------------------------------------------------------------------


def test_page_needs_nothing_from_outside_its_folder(gallery: Path) -> None:
    page = Page(gallery)
    assert gallery.name == "index.html"
    assert not page.all("script") and not page.all("link") and not page.all("iframe")
    links = [tag["href"] or "" for tag in page.all("a")] + [tag["src"] or "" for tag in page.all("img")]
    identities = {attributes["id"] for _, attributes in page.tags if "id" in attributes}
    for link in links:
        assert (link[1:] in identities) if link.startswith("#") else (gallery.parent / link).is_file(), link
    assert "http" not in gallery.read_text(encoding="utf-8")
    assert "url(" not in gallery.read_text(encoding="utf-8")


def test_page_shows_images_of_every_category_with_all_their_stages(gallery: Path, small_cache: SmallCache) -> None:
    page = Page(gallery)
    cards = {"mono": IMAGES_A_CATEGORY, "poly": 5}
    assert len(page.all("article")) == sum(cards.values())
    stages = len(small_cache.settings.stages)
    pictures = [tag["src"] for tag in page.all("img")]
    assert len(pictures) == len(set(pictures)) == sum(cards.values()) * (1 + 4 * stages)
    for name in ("mono/train/good/000.png", "mono/train/good/066.png", "poly/train/good/004.png"):
        assert name in page.text
    for word in ("efficientnet_lite0", "blocks.4 (stage 3 of 4)", "patch area", "67", "2 / 2", "negative of pair 1"):
        assert word in page.text
    for tag in page.all("img"):
        assert tag["alt"] and "train/good" in tag["alt"]
        with Image.open(gallery.parent / str(tag["src"])) as picture:
            assert picture.size == (int(str(tag["width"])), int(str(tag["height"])))
    assert any(tag.get("name") == "viewport" for tag in page.all("meta"))


def test_pictures_show_the_image_of_their_row(gallery: Path, small_cache: SmallCache) -> None:
    page = Page(gallery)
    for row in (0, 66):
        (source,) = (t["src"] for t in page.all("img") if t["alt"] == f"the image mono/train/good/{row:03}.png")
        with Image.open(gallery.parent / str(source)) as picture:
            shown = np.asarray(picture.convert("RGB").resize((64, 64)), np.float64)
        own, other = (read_image(small_cache.store, "mono", r).image.astype(np.float64) for r in (row, 66 - row))
        assert abs(shown - own).mean() < 4 < abs(shown - other).mean()


def test_file_names_are_text_and_never_markup(nasty_cache: str, tmp_path: Path) -> None:
    page = Page(write_gallery(nasty_cache, tmp_path / "gallery"))
    assert NASTY in page.text
    assert not page.all("script")
    assert [tag["alt"] for tag in page.all("img") if tag["alt"] == f"the image a & <b>/train/good/{NASTY}"]
    drawn = draw_image(nasty_cache, NASTY, [], tmp_path)
    assert drawn.name == f"a & <b>-{NASTY}"
    assert "a & <b>" in text_of(cache_table(summarise(nasty_cache)))


def test_half_a_cache_shows_its_done_half(copied_cache: SmallCache, tmp_path: Path) -> None:
    cache = open_cache(copied_cache.store, "r+")
    cache["mono"].array("done")[1] = 0
    cache["poly"].array("done")[0] = 0
    cache.update_attributes(complete=False)
    page = Page(write_gallery(copied_cache.store, tmp_path))
    assert "not complete" in page.text
    assert len(page.all("article")) == IMAGES_A_CATEGORY
    assert "mono/train/good/063.png" in page.text and "mono/train/good/064.png" not in page.text
    only = Page(write_gallery(copied_cache.store, tmp_path / "poly", ["poly"]))
    assert not only.all("article") and not only.all("img")
    tables = text_of(cache_table(summarise(copied_cache.store))) + text_of(stage_table(summarise(copied_cache.store)))
    assert "not complete" in tables and "1 / 2" in tables and "0 / 1" in tables


@given(st.sets(st.integers(0, 10_000), max_size=300))
def test_rows_are_spread_evenly(drawn: set[int]) -> None:
    rows = np.array(sorted(drawn), np.int64)
    chosen = spread_rows(rows)
    assert len(chosen) == min(IMAGES_A_CATEGORY, len(rows))
    assert chosen == sorted(set(chosen)) and set(chosen) <= drawn
    if len(rows) > 1:
        assert (chosen[0], chosen[-1]) == (rows[0], rows[-1])
        gaps = np.diff(np.searchsorted(rows, chosen))
        assert gaps.max() - gaps.min() <= 1


# --- pictures ---------------------------------------------------------------------------------------------------


def test_patches_are_outlined_where_they_lie_and_nothing_else_is_touched(small_cache: SmallCache) -> None:
    record = read_image(small_cache.store, "mono", 0)
    negative = swap_patches(record.image, record.pairs[1, 0])
    record.relaxed[1, 0] = 0
    plain = np.asarray(draw_pairs_on(negative, record, 1, []))
    solid = np.asarray(draw_pairs_on(negative, record, 1, [0]))
    outline = np.zeros(plain.shape[:2], bool)
    y1, x1, y2, x2, height, width = (int(v) * 4 for v in record.pairs[1, 0])
    for y, x in ((y1, x1), (y2, x2)):
        outline[y : y + height, x : x + width] = True
        outline[y + 2 : y + height - 2, x + 2 : x + width - 2] = False
    np.testing.assert_array_equal(solid[outline], np.rint(255 * np.array([pair_colour(0)] * outline.sum())))
    np.testing.assert_array_equal(solid[~outline], plain[~outline])
    record.relaxed[1, 0] = 1
    dashed = np.asarray(draw_pairs_on(negative, record, 1, [0]))
    np.testing.assert_array_equal(dashed[~outline], plain[~outline])
    assert 0.4 < (dashed[outline] == solid[outline]).all(1).mean() < 0.9


def test_overlays_follow_the_map_and_the_clusters() -> None:
    grey = np.full((64, 64, 3), 120, np.uint8)
    ramp = np.tile(np.linspace(0, 255, 16).astype(np.uint8), (16, 1))
    heat = heat_overlay(grey, ramp)
    assert heat.shape == grey.shape and (heat == heat[:1]).all()
    assert heat[0, 0, 2] > heat[0, 0, 0] and heat[0, -1, 0] > heat[0, -1, 2]
    labels = np.arange(256, dtype=np.uint8).reshape(16, 16) // 64
    coloured = cluster_overlay(grey, labels, 4)
    assert len(np.unique(coloured.reshape(-1, 3), axis=0)) == 4
    brightness = coloured[::16, 0].astype(int).sum(1)
    assert (np.diff(brightness) > 0).all()


def test_figure_is_named_by_category_so_that_no_source_is_overwritten(
    small_cache: SmallCache, copied_root: Path
) -> None:
    folder = copied_root / "poly/train/good"
    before = {file: file.read_bytes() for file in folder.iterdir()}
    out = draw_image(small_cache.store, "003.png", ["poly"], folder)
    assert out == folder / "poly-003.png"
    assert before.items() <= {file: file.read_bytes() for file in folder.iterdir()}.items()
    with Image.open(out) as picture:
        width, height = picture.size
        pixels = np.asarray(picture.convert("L"))
    assert width >= 1500 and height >= 1500
    # A picture, not a blank page: every band of the page and every column of panels has ink.
    bands = pixels.reshape(5, height // 5, width)[:, :, : width // 5 * 5].reshape(5, height // 5, 5, width // 5)
    assert (bands.std((1, 3)) > 10).all()
    with pytest.raises(UserError, match="fits 2 images"):
        draw_image(small_cache.store, "003.png", [], folder)


def test_figure_of_one_stage_and_one_pair(nasty_cache: str, tmp_path: Path) -> None:
    with Image.open(draw_image(nasty_cache, "1", [], tmp_path / "deeper")) as picture:
        assert picture.format == "PNG"


# --- tables -----------------------------------------------------------------------------------------------------


def test_counts_table_shows_found_against_published() -> None:
    rows = [
        CountRow("bolt [red]", 3, 1, 2, 2, (5, 1, 2), "missing 2 train"),
        CountRow("nut", 7, 0, 0, 0, None, "unknown"),
    ]
    text = text_of(counts_table(rows))
    for cell in ("bolt [red]", "3 / 5", "1 / 1", "2 / 2", "missing 2 train", "nut", "no published counts", " 10 "):
        assert cell in text


def test_cache_tables_show_what_the_summary_holds(small_cache: SmallCache) -> None:
    summary = summarise(small_cache.store)
    text = text_of(cache_table(summary)) + text_of(stage_table(summary)) + settings_text(summary)
    for cell in ("mono", "poly", "67", "2 / 2", "complete", "image-size = 64", "clusters = 4", "blocks.6"):
        assert cell in text
    for one in summary.categories:
        for stage in one.stages:
            assert stage.top_share is not None and f"{100 * stage.top_share:.1f} %" in text
            assert stage.centroids is not None and " ".join(f"{c:.2f}" for c in stage.centroids) in text
