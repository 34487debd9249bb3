"""Write units of more than one block: who writes which object, going on, growing."""

import shutil
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import assert_same_arrays, changed_at, command_line, fill_cache, place, read_arrays

from pipeline.backbones.spec import weights_digest
from pipeline.cache.cache import open_cache
from pipeline.cache.create import prepare_cache
from pipeline.cache.layout import CHUNK, LARGE, choose_shard, layout
from pipeline.cache.verify import verify_cache
from pipeline.data.datasets import load
from pipeline.settings import PrecomputeSettings
from pipeline.workers.execution import Execution
from pipeline.workers.task import Job, compute_shard

SETTINGS = PrecomputeSettings(image_size=64, pairs=2, stages=("blocks.4", "blocks.6"))
# Two units of two blocks and a part of a third.
COUNT = 4 * CHUNK + 9


@pytest.fixture(scope="module")
def root(elpv: dict[str, tuple[list[Path], list[Path]]], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A category of COUNT images, read only."""
    folder = tmp_path_factory.mktemp("units") / "cells"
    place(folder, "mono/train/good", elpv["mono"][0][:COUNT])
    return folder


@pytest.fixture(scope="module")
def whole(root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The finished cache of `root`, a block a unit."""
    store = tmp_path_factory.mktemp("units") / "whole.zarr"
    fill_cache(load("folder", str(root)), str(store), SETTINGS, device="cpu")
    return store


def sharded(store: Path, root: Path, chunks: int = 2) -> str:
    """An empty cache of `root` with so many chunks per shard; returns its id."""
    weights = weights_digest(SETTINGS.backbone, SETTINGS.weights)
    return prepare_cache(str(store), load("folder", str(root)), SETTINGS, weights, chunks_per_shard=chunks).id


def objects(store: Path) -> dict[str, int]:
    """When each object that holds values was written, by its path in the category."""
    return {name: when for name, when in changed_at(store / "mono").items() if not name.endswith("zarr.json")}


def written(store: Path, before: dict[str, int]) -> set[str]:
    return {name for name, when in objects(store).items() if before.get(name) != when}


def test_large_categories_are_written_in_units_of_several_blocks() -> None:
    assert [choose_shard(images) for images in (1, 64, LARGE - 1)] == [1, 1, 1]
    assert choose_shard(LARGE) == choose_shard(10**7) > 1


@pytest.mark.parametrize("unit", [1, 2, 3, 8])
def test_two_tasks_never_share_an_object(root: Path, tmp_path: Path, unit: int) -> None:
    store = tmp_path / "c.zarr"
    sharded(store, root, unit)
    category = open_cache(str(store), "r+")["mono"]
    assert category.chunks_per_shard == unit
    names = {*layout(COUNT, SETTINGS), "done"} - {"paths"}
    by_task = []
    for number, first in enumerate(range(0, COUNT, unit * CHUNK)):
        count = min(unit * CHUNK, COUNT - first)
        rows: dict[str, Any] = {
            name: np.full(shape, "x", object) if dtype == "str" else np.ones(shape, dtype)
            for name, (shape, dtype, _) in layout(count, SETTINGS).items()
            if name != "paths"
        }
        before = objects(store)
        category.write_shard(number, rows)
        by_task.append(written(store, before))
        assert {name.partition("/")[0] for name in by_task[-1]} == names
        assert category.pending_rows(number).done
    # Each writes one object of every array, and none that another writes.
    assert {len(task) for task in by_task} == {len(names)}
    assert len(set.union(*by_task)) == sum(map(len, by_task))
    assert category.done.all() and len(category.done) == 5


@pytest.mark.slow
def test_tasks_of_two_blocks_compute_the_same_and_go_on(root: Path, whole: Path, tmp_path: Path) -> None:
    store = tmp_path / "c.zarr"
    job = Job(str(store), sharded(store, root), str(root), "imagenet", Execution(device="cpu"))
    before = objects(store)
    report = compute_shard(job, "mono", 1)
    first = written(store, before)
    assert (report.images, report.bad) == (2 * CHUNK, ())
    assert open_cache(str(store))["mono"].done.tolist() == [False, False, True, True, False]
    before = objects(store)
    assert fill_cache(load("folder", str(root)), str(store), SETTINGS, device="cpu").computed == COUNT - 2 * CHUNK
    assert first.isdisjoint(written(store, before))
    assert_same_arrays(store, whole)
    assert verify_cache(str(store)).problems == ()


@pytest.mark.slow
def test_a_task_killed_with_half_of_its_unit_written_is_done_again(root: Path, whole: Path, tmp_path: Path) -> None:
    store = tmp_path / "c.zarr"
    sharded(store, root)
    command = ("precompute", "--dataset", "folder", "--root", root, "--image-size", 64, "--pairs", 2, "--device", "cpu")
    command += ("--stages", ",".join(SETTINGS.stages), "--workers", 1, "--store", store)
    process = subprocess.Popen(command_line(*command), stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 120
    # Arrays are written by name, and this one before the last.
    while not any(name.startswith("saliency/") for name in objects(store)) and time.monotonic() < deadline:
        time.sleep(0.001)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    done = open_cache(str(store))["mono"].done
    assert not done.all()
    result = subprocess.run(command_line(*command), capture_output=True, text=True, check=True)
    left = sum(min(CHUNK, COUNT - block * CHUNK) for block in np.flatnonzero(~done))
    assert f"{COUNT} images, {left} computed now" in result.stdout
    assert_same_arrays(store, whole)


@pytest.mark.slow
def test_a_sharded_category_grows_within_its_units(root: Path, whole: Path, tmp_path: Path) -> None:
    images, store = Path(shutil.copytree(root, tmp_path / "cells")), tmp_path / "c.zarr"
    sharded(store, images)

    def run() -> int:
        return fill_cache(load("folder", str(images)), str(store), SETTINGS, device="cpu").computed

    assert run() == COUNT
    before = objects(store)
    good = images / "mono/train/good"
    for i in range(3):
        shutil.copy(good / f"{i:03}.png", good / f"new-{i}.png")
    assert run() == 3
    changed = {name for name in written(store, before) if not name.startswith(("paths/", "done/"))}
    assert {name.split("/")[2] for name in changed} == {"2"}
    category = open_cache(str(store))["mono"]
    assert category.chunks_per_shard == 2 and category.array("pairs").shards == (2 * CHUNK, 2, 2, 6)
    arrays, old = read_arrays(store), read_arrays(whole)
    for name in layout(0, SETTINGS):
        np.testing.assert_array_equal(arrays[f"mono/{name}"][:COUNT], old[f"mono/{name}"], err_msg=name)
    np.testing.assert_array_equal(arrays["mono/saliency"][COUNT:], old["mono/saliency"][:3])
    assert verify_cache(str(store)).problems == ()


def test_a_category_keeps_the_layout_that_it_was_created_with(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    images = Path(shutil.copytree(root / "mono/train/good", tmp_path / "cells/mono/train/good")).parents[2]
    extra = sorted((images / "mono/train/good").iterdir())[5:]
    place(images, "wide/train/good", extra[:12])
    for file in extra:
        file.rename(tmp_path / file.name)
    monkeypatch.setattr("pipeline.cache.layout.LARGE", 8)
    store = str(tmp_path / "c.zarr")
    tiny = PrecomputeSettings(image_size=32, pairs=1, stages=("blocks.6",))
    fill_cache(load("folder", str(images)), store, tiny, device="cpu")
    units = {name: open_cache(store)[name].chunks_per_shard for name in ("mono", "wide")}
    assert units == {"mono": 1, "wide": choose_shard(8)} and units["wide"] > 1
    for file in extra[:7]:
        shutil.copy(tmp_path / file.name, file)
    assert fill_cache(load("folder", str(images)), store, tiny, device="cpu").computed == 7
    assert open_cache(store)["mono"].chunks_per_shard == 1
    assert verify_cache(store).problems == ()
