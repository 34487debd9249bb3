import os
from pathlib import Path
from shutil import copy, copytree

import numpy as np
import pytest
from conftest import NORMALS, SmallCache, changed_at, fill_cache
from PIL import Image

import pipeline.cache.identity
from pipeline.cache.cache import open_cache
from pipeline.cache.layout import layout
from pipeline.cache.verify import Verdict, verify_cache
from pipeline.data.datasets import load
from pipeline.errors import UserError
from pipeline.precompute import PrecomputeReport

COUNT = NORMALS["mono"]


@pytest.fixture
def grown(small_cache: SmallCache, tmp_path: Path) -> SmallCache:
    """A copy of the small cache and of its images, to change."""
    store, root = tmp_path / "cache.zarr", tmp_path / "images"
    copytree(small_cache.store, store)
    copytree(small_cache.root, root)
    return SmallCache(str(store), root, small_cache.dataset, small_cache.settings)


def run(cache: SmallCache, update: bool = False) -> PrecomputeReport:
    return fill_cache(load(cache.dataset, str(cache.root)), cache.store, cache.settings, update=update)


def arrays(cache: SmallCache) -> dict[str, np.ndarray]:
    mono = open_cache(cache.store)["mono"]
    return {name: mono.read(name) for name in layout(0, cache.settings)}


def normals(cache: SmallCache) -> list[Path]:
    return sorted((cache.root / "mono" / "train" / "good").iterdir())


def test_new_images_are_appended_and_nothing_else_is_computed_or_moves(
    grown: SmallCache, capfd: pytest.CaptureFixture[str]
) -> None:
    before = arrays(grown)
    first = normals(grown)[0]
    # Sorted before all others, so that a cache that followed the sorted order would move every row.
    copy(first, first.with_name("0000-new.png"))

    assert run(grown).computed == 1
    assert "mono: 1 new images: mono/train/good/0000-new.png\n" in capfd.readouterr().err

    after = arrays(grown)
    assert len(after["paths"]) == COUNT + 1
    assert after["paths"][-1] == "mono/train/good/0000-new.png"
    for name, values in before.items():
        np.testing.assert_array_equal(after[name][:COUNT], values, err_msg=name)
    source = int(np.flatnonzero(before["paths"] == f"mono/train/good/{first.name}")[0])
    for name in ("images", "saliency", "clusters", "sha256"):
        np.testing.assert_array_equal(after[name][-1], before[name][source], err_msg=name)
    assert (after["pairs"][-1] != before["pairs"][source]).any()
    assert run(grown).computed == 0
    assert verify_cache(grown.store, ()).problems == ()


def test_rows_appended_beyond_the_last_block_make_new_blocks(grown: SmallCache) -> None:
    first = normals(grown)[0]
    for i in range(70):
        copy(first, first.with_name(f"z{i:03}.png"))
    assert run(grown).computed == 70
    assert arrays(grown)["valid"].sum() == COUNT + 70
    assert verify_cache(grown.store, ()).problems == ()


def test_a_vanished_image_is_named_and_dropped_only_when_asked(grown: SmallCache) -> None:
    before = arrays(grown)
    victim = normals(grown)[3]
    row = int(np.flatnonzero(before["paths"] == f"mono/train/good/{victim.name}")[0])
    victim.rename(grown.root / "elsewhere.png")

    with pytest.raises(UserError, match=f"1 cached images have vanished.*{victim.name}.*--update"):
        run(grown)
    assert arrays(grown)["valid"].all()

    assert run(grown, update=True).computed == 0
    after = arrays(grown)
    assert (after["paths"][row], after["sha256"][row], after["valid"][row]) == ("", "", 0)
    others = np.arange(COUNT) != row
    for name, values in before.items():
        np.testing.assert_array_equal(after[name][others], values[others], err_msg=name)
    verdict = verify_cache(grown.store, ())
    assert verdict.problems == () and verdict.skipped == ()

    (grown.root / "elsewhere.png").rename(victim)
    assert run(grown).computed == 1
    np.testing.assert_array_equal(arrays(grown)["pairs"][-1], before["pairs"][row])


def test_a_changed_image_is_computed_again_only_when_asked(
    grown: SmallCache, capfd: pytest.CaptureFixture[str]
) -> None:
    run(grown)  # the images were copied: from now on the cache knows where they lie
    before = arrays(grown)
    victim = normals(grown)[5]
    row = int(np.flatnonzero(before["paths"] == f"mono/train/good/{victim.name}")[0])
    Image.open(victim).rotate(180).save(victim)
    changed = f"mono/train/good/{victim.name}"
    when = changed_at(grown.store)
    with pytest.raises(UserError, match=f"mono: 1 images have changed since they were computed: {changed}; .*--update"):
        run(grown)
    assert changed_at(grown.store) == when
    assert verify_cache(grown.store).problems == (f"{changed}: the source image changed since it was computed",)

    assert run(grown, update=True).computed == 1
    assert f"mono: 1 images have changed and are computed again: {changed}\n" in capfd.readouterr().err

    after = arrays(grown)
    others = np.arange(COUNT) != row
    for name, values in before.items():
        np.testing.assert_array_equal(after[name][others], values[others], err_msg=name)
    assert after["sha256"][row] != before["sha256"][row]
    assert (after["images"][row] != before["images"][row]).any()
    assert verify_cache(grown.store, ()).problems == ()


def test_files_of_another_time_are_read_once_and_are_no_changed_ones(
    grown: SmallCache, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[str] = []

    def read_file(root: str, path: str) -> bytes:
        read.append(path)
        return (Path(root) / path).read_bytes()

    run(grown)
    monkeypatch.setattr(pipeline.cache.identity, "read_file", read_file)
    victim = normals(grown)[5]
    os.utime(victim)
    for again in (0, 1):
        assert run(grown).computed == 0
        assert read == [f"mono/train/good/{victim.name}"], again


def test_a_cache_of_an_earlier_version_says_that_it_cannot_tell_until_all_files_are_read(
    grown: SmallCache, capfd: pytest.CaptureFixture[str]
) -> None:
    run(grown)
    for name in ("mono", "poly"):
        del open_cache(grown.store, "r+")[name].group["stamps"]
    Image.open(normals(grown)[5]).rotate(180).save(normals(grown)[5])
    capfd.readouterr()
    assert run(grown).computed == 0
    assert "mono: this cache of an earlier version does not tell" in capfd.readouterr().err
    assert run(grown, update=True).computed == 1 and run(grown).computed == 0
    assert "earlier version" not in capfd.readouterr().err


def test_many_changes_are_named_in_part_and_counted(grown: SmallCache, capfd: pytest.CaptureFixture[str]) -> None:
    files = normals(grown)
    for file in files[:12]:
        file.unlink()
    with pytest.raises(UserError) as caught:
        run(grown)
    named = ", ".join(f"mono/train/good/{file.name}" for file in files[:10])
    assert f"mono: 12 cached images have vanished from {grown.root}: {named} and 2 more; restore" in str(caught.value)
    assert run(grown, update=True).computed == 0
    told = capfd.readouterr().err
    assert f"mono: 12 images have vanished and are dropped: {named} and 2 more\n" in told and "changed" not in told


def test_an_image_that_was_skipped_is_tried_again_and_is_no_changed_one(
    grown: SmallCache, capfd: pytest.CaptureFixture[str]
) -> None:
    victim = grown.root / "poly/train/good/zzz.png"
    victim.write_text("no image")
    dataset = load(grown.dataset, str(grown.root))
    assert len(fill_cache(dataset, grown.store, grown.settings, bad_images="skip").bad) == 1
    copy(normals(grown)[0], victim)
    capfd.readouterr()
    assert run(grown, update=True).computed == 1
    assert "changed" not in capfd.readouterr().err
    assert verify_cache(grown.store) == Verdict(COUNT + 6, (), ())
