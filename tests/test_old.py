"""What commit 091a564 wrote still opens: a cache that was stopped half-way, and a run."""

import zipfile
from pathlib import Path

import numpy as np
import pytest
from conftest import NORMALS, REPO, fill_cache, invoke, read_arrays

from pipeline.cache.cache import open_cache
from pipeline.datasets import load
from pipeline.settings import PrecomputeSettings
from pipeline.verify import verify_cache

OLD = REPO / "tests/old"


@pytest.fixture
def old_cache(tmp_path: Path) -> str:
    """The cache of `image_root` at 32 pixels whose second chunk of mono is pending."""
    with zipfile.ZipFile(OLD / "cache-091a564.zip") as archive:
        archive.extractall(tmp_path)
    return str(tmp_path / "folder.zarr")


def test_an_old_cache_opens_and_says_what_is_pending(old_cache: str) -> None:
    cache = open_cache(old_cache)
    assert (cache.dataset, cache.image_root, cache.complete) == ("folder", "/data/cells", False)
    assert cache.names() == list(NORMALS)
    assert list(cache.pending()) == [("mono", 1, NORMALS["mono"] - 64)]
    assert cache["poly"].usable.tolist() == list(range(NORMALS["poly"]))
    assert cache["mono"].settings == PrecomputeSettings(
        image_size=32, pairs=4, stages=("blocks.1", "blocks.2", "blocks.4", "blocks.6")
    )


def test_an_old_cache_is_finished_verified_and_trained_on(old_cache: str, image_root: Path, tmp_path: Path) -> None:
    before = read_arrays(old_cache)
    settings = PrecomputeSettings(image_size=32, pairs=4)
    report = fill_cache(load("folder", str(image_root)), old_cache, settings, device="cpu")
    assert report.computed == NORMALS["mono"] - 64
    after = read_arrays(old_cache)
    for name, values in before.items():
        rows = 1 if name == "mono/done" else 64 if name.startswith("mono") else None
        np.testing.assert_array_equal(after[name][:rows], values[:rows], err_msg=name)
    assert verify_cache(old_cache).problems == ()
    options = ("--category", "mono", "--steps", 2, "--batch-size", 2, "--device", "cpu")
    trained = invoke("train", "--store", old_cache, "--out", tmp_path / "run", *options)
    assert trained.exit_code == 0, trained.output
    predicted = invoke("predict", tmp_path / "run", image_root / "mono/test", "--out", tmp_path / "out")
    assert predicted.exit_code == 0 and "of 7 images anomalous" in predicted.stdout
