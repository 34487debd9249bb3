import dataclasses
import hashlib
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from operator import mul
from pathlib import Path
from threading import Thread
from typing import Any

import dask
import numpy as np
import pytest
import torch
from conftest import (
    NORMALS,
    REPO,
    SmallCache,
    assert_same_arrays,
    changed_at,
    command_line,
    fill_cache,
    place,
    read_arrays,
)

from pipeline.backbones.inference import for_inference
from pipeline.backbones.load import load_backbone
from pipeline.cache.cache import open_cache
from pipeline.clusters import cluster_maps
from pipeline.data.datasets import load
from pipeline.data.images import Decoding, decode_rgb
from pipeline.errors import RunError, UserError
from pipeline.pairs import draw_pairs, pair_key
from pipeline.precompute import PrecomputeReport
from pipeline.saliency import layercam, scale_maps
from pipeline.settings import PrecomputeSettings
from pipeline.workers.execution import Execution
from pipeline.workers.schedule import run_tasks
from pipeline.workers.task import Job, compute_shard

TINY = PrecomputeSettings(image_size=64, pairs=2, stages=("blocks.4", "blocks.6"))

Files = dict[str, tuple[list[Path], list[Path]]]


def run(
    store: str | Path, root: Path, settings: PrecomputeSettings = TINY, categories: tuple[str, ...] = (), **options: Any
) -> PrecomputeReport:
    return fill_cache(load("folder", str(root), categories), str(store), settings, device="cpu", **options)


def undo(store: str, category: str, block: int) -> None:
    """Make a block as a kill leaves it: not done, its arrays in part written."""
    group = open_cache(store, "r+")[category]
    group.array("done")[block] = 0
    for name in ("images", "pairs", "relaxed"):
        shutil.rmtree(Path(store, category, name, "c", str(block)))
    rows = slice(block * 64, None)
    group.array("saliency")[rows] = 77
    group.array("sha256")[rows] = "half"


def chunk_times(store: str | Path) -> dict[str, int]:
    """When each object that holds values was written."""
    return {name: when for name, when in changed_at(store).items() if "/c/" in name or name.endswith("/c")}


# --- what a cache holds -------------------------------------------------------------------------------------------


def test_a_cache_holds_what_the_functions_give_for_its_files(small_cache: SmallCache) -> None:
    settings, arrays = small_cache.settings, read_arrays(small_cache.store)
    backbone = for_inference(load_backbone(settings.backbone))
    for category, row in (("mono", 0), ("mono", 63), ("mono", 64), ("mono", 66), ("poly", 4)):
        found: dict[str, Any] = {
            name: arrays[f"{category}/{name}"][row]
            for name in (
                "paths",
                "sha256",
                "valid",
                "images",
                "target_class",
                "saliency",
                "clusters",
                "centroids",
                "pairs",
                "relaxed",
            )
        }
        assert found["paths"] == f"{category}/train/good/{row:03}.png"
        data = (small_cache.root / found["paths"]).read_bytes()
        assert found["sha256"] == hashlib.sha256(data).hexdigest() and found["valid"] == 1
        image = decode_rgb(data, Decoding(64, "stretch", None), "")
        np.testing.assert_array_equal(found["images"], image)
        x = backbone.normalise(torch.from_numpy(image[None]).permute(0, 3, 1, 2))
        raw, classes = layercam(backbone, x, settings.stages)
        assert found["target_class"] == classes.item()
        saliency = scale_maps(raw, 16)[0]
        np.testing.assert_array_equal(found["saliency"], saliency.numpy())
        labels, centroids = cluster_maps(saliency, settings.clusters)
        np.testing.assert_array_equal(found["clusters"], labels.numpy())
        np.testing.assert_array_equal(found["centroids"], centroids.numpy())
        keys = np.array([pair_key(0, found["paths"], stage) for stage in settings.stages], np.uint64)
        pairs, relaxed = draw_pairs(
            labels, keys, pairs=4, image_size=64, area=settings.patch_area, aspect=settings.patch_aspect
        )
        np.testing.assert_array_equal(found["pairs"], pairs.numpy())
        np.testing.assert_array_equal(found["relaxed"], relaxed.numpy())


def test_the_report_counts_and_times(image_root: Path, tmp_path: Path) -> None:
    report = run(tmp_path / "c.zarr", image_root, categories=("poly",))
    assert (report.images, report.computed, report.bad) == (5, 5, ())
    assert {"decode", "network", "clusters and pairs", "write"} <= report.seconds.keys()
    assert all(seconds > 0 for seconds in report.seconds.values())
    again = run(tmp_path / "c.zarr", image_root, categories=("poly",))
    assert (again.images, again.computed, again.seconds) == (5, 0, {})


def test_the_seed_changes_the_pairs_alone(image_root: Path, tmp_path: Path) -> None:
    for seed in (0, 1):
        run(tmp_path / f"{seed}.zarr", image_root, dataclasses.replace(TINY, seed=seed), ("poly",))
    zero, one = read_arrays(tmp_path / "0.zarr"), read_arrays(tmp_path / "1.zarr")
    assert {name for name in zero if not np.array_equal(zero[name], one[name])} <= {"poly/pairs", "poly/relaxed"}
    assert not np.array_equal(zero["poly/pairs"], one["poly/pairs"])


def test_a_category_is_the_same_whatever_is_beside_it(small_cache: SmallCache, tmp_path: Path) -> None:
    run(tmp_path / "c.zarr", small_cache.root, small_cache.settings, ("poly",))
    alone, together = read_arrays(tmp_path / "c.zarr"), read_arrays(small_cache.store)
    assert all(np.array_equal(values, together[name]) for name, values in alone.items())


# --- going on -----------------------------------------------------------------------------------------------------


def test_a_finished_cache_is_left_alone(copied_cache: SmallCache) -> None:
    before = chunk_times(copied_cache.store)
    cache_id = open_cache(copied_cache.store).id
    report = run(copied_cache.store, copied_cache.root, copied_cache.settings)
    assert report.images == sum(NORMALS.values()) and report.computed == 0
    assert chunk_times(copied_cache.store) == before
    cache = open_cache(copied_cache.store)
    assert cache.complete and cache.id == cache_id


def test_a_block_that_is_done_is_left_alone(copied_cache: SmallCache) -> None:
    # As where a scheduler hands out a task twice, or two runs work on one cache.
    cache_id = open_cache(copied_cache.store).id
    job = Job(copied_cache.store, cache_id, str(copied_cache.root), "imagenet", Execution(device="cpu"))
    before = chunk_times(copied_cache.store)
    report = compute_shard(job, "poly", 0)
    assert (report.category, report.shard, report.images, report.bad) == ("poly", 0, 5, ())
    assert chunk_times(copied_cache.store) == before


def test_a_missing_block_alone_is_computed_again(copied_cache: SmallCache, small_cache: SmallCache) -> None:
    undo(copied_cache.store, "mono", 1)
    open_cache(copied_cache.store, "r+").update_attributes(complete=False)
    before = chunk_times(copied_cache.store)
    report = run(copied_cache.store, copied_cache.root, copied_cache.settings)
    assert report.computed == 3
    changed = {file for file, when in chunk_times(copied_cache.store).items() if before.get(file) != when}
    assert changed and all(Path(file).parts[3] == "1" for file in changed)
    assert_same_arrays(copied_cache.store, small_cache.store)
    assert open_cache(copied_cache.store).complete is True


@pytest.mark.slow
def test_a_killed_run_goes_on_to_the_same_cache(elpv: Files, tmp_path: Path) -> None:
    place(tmp_path / "cells", "mono/train/good", elpv["mono"][0][:140])
    arguments = ("precompute", "--dataset", "folder", "--root", tmp_path / "cells", "--image-size", 64, "--pairs", 2)
    arguments += ("--device", "cpu", "--workers", 1, "--store")

    def one_is_done(store: Path) -> bool:
        done = store / "mono" / "done" / "c"
        return done.is_dir() and any(file.name.isdigit() for file in done.iterdir())

    killed, whole = tmp_path / "killed.zarr", tmp_path / "whole.zarr"
    process = subprocess.Popen(command_line(*arguments, killed), stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 120
    while not one_is_done(killed) and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    done = open_cache(str(killed))["mono"].done
    assert 0 < done.sum() < 3
    assert open_cache(str(killed)).complete is False

    again = subprocess.run(command_line(*arguments, killed), capture_output=True, text=True, check=True)
    images = np.array([64, 64, 12])
    assert f"140 images, {images[~done].sum()} computed now" in again.stdout
    subprocess.run(command_line(*arguments, whole), capture_output=True, check=True)
    assert_same_arrays(killed, whole)
    assert open_cache(str(killed)).complete is True


def test_a_finished_cache_is_recognised_without_torch(copied_cache: SmallCache) -> None:
    settings = copied_cache.settings
    code = f"""
import sys
from pipeline.data.datasets import load
from pipeline.precompute import precompute
from pipeline.settings import PrecomputeSettings
settings = PrecomputeSettings(image_size={settings.image_size}, pairs={settings.pairs})
report = precompute([(load("folder", {str(copied_cache.root)!r}), {copied_cache.store!r})], settings)
print(report.caches[0].computed, sorted({{"torch", "timm", "dask", "torchvision"}} & sys.modules.keys()))
"""
    result = subprocess.run([sys.executable, "-c", code], cwd=REPO, capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "0 []"


def test_other_images_are_refused(copied_root: Path, copied_cache: SmallCache) -> None:
    (copied_root / "poly/train/good/001.png").rename(copied_root / "poly/train/good/new.png")
    with pytest.raises(UserError, match=r"poly: 1 .* vanished .*poly/train/good/001\.png.*--update"):
        run(copied_cache.store, copied_root, copied_cache.settings)
    assert open_cache(copied_cache.store).complete is True
    assert run(copied_cache.store, copied_root, copied_cache.settings, ("mono",)).computed == 0


def test_overwrite_of_one_category_computes_that_one(copied_cache: SmallCache, small_cache: SmallCache) -> None:
    before = chunk_times(copied_cache.store)
    report = run(copied_cache.store, copied_cache.root, copied_cache.settings, ("poly",), overwrite=True)
    assert (report.images, report.computed) == (5, 5)
    after = chunk_times(copied_cache.store)
    changed = {Path(file).parts[0] for file in after if before.get(file) != after[file]}
    assert changed == {"poly"}
    assert_same_arrays(copied_cache.store, small_cache.store)


def test_overwrite_takes_other_settings(elpv: Files, tmp_path: Path) -> None:
    for category in NORMALS:
        place(tmp_path / "cells", f"{category}/train/good", elpv[category][0][:3])
    run(tmp_path / "c.zarr", tmp_path / "cells", dataclasses.replace(TINY, clusters=3, seed=5))
    run(tmp_path / "c.zarr", tmp_path / "cells", overwrite=True)
    run(tmp_path / "new.zarr", tmp_path / "cells")
    assert_same_arrays(tmp_path / "c.zarr", tmp_path / "new.zarr")


# --- images that cannot be read ---------------------------------------------------------------------------------------


@pytest.fixture
def damaged_root(elpv: Files, tmp_path: Path) -> Path:
    """Four images of which the second is cut off and the third no image."""
    files = place(tmp_path / "cells", "poly/train/good", elpv["poly"][0][:4])
    files[1].write_bytes(files[1].read_bytes()[:2000])
    files[2].write_text("no image")
    return tmp_path / "cells"


def test_an_unreadable_image_stops_the_run(damaged_root: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError) as caught:
        run(tmp_path / "c.zarr", damaged_root)
    line = str(caught.value)
    assert "poly/train/good/001.png" in line and "--bad-images skip" in line and "\n" not in line
    poly = open_cache(str(tmp_path / "c.zarr"))["poly"]
    assert not poly.done.any() and not poly.read("valid").any()
    assert open_cache(str(tmp_path / "c.zarr")).complete is False


def test_a_mended_image_lets_the_run_go_on(damaged_root: Path, elpv: Files, tmp_path: Path) -> None:
    with pytest.raises(UserError):
        run(tmp_path / "c.zarr", damaged_root)
    place(damaged_root, "poly/train/good", elpv["poly"][0][:4])
    assert run(tmp_path / "c.zarr", damaged_root).computed == 4
    run(tmp_path / "whole.zarr", damaged_root)
    assert_same_arrays(tmp_path / "c.zarr", tmp_path / "whole.zarr")


def test_unreadable_images_can_be_skipped(damaged_root: Path, elpv: Files, tmp_path: Path) -> None:
    report = run(tmp_path / "c.zarr", damaged_root, bad_images="skip")
    assert [name in line for name, line in zip(("001.png", "002.png"), report.bad, strict=True)] == [True, True]
    arrays = read_arrays(tmp_path / "c.zarr")
    assert arrays["poly/valid"].tolist() == [1, 0, 0, 1] and arrays["poly/done"].tolist() == [1]
    assert open_cache(str(tmp_path / "c.zarr")).complete is True
    for name in ("images", "saliency", "pairs", "centroids"):
        values = arrays[f"poly/{name}"]
        assert not values[1:3].any() and values[0].any() and values[3].any()
    assert [len(digest) for digest in arrays["poly/sha256"]] == [64, 0, 0, 64]
    place(damaged_root, "poly/train/good", elpv["poly"][0][:4])
    run(tmp_path / "whole.zarr", damaged_root)
    whole = read_arrays(tmp_path / "whole.zarr")
    for name, values in arrays.items():
        if name != "poly/done":
            np.testing.assert_array_equal(values[[0, 3]], whole[name][[0, 3]], err_msg=name)


def test_what_is_skipped_is_never_counted_as_computed(damaged_root: Path, elpv: Files, tmp_path: Path) -> None:
    def counts(**options: Any) -> tuple[int, int, int]:
        report = run(tmp_path / "c.zarr", damaged_root, bad_images="skip", **options)
        return report.images, report.computed, len(report.bad)

    assert counts() == (4, 2, 2)
    assert counts() == (4, 0, 0)
    assert counts(update=True) == (4, 0, 2)
    place(damaged_root, "poly/train/good", elpv["poly"][0][:2])
    assert counts(update=True) == (4, 1, 1)
    place(damaged_root, "poly/train/good/more", elpv["poly"][0][4:5])
    assert counts() == (5, 1, 1)
    assert counts(overwrite=True) == (5, 4, 1)


def test_a_block_without_a_readable_image_can_be_skipped(damaged_root: Path, tmp_path: Path) -> None:
    for name in ("000.png", "003.png"):
        (damaged_root / "poly/train/good" / name).unlink()
    assert len(run(tmp_path / "c.zarr", damaged_root, bad_images="skip").bad) == 2
    arrays = read_arrays(tmp_path / "c.zarr")
    assert arrays["poly/done"].tolist() == [1] and not arrays["poly/valid"].any()


def test_blocks_done_before_a_bad_one_stay_done(elpv: Files, tmp_path: Path) -> None:
    root, store = tmp_path / "cells", tmp_path / "c.zarr"
    place(root, "mono/train/good", elpv["mono"][0][:64])
    run(store, root)
    place(root, "mono/train/good", elpv["mono"][0][:66])[65].write_bytes(b"")
    with pytest.raises(UserError, match=r"065\.png: cannot be read as an image \(empty file\)"):
        run(store, root, workers=1)
    assert open_cache(str(store))["mono"].done.tolist() == [True, False]


# --- schedulers ---------------------------------------------------------------------------------------------------


@pytest.fixture
def address() -> Iterator[str]:
    """Where a Dask scheduler with one worker of one thread answers."""
    from distributed import LocalCluster

    options: dict[str, Any] = {"processes": False, "protocol": "tcp", "dashboard_address": None}
    with LocalCluster(n_workers=1, threads_per_worker=1, **options) as cluster:
        yield cluster.scheduler_address


def test_the_address_of_a_running_scheduler_works(small_cache: SmallCache, address: str, tmp_path: Path) -> None:
    assert address.startswith("tcp://")
    run(tmp_path / "c.zarr", small_cache.root, small_cache.settings, ("poly",), scheduler=address)
    arrays, expected = read_arrays(tmp_path / "c.zarr"), read_arrays(small_cache.store)
    assert all(np.array_equal(values, expected[name]) for name, values in arrays.items())


def test_every_task_runs_once_on_every_scheduler(address: str) -> None:
    # Fewer tasks than a scheduler is given at once, as many, and more.
    for count in (1, 4, 5, 6, 23):
        for scheduler in ("threads", address):
            results: list[int] = []
            run_tasks(mul, [(i, 3) for i in range(count)], Execution(scheduler, 2), results.append)
            assert sorted(results) == [3 * i for i in range(count)], scheduler


@pytest.mark.slow
def test_every_task_runs_once_in_processes() -> None:
    results: list[int] = []
    run_tasks(mul, [(i, 3) for i in range(23)], Execution("processes", 2), results.append)
    assert sorted(results) == [3 * i for i in range(23)]


@pytest.mark.slow
def test_a_killed_worker_is_told_in_one_line() -> None:
    with pytest.raises(RunError, match="a worker process was killed") as caught:
        run_tasks(signal.raise_signal, [(signal.SIGKILL,)], Execution("processes", 1), print)
    assert "\n" not in str(caught.value)


@pytest.mark.slow
def test_a_lost_scheduler_is_told_in_one_line() -> None:
    from distributed import LocalCluster

    options: dict[str, Any] = {"protocol": "tcp", "dashboard_address": None}
    with LocalCluster(n_workers=1, threads_per_worker=1, **options) as cluster:

        def close_after_the_first(_: None) -> None:
            if not closing.is_alive() and cluster.status.name == "running":
                closing.start()

        closing = Thread(target=cluster.close)
        with pytest.raises(RunError, match=r"stopped .*: run the same command to continue") as caught:
            run_tasks(time.sleep, [(0.2,)] * 200, Execution(cluster.scheduler_address), close_after_the_first)
        closing.join()
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("scheduler", "told"),
    [
        ("tcp://", "no Dask scheduler answers at tcp://"),
        ("ray", "unknown scheduler 'ray': give threads, processes, cluster, cuda or tcp://HOST:PORT"),
    ],
)
def test_schedulers_that_are_not_there(image_root: Path, tmp_path: Path, scheduler: str, told: str) -> None:
    with pytest.raises(UserError) as caught:
        run(tmp_path / "c.zarr", image_root, scheduler=scheduler)
    assert told in str(caught.value) and "\n" not in str(caught.value)
    # Dask work of the same process does not wait for a scheduler that is not there.
    assert dask.config.get("scheduler", None) is None and dask.compute(dask.delayed(mul)(2, 3)) == (6,)


@pytest.mark.slow
@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without CUDA")
@pytest.mark.parametrize("scheduler", ["threads", "processes", "cluster"])
def test_a_mistake_found_by_a_worker_is_told_in_one_line(image_root: Path, tmp_path: Path, scheduler: str) -> None:
    dataset = load("folder", str(image_root), ("poly",))
    with pytest.raises(UserError, match="--device cuda: torch finds no CUDA device") as caught:
        fill_cache(dataset, str(tmp_path / "c.zarr"), TINY, device="cuda", scheduler=scheduler, workers=1)
    assert "\n" not in str(caught.value)


# --- CUDA ---------------------------------------------------------------------------------------------------------


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_cuda_fills_a_cache_like_that_of_the_cpu(small_cache: SmallCache, tmp_path: Path) -> None:
    fill_cache(load("folder", str(small_cache.root)), str(tmp_path / "c.zarr"), small_cache.settings, device="cuda")
    found, expected = read_arrays(tmp_path / "c.zarr"), read_arrays(small_cache.store)
    for name in ("images", "paths", "sha256", "valid"):
        np.testing.assert_array_equal(found[f"mono/{name}"], expected[f"mono/{name}"])
    same_class = found["mono/target_class"] == expected["mono/target_class"]
    assert same_class.mean() > 0.9
    difference = found["mono/saliency"].astype(int) - expected["mono/saliency"]
    assert abs(difference[same_class]).mean() < 2
