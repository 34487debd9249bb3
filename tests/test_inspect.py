import json
import math
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import SmallCache, fill_cache, place
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.cache.cache import default_store, open_cache
from pipeline.cache.layout import CHUNK
from pipeline.cache.summary import find_image, read_image, read_images, summarise
from pipeline.cache.verify import chunk_faults, inspection_value, verify_cache
from pipeline.clusters import cluster_maps
from pipeline.data.datasets import load
from pipeline.errors import RunError, UserError
from pipeline.pairs import draw_pairs
from pipeline.settings import PrecomputeSettings

STAGES = ("blocks.1", "blocks.2", "blocks.4", "blocks.6")


def category_of(store: str, name: str) -> Any:
    """The Zarr group of a category, to damage it."""
    return open_cache(store, "r+")[name].group


def cut_off(cache: SmallCache) -> SmallCache:
    """The cache as a run leaves it that was stopped in the second chunk of mono and before poly."""
    mono, poly = category_of(cache.store, "mono"), category_of(cache.store, "poly")
    mono["done"][1] = 0
    poly["done"][0] = 0
    # Half written: what lies in a chunk that is not done must not be read.
    mono["clusters"][CHUNK:] = 0
    mono["relaxed"][CHUNK:] = 1
    open_cache(cache.store, "r+").update_attributes(complete=False)
    return cache


@pytest.fixture
def skipping_cache(elpv: dict[str, tuple[list[Path], list[Path]]], tmp_path: Path) -> str:
    """A cache of three images of which the second could not be read."""
    place(tmp_path / "cells", "poly/train/good", elpv["poly"][0][:3])[1].write_bytes(b"no image")
    store = str(tmp_path / "skipping.zarr")
    tiny = PrecomputeSettings(image_size=64, pairs=2, stages=("blocks.6",))
    fill_cache(load("folder", str(tmp_path / "cells")), store, tiny, device="cpu", bad_images="skip")
    return store


# --- the summary ------------------------------------------------------------------------------------------------


def test_summary_counts_what_was_computed(small_cache: SmallCache) -> None:
    summary = summarise(small_cache.store)
    assert (summary.complete, summary.dataset, summary.root) == (True, "folder", str(small_cache.root))
    assert PrecomputeSettings.from_attributes(summary.settings) == small_cache.settings
    mono, poly = summary.categories
    assert (mono.name, mono.images, mono.computed, mono.blocks, mono.blocks_done) == ("mono", 67, 67, 2, 2)
    assert (poly.name, poly.images, poly.computed, poly.blocks, poly.blocks_done) == ("poly", 5, 5, 1, 1)
    assert mono.skipped == poly.skipped == ()
    files = [file for file in Path(small_cache.store, "mono").rglob("*") if file.is_file()]
    assert mono.stored_bytes == sum(file.stat().st_size for file in files if file.parent.name != "mono")


@pytest.mark.parametrize("part", ["whole", "cut off"])
def test_summary_means_are_those_of_the_done_rows(copied_cache: SmallCache, part: str) -> None:
    rows = slice(0, 67 if part == "whole" else CHUNK)
    mono = open_cache(copied_cache.store)["mono"]
    clusters, centroids, relaxed = (mono.read(name)[rows] for name in ("clusters", "centroids", "relaxed"))
    if part == "cut off":
        cut_off(copied_cache)
    (one,) = summarise(copied_cache.store, ["mono"]).categories
    assert one.computed == len(clusters)
    assert tuple(stage.name for stage in one.stages) == STAGES
    for i, stage in enumerate(one.stages):
        held = [np.mean(labels == labels.max()) for labels in clusters[:, i]]
        assert stage.top_share == pytest.approx(np.mean(held))
        assert stage.centroids == pytest.approx(centroids[:, i].mean(0))
        assert stage.relaxed_share == pytest.approx(relaxed[:, i].mean())
        assert stage.flat == 0


def test_summary_of_nothing_done_has_no_means(copied_cache: SmallCache) -> None:
    one = summarise(cut_off(copied_cache).store, ["poly"]).categories[0]
    assert (one.images, one.computed, one.blocks_done) == (5, 0, 0)
    assert all((s.top_share, s.centroids, s.relaxed_share) == (None, None, None) for s in one.stages)


def test_flat_maps_are_counted_and_left_out_of_the_means(copied_cache: SmallCache) -> None:
    poly = category_of(copied_cache.store, "poly")
    for name in ("saliency", "clusters", "centroids"):
        poly[name][0, 2] = 0
    stage = summarise(copied_cache.store, ["poly"]).categories[0].stages[2]
    assert stage.flat == 1
    assert stage.centroids == pytest.approx(poly["centroids"][1:, 2].mean(0))
    assert verify_cache(copied_cache.store, ["poly"]).problems == ()


def test_unknown_category_or_cache_is_the_users_mistake(small_cache: SmallCache, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="holds no category 'nut': it holds mono, poly"):
        summarise(small_cache.store, ["nut"])
    with pytest.raises(UserError, match="no cache at"):
        summarise(str(tmp_path / "none.zarr"))


def test_json_holds_the_summary_and_the_verdict(copied_cache: SmallCache) -> None:
    value = inspection_value(cut_off(copied_cache).store, verify=True)
    read = json.loads(json.dumps(value, allow_nan=False))
    assert [one["computed"] for one in read["categories"]] == [64, 0]
    assert read["categories"][1]["stages"][0]["centroids"] is None
    assert len(read["verify"]["problems"]) == 3
    assert "verify" not in inspection_value(copied_cache.store, verify=False)


def test_json_of_a_damaged_cache_still_holds_the_verdict(copied_cache: SmallCache) -> None:
    damage_chunk(copied_cache.store)
    assert list(inspection_value(copied_cache.store, verify=True)) == ["verify"]
    with pytest.raises(RunError, match="chunk 1 cannot be read"):
        inspection_value(copied_cache.store, verify=False)


# --- one image --------------------------------------------------------------------------------------------------


def test_every_path_and_row_finds_its_image(small_cache: SmallCache) -> None:
    for name in ("mono", "poly"):
        for row, path in enumerate(open_cache(small_cache.store)[name].read("paths")):
            assert find_image(small_cache.store, str(path)) == (name, row)
            assert find_image(small_cache.store, str(row), [name]) == (name, row)


def test_part_of_a_path_finds_the_image_if_only_one_has_it(small_cache: SmallCache) -> None:
    assert find_image(small_cache.store, "066") == ("mono", 66)
    assert find_image(small_cache.store, "good/066") == ("mono", 66)
    assert find_image(small_cache.store, "003.png", ["poly"]) == ("poly", 3)
    with pytest.raises(UserError, match=r"fits 2 images: mono/train/good/003.png, poly/train/good/003.png; give"):
        find_image(small_cache.store, "003.png")
    with pytest.raises(UserError, match=r"fits 67 images: .* and 62 more"):
        find_image(small_cache.store, "mono/")


def test_a_file_name_wins_over_names_that_end_with_it(copied_cache: SmallCache) -> None:
    category_of(copied_cache.store, "poly")["paths"][:] = np.array(["11.png", "a/1.png", "21.png", "b", "c"], object)
    assert find_image(copied_cache.store, "1.png", ["poly"]) == ("poly", 1)


def test_unknown_image_gets_suggestions(small_cache: SmallCache) -> None:
    with pytest.raises(UserError, match=r"did you mean mono/train/good/066.png"):
        find_image(small_cache.store, "mono/train/good/066.jpg")
    with pytest.raises(UserError, match="a row from 0 to 4"):
        find_image(small_cache.store, "??", ["poly"])
    with pytest.raises(UserError, match="is no image of"):
        find_image(small_cache.store, "5", ["poly"])


def test_records_are_the_rows_of_the_arrays(small_cache: SmallCache) -> None:
    root = open_cache(small_cache.store)
    mono = root["mono"]
    arrays = {name: mono.read(name) for name in ("images", "saliency", "clusters", "centroids", "pairs")}
    rows = [0, 63, 64, 66]
    for row, record in zip(rows, read_images(mono, rows), strict=True):
        assert (record.row, record.path, record.stages) == (row, f"mono/train/good/{row:03}.png", STAGES)
        found = (record.image, record.saliency, record.clusters, record.centroids, record.pairs)
        for name, values in zip(arrays, found, strict=True):
            np.testing.assert_array_equal(values, arrays[name][row])


def test_rows_of_pending_chunks_and_skipped_images_are_refused(copied_cache: SmallCache, skipping_cache: str) -> None:
    store = cut_off(copied_cache).store
    assert open_cache(store)["mono"].usable.tolist() == list(range(CHUNK))
    assert read_image(store, "mono", 63).row == 63
    with pytest.raises(UserError, match=r"066.png is not computed yet"):
        read_image(store, "mono", 66)
    assert open_cache(skipping_cache)["poly"].usable.tolist() == [0, 2]
    with pytest.raises(UserError, match=r"001.png was skipped"):
        read_image(skipping_cache, "poly", 1)


def test_default_store_is_the_only_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match="no cache in data/cache"):
        default_store()
    (tmp_path / "data/cache/b.zarr").mkdir(parents=True)
    assert default_store() == "data/cache/b.zarr"
    (tmp_path / "data/cache/a.zarr").mkdir()
    with pytest.raises(UserError, match=r"data/cache/a.zarr, data/cache/b.zarr"):
        default_store()


# --- verify -----------------------------------------------------------------------------------------------------


def test_a_whole_cache_has_no_problem(small_cache: SmallCache) -> None:
    verdict = verify_cache(small_cache.store)
    assert (verdict.images, verdict.problems, verdict.skipped) == (72, (), ())
    assert verify_cache(small_cache.store, ["poly"]).images == 5


def test_skipped_images_are_listed_and_no_problem(skipping_cache: str) -> None:
    verdict = verify_cache(skipping_cache)
    assert (verdict.images, verdict.problems, verdict.skipped) == (2, (), ("poly/train/good/001.png",))
    assert summarise(skipping_cache).categories[0].skipped == verdict.skipped
    assert summarise(skipping_cache).categories[0].computed == 2


def test_pending_chunks_are_problems_and_not_read(copied_cache: SmallCache) -> None:
    verdict = verify_cache(cut_off(copied_cache).store)
    assert verdict.images == CHUNK
    assert len(verdict.problems) == 3
    lines = "\n".join(verdict.problems)
    for line in ("not marked complete", "mono: 1 of 2 chunks are not done", "poly: 1 of 1 chunks are not done"):
        assert line in lines


def damage_chunk(store: str) -> None:
    (chunk,) = (path for path in Path(store, "mono/clusters/c/1").rglob("*") if path.is_file())
    chunk.write_bytes(chunk.read_bytes()[:-20])


def lose_chunk(name: str, chunk: int) -> Callable[[str], None]:
    def lose(store: str) -> None:
        lost = Path(store, "mono", name, "c", str(chunk))
        assert lost.exists()
        shutil.rmtree(lost) if lost.is_dir() else lost.unlink()

    return lose


def change(name: str, row: int, edit: Callable[[Any], Any]) -> Callable[[str], None]:
    def write(store: str) -> None:
        array = category_of(store, "mono")[name]
        array[row] = edit(np.asarray(array[row]))

    return write


def retype(store: str) -> None:
    mono = category_of(store, "mono")
    values = mono["pairs"][:]
    del mono["pairs"]
    mono.create_array("pairs", data=values.astype(np.int32), chunks=(CHUNK, *values.shape[1:]))


def set_pair(box: tuple[int, ...]) -> Callable[[str], None]:
    def edit(pairs: Any) -> Any:
        pairs[3, 1] = box
        return pairs

    return change("pairs", 65, edit)


AT_65 = "mono, chunk 1: {}.* in 1 of 3 images, first mono/train/good/065.png"
DAMAGE: dict[str, tuple[Callable[[str], None], str]] = {
    "patch below the image": (set_pair((60, 0, 0, 0, 8, 8)), AT_65.format("patches that are empty or reach outside")),
    "patch above the image": (set_pair((-1, 0, 9, 0, 8, 8)), AT_65.format("patches that are empty or reach outside")),
    "patch without size": (set_pair((0, 0, 9, 9, 8, 0)), AT_65.format("patches that are empty or reach outside")),
    "overlap": (set_pair((0, 0, 7, 7, 8, 8)), AT_65.format("patches of a pair that overlap")),
    "cluster K": (change("clusters", 65, lambda labels: labels + 4), AT_65.format("clusters that are not below 4")),
    "numbering": (change("clusters", 65, lambda labels: 3 - labels), AT_65.format("clusters that are not numbered")),
    "other map": (change("saliency", 65, lambda maps: maps // 2), AT_65.format("clusters that are not numbered")),
    "falling": (change("centroids", 65, lambda c: c[:, ::-1]), AT_65.format("centroids that do not rise")),
    "no number": (change("centroids", 65, lambda c: c * math.nan), AT_65.format("centroids that do not rise")),
    "mark": (change("relaxed", 65, lambda marks: marks + 2), AT_65.format("relaxed marks")),
    "class": (change("target_class", 65, lambda _: -1), AT_65.format("a target class below 0")),
    "valid": (change("valid", 65, lambda _: 0), AT_65.format("a digest though marked as not read")),
    "digest": (change("sha256", 65, lambda _: "0" * 64), "mono/train/good/065.png: the source image changed"),
    "paths": (change("paths", 65, lambda _: "mono/train/good/064.png"), "the paths are not those of images_digest"),
    "images lost": (lose_chunk("images", 0), "mono, chunk 0: only black pixels.* in 64 of 64 images"),
    "clusters lost": (lose_chunk("clusters", 0), "mono, chunk 0: clusters that are not numbered.* in 64 of 64 images"),
    "saliency lost": (lose_chunk("saliency", 1), "mono, chunk 1: clusters that are not numbered.* in 3 of 3 images"),
    "centroids lost": (lose_chunk("centroids", 1), "mono, chunk 1: clusters that are not numbered.* in 3 of 3 images"),
    "pairs lost": (lose_chunk("pairs", 1), "mono, chunk 1: patches that are empty.* in 3 of 3 images"),
    "digests lost": (lose_chunk("sha256", 1), "mono/train/good/064.png: the source image changed"),
    "valid lost": (lose_chunk("valid", 1), "mono, chunk 1: a digest though marked as not read.* in 3 of 3 images"),
    "done lost": (lose_chunk("done", 1), "mono: 1 of 2 chunks are not done"),
    "chunk cut": (damage_chunk, "mono, chunk 1: cannot be read"),
    "array lost": (lambda store: shutil.rmtree(Path(store, "mono/relaxed")), "mono: array relaxed is missing"),
    "metadata": (lambda store: Path(store, "mono/pairs/zarr.json").unlink(), "mono: array pairs is missing"),
    "type": (retype, "mono: array pairs has shape, type"),
    "incomplete": (lambda store: open_cache(store, "r+").update_attributes(complete=False), "not marked complete"),
    "half made": (
        lambda store: category_of(store, "mono").update_attributes({"ready": False}),
        "mono: its arrays were not all created",
    ),
}


@pytest.mark.parametrize(("damage", "line"), DAMAGE.values(), ids=list(DAMAGE))
def test_damage_is_named(copied_cache: SmallCache, damage: Callable[[str], None], line: str) -> None:
    damage(copied_cache.store)
    problems = verify_cache(copied_cache.store).problems
    assert any(re.search(line, problem) for problem in problems), problems
    assert all("\n" not in problem for problem in problems)
    # What is whole is not blamed.
    assert not any("poly" in problem for problem in problems)


def test_changed_and_missing_sources_are_named(copied_cache: SmallCache, copied_root: Path, tmp_path: Path) -> None:
    root = open_cache(copied_cache.store, "r+")
    root.update_attributes(root=str(copied_root))
    assert verify_cache(copied_cache.store).problems == ()
    changed, missing = (copied_root / "mono/train/good" / name for name in ("010.png", "066.png"))
    changed.write_bytes(changed.read_bytes() + b"\0")
    missing.unlink()
    problems = verify_cache(copied_cache.store).problems
    assert len(problems) == 2
    assert "mono/train/good/010.png: the source image changed" in problems[0]
    assert "mono/train/good/066.png: no such file" in problems[1]
    # A data set that was moved is one line a category, not one an image.
    root.update_attributes(root=str(tmp_path / "elsewhere"))
    problems = verify_cache(copied_cache.store).problems
    assert [problem.partition(",")[0] for problem in problems] == [
        "mono: none of its 67 source images can be read",
        "poly: none of its 5 source images can be read",
    ]


@settings(max_examples=30, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    levels=st.integers(1, 256),
    clusters=st.integers(2, 6),
    area=st.tuples(st.floats(0.001, 0.25), st.floats(0.001, 0.25)).map(sorted),
)
def test_what_is_computed_has_no_fault(seed: int, levels: int, clusters: int, area: list[float]) -> None:
    """Any map, also one of few values, clustered and drawn from as precompute does it."""
    generator = np.random.default_rng(seed)
    maps = (generator.integers(0, levels, (2, 3, 16, 16)) * (255 // max(1, levels - 1))).clip(0, 255).astype(np.uint8)
    labels, centroids = cluster_maps(torch.from_numpy(maps.reshape(6, 16, 16)), clusters)
    keys = generator.integers(0, 2**63, 6).astype(np.uint64)
    pairs, relaxed = draw_pairs(labels, keys, pairs=3, image_size=64, area=area, aspect=(0.3, 3.3))
    arrays = {
        "images": generator.integers(0, 256, (2, 64, 64, 3)).astype(np.uint8),
        "saliency": maps,
        "clusters": labels.numpy().reshape(maps.shape),
        "centroids": centroids.numpy().reshape(2, 3, clusters),
        "pairs": pairs.numpy().reshape(2, 3, 3, 6),
        "relaxed": relaxed.numpy().reshape(2, 3, 3),
        "target_class": np.zeros(2, np.int32),
    }
    made = PrecomputeSettings(image_size=64, clusters=clusters, pairs=3, stages=STAGES[:3])
    assert not any(faulty.any() for faulty in chunk_faults(arrays, made).values())
