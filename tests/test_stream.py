import tracemalloc
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
from conftest import write_cache
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from pipeline.cache.cache import open_cache
from pipeline.cache.category import CachedCategory
from pipeline.cache.layout import CHUNK, Arrays
from pipeline.settings import PrecomputeSettings
from train.negatives.stream import Batch, NormalImages, NormalStream, row_order

TINY = PrecomputeSettings(image_size=32, stages=("blocks.1", "blocks.4"), pairs=2, weights="none")
CHUNKS = 39
# The last block is not full.
IMAGES = CHUNKS * CHUNK - 7
ROWS = np.arange(IMAGES)


@pytest.fixture(scope="module")
def tiles() -> NDArray[np.uint8]:
    """39 blocks, more than two windows; the first pixel of image i says i."""
    images = np.random.default_rng(0).integers(0, 256, (IMAGES, 32, 32, 3), np.uint8)
    images[:, 0, 0] = np.stack([ROWS // 256, ROWS % 256, ROWS * 0], 1)
    return images


@pytest.fixture(scope="module")
def category(tiles: NDArray[np.uint8], tmp_path_factory: pytest.TempPathFactory) -> CachedCategory:
    """A category of `tiles`."""
    store = write_cache(tmp_path_factory.mktemp("stream") / "cache.zarr", {"tile": tiles}, TINY)
    return open_cache(store)["tile"]


def numbers(images: NDArray[np.uint8]) -> NDArray[np.int64]:
    """Which image each of (B,H,W,3) is, as its own first pixel says."""
    first = images[:, 0, 0].astype(np.int64)
    return 256 * first[:, 0] + first[:, 1]


def first_batches(stream: NormalStream, count: int, *, size: int, seed: int = 0, first: int = 0) -> list[Batch]:
    return list(islice(stream.batches(size, seed, first), count))


def assert_equal(mine: list[Batch], yours: list[Batch]) -> None:
    assert len(mine) == len(yours)
    for a, b in zip(mine, yours, strict=True):
        np.testing.assert_array_equal(a.rows, b.rows)
        np.testing.assert_array_equal(a.images, b.images)
        np.testing.assert_array_equal(a.pairs, b.pairs)


# --- the order ----------------------------------------------------------------------------------------------------


@settings(deadline=None, max_examples=30)
@given(st.sets(st.integers(0, 40 * CHUNK), min_size=1, max_size=200), st.integers(0, 2**32))
def test_each_epoch_holds_every_row_once(chosen: set[int], seed: int) -> None:
    rows = np.array(sorted(chosen))
    order = row_order(rows, seed)
    for _ in range(3):
        assert sorted(islice(order, len(rows))) == rows.tolist()


def test_the_order_depends_on_the_seed_and_differs_by_epoch() -> None:
    two_epochs = [list(islice(row_order(ROWS, seed), 2 * IMAGES)) for seed in (0, 0, 1)]
    assert two_epochs[0] == two_epochs[1]
    assert two_epochs[0] != two_epochs[2]
    assert two_epochs[0][:IMAGES] != two_epochs[0][IMAGES:]


def test_an_epoch_mixes_the_images_of_many_blocks() -> None:
    # 16 blocks of a window, drawn at random: a batch of one block alone would be a poor sample of the normals.
    batch = np.array(list(islice(row_order(ROWS, 0), 64)))
    assert len(np.unique(batch // CHUNK)) > 10


# --- batches ------------------------------------------------------------------------------------------------------


def test_an_epoch_of_batches_shows_every_image_once_with_its_own_pairs(category: CachedCategory) -> None:
    rows = np.setdiff1d(ROWS, [3, 4, CHUNK, 5 * CHUNK + 1, IMAGES - 1])
    pairs = category.read("pairs")
    batches = first_batches(NormalStream(category, rows), 9, size=len(rows) // 9)
    shown = np.concatenate([batch.rows for batch in batches])
    assert sorted(shown) == rows.tolist()
    for batch in batches:
        np.testing.assert_array_equal(numbers(batch.images), batch.rows)
        np.testing.assert_array_equal(batch.pairs, pairs[batch.rows])


def test_a_batch_joins_the_end_of_an_epoch_to_the_start_of_the_next(category: CachedCategory) -> None:
    rows = ROWS[:10]
    batches = first_batches(NormalStream(category, rows), 5, size=4)
    shown = np.concatenate([batch.rows for batch in batches])
    assert [len(batch.rows) for batch in batches] == [4] * 5
    assert sorted(shown[:10]) == sorted(shown[10:]) == rows.tolist()


def test_a_batch_may_be_larger_than_an_epoch(category: CachedCategory) -> None:
    (batch,) = first_batches(NormalStream(category, ROWS[:3]), 1, size=7)
    assert sorted(np.bincount(batch.rows)) == [2, 2, 3]
    np.testing.assert_array_equal(numbers(batch.images), batch.rows)


@pytest.mark.parametrize("first", [1, 5, 45])
def test_starting_later_is_skipping(category: CachedCategory, first: int) -> None:
    stream = NormalStream(category, ROWS)
    whole = first_batches(stream, first + 3, size=60)
    assert_equal(first_batches(NormalStream(category, ROWS), 3, size=60, first=first), whole[first:])


# --- memory -------------------------------------------------------------------------------------------------------


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The numbers of the blocks read from the cache, in their order."""
    read: list[int] = []

    def counted(category: CachedCategory, number: int, names: tuple[str, ...]) -> Arrays:
        read.append(number)
        return read_chunk(category, number, names)

    read_chunk = CachedCategory.read_chunk
    monkeypatch.setattr(CachedCategory, "read_chunk", counted)
    return read


def test_batches_do_not_depend_on_the_memory(category: CachedCategory, reads: list[int]) -> None:
    count = 2 * IMAGES // 50
    small, large = NormalStream(category, ROWS, memory=0), NormalStream(category, ROWS)
    bounded = list(islice(small.batches(50, 0), count))
    # No block is read twice within an epoch, but for the one that a batch across two epochs touches.
    assert CHUNKS < len(reads) <= 2 * CHUNKS
    reads.clear()
    assert_equal(bounded, first_batches(large, count, size=50))
    assert sorted(reads) == list(range(CHUNKS))


def test_with_little_memory_an_epoch_still_shows_every_image_once(category: CachedCategory) -> None:
    bounded = NormalStream(category, ROWS, memory=0)
    size = IMAGES // 9
    # The batches of two epochs, which end in the middle of one.
    order = islice(row_order(ROWS, 3), 2 * IMAGES)
    shown = np.concatenate([numbers(batch.images) for batch in first_batches(bounded, 18, size=size, seed=3)])
    assert sorted(shown[:IMAGES]) == ROWS.tolist()
    assert shown.tolist() == list(order)[: 18 * size]


def test_little_memory_is_all_that_is_used(category: CachedCategory) -> None:
    block = CHUNK * (32 * 32 * 3 + 2 * 2 * 6 * 2)

    def most(memory: int) -> int:
        """Bytes at the peak of two epochs."""
        tracemalloc.start()
        for _ in islice(NormalStream(category, ROWS, memory=memory).batches(50, 0), 2 * IMAGES // 50):
            pass
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return peak

    # Beside the blocks: a batch, and what Zarr holds while it decodes a chunk.
    assert most(memory=0) < (17 + 8) * block
    assert most(memory=40 * block) > (CHUNKS - 1) * block


@pytest.mark.parametrize(("blocks", "kept"), [(0, 17), (19, 19)])
def test_memory_bounds_the_blocks_kept(category: CachedCategory, reads: list[int], blocks: int, kept: int) -> None:
    block = CHUNK * (32 * 32 * 3 + 2 * 2 * 6 * 2)
    stream = NormalStream(category, ROWS, memory=blocks * block)
    stream.read(ROWS[: 20 * CHUNK : CHUNK])
    reads.clear()
    # The last ones are there, and the one before them is not.
    stream.read(ROWS[(20 - kept) * CHUNK : 20 * CHUNK : CHUNK])
    assert reads == []
    stream.read(ROWS[[(19 - kept) * CHUNK]])
    assert reads == [19 - kept]


# --- images -------------------------------------------------------------------------------------------------------


def test_images_are_read_in_the_order_of_their_rows_whenever_they_are_gone_through(category: CachedCategory) -> None:
    rows = np.array([70, 3, 1200, 3])
    images = NormalImages(NormalStream(category, ROWS), rows)
    for _ in range(2):
        assert all(image.shape == (32, 32, 3) and image.dtype == np.uint8 for image in images)
        np.testing.assert_array_equal(numbers(np.stack(list(images))), rows)


def test_images_are_read_when_they_are_asked_for(category: CachedCategory, reads: list[int]) -> None:
    images = NormalImages(NormalStream(category, ROWS), ROWS[5 * CHUNK :])
    assert reads == []
    next(iter(images))
    assert reads == [5]


def test_shards_give_the_same_batches(category: CachedCategory, tiles: NDArray[np.uint8], tmp_path: Path) -> None:
    sharded = open_cache(write_cache(tmp_path / "c.zarr", {"tile": tiles}, TINY, chunks_per_shard=4))["tile"]
    assert sharded.chunks_per_shard == 4 and sharded.array("images").shards == (4 * CHUNK, 32, 32, 3)
    mine, yours = (first_batches(NormalStream(one, ROWS, memory=0), 30, size=50) for one in (sharded, category))
    assert_equal(mine, yours)
    assert numbers(mine[0].images).tolist() == mine[0].rows.tolist()
