"""A cache belongs to the images it was made of: names are no identity, and a moved data set is the same one."""

import shutil
from pathlib import Path

import numpy as np
import pytest
from click.testing import Result
from conftest import changed_at, invoke
from PIL import Image

from pipeline.cache.cache import open_cache
from pipeline.cache.places import cache_of, name_of, runs_of

SMALL = ("--image-size", "32", "--stages", "blocks.6", "--pairs", "2", "--weights", "none", "--device", "cpu")


def part(root: Path, seed: int, count: int = 3) -> Path:
    random = np.random.default_rng(seed)
    (root / "train/good").mkdir(parents=True)
    for i in range(count):
        Image.fromarray(random.integers(0, 256, (40, 40), np.uint8)).save(root / f"train/good/{i}.png")
    return root


def precompute(root: Path, *options: str) -> Result:
    return invoke("precompute", "--dataset", "folder", "--root", str(root), *SMALL, *options)


def test_another_part_of_the_same_names_is_refused_before_anything_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    mine, other = part(tmp_path / "A/parts", 0), part(tmp_path / "B/parts", 1)
    assert precompute(mine).exit_code == 0
    for options in ((), ("--update",)):
        before = {path: path.stat().st_mtime_ns for path in Path("data").rglob("*")}
        refused = precompute(other, *options)
        assert refused.exit_code == 2
        assert "3 of 3 images differ, such as train/good/0.png" in refused.stderr and "--store" in refused.stderr
        assert before == {path: path.stat().st_mtime_ns for path in Path("data").rglob("*")}
    assert open_cache("data/cache/parts.zarr").image_root == str(mine)
    assert precompute(other, "--overwrite").exit_code == 0
    assert open_cache("data/cache/parts.zarr").image_root == str(other)


def test_images_of_other_names_are_other_data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    mine, other = part(tmp_path / "A/parts", 0), part(tmp_path / "B/parts", 0)
    for file in sorted((other / "train/good").iterdir()):
        file.rename(file.with_stem(f"x{file.stem}"))
    assert precompute(mine).exit_code == 0
    assert "no image of parts is the same" in precompute(other).stderr


def test_the_same_images_moved_are_taken_and_new_ones_join(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    mine = part(tmp_path / "A/parts", 0)
    assert precompute(mine).exit_code == 0
    moved = tmp_path / "B/parts"
    moved.parent.mkdir()
    shutil.move(mine, moved)
    Image.new("L", (40, 40), 9).save(moved / "train/good/new.png")
    again = precompute(moved)
    assert again.exit_code == 0 and "4 images, 1 computed now" in again.stdout
    assert f"the images of {mine} now lie in {moved}: 3 are the same" in again.stderr
    assert open_cache("data/cache/parts.zarr").image_root == str(moved)


def test_one_category_does_not_move_the_root_of_the_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for folder, numbers in (("A", (0, 1)), ("B", (0, 2))):
        for name, number in zip(("mono", "poly"), numbers, strict=True):
            part(tmp_path / folder / "parts" / name, number)
    mine, other = tmp_path / "A/parts", tmp_path / "B/parts"
    assert precompute(mine).exit_code == 0
    before = changed_at(tmp_path / "data")
    refused = precompute(other, "--category", "mono")
    assert refused.exit_code == 2 and "3 of 6 images differ, such as poly/train/good" in refused.stderr
    shutil.rmtree(other / "poly")
    assert "no image of poly is the same" in precompute(other, "--category", "mono").stderr
    assert changed_at(tmp_path / "data") == before


def test_a_refused_root_is_not_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    mine = part(tmp_path / "A/parts", 0)
    assert precompute(mine).exit_code == 0
    moved = Path(shutil.copytree(mine, tmp_path / "B/parts"))
    next((moved / "train/good").iterdir()).unlink()
    before = changed_at(tmp_path / "data")
    refused = precompute(moved)
    assert refused.exit_code == 2 and "vanished" in refused.stderr and changed_at(tmp_path / "data") == before


def test_default_places_are_named_after_the_folder_of_the_root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert cache_of("mvtec", None) == cache_of("mvtec", "data/mvtec") == "data/cache/mvtec.zarr"
    assert cache_of("folder", "somewhere/parts") == "data/cache/parts.zarr"
    assert (name_of("elpv", None), runs_of("folder", "/x/parts")) == ("elpv", Path("runs/parts"))
    # A cache of an earlier version, which was called after the data set, is still that of its root.
    mine = part(tmp_path / "parts", 0)
    assert precompute(mine, "--store", "data/cache/folder.zarr").exit_code == 0
    assert cache_of("folder", "parts") == "data/cache/folder.zarr"
    assert cache_of("folder", "others") == "data/cache/others.zarr"
    assert "data/cache/folder.zarr: 3 images, 0 computed now" in precompute(mine).stdout


def test_a_tilde_is_the_home_folder_in_every_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    home, work = tmp_path / "home", tmp_path / "work"
    work.mkdir()
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.chdir(work)
    part(home / "parts", 0, 5)
    assert precompute(Path("~/parts"), "--store", "~/p.zarr").exit_code == 0
    trained = invoke("train", "--store", "~/p.zarr", "--negatives", "none", "--out", "~/run", "--device", "cpu")
    assert trained.exit_code == 0, trained.output
    assert invoke("predict", "~/run", "~/parts/train", "--out", "~/said", "--device", "cpu").exit_code == 0
    assert invoke("inspect", "~/p.zarr", "--html", "~/look").exit_code == 0
    shown = {path.name for path in home.iterdir() if not path.name.startswith(".")}
    assert shown == {"parts", "p.zarr", "run", "said", "look"}
    assert not list(work.iterdir())
    for words in (("train", "--store", "~nobody-of-this-name/p.zarr"), ("predict", "~/run", "")):
        refused = invoke(*words)
        assert refused.exit_code == 2 and "Error: " in refused.stderr and "Traceback" not in refused.stderr
