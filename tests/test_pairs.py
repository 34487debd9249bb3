import dataclasses

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from torch import Tensor

from pipeline.backbones.load import load_backbone
from pipeline.clusters import cluster_maps
from pipeline.pairs import draw_pairs, pair_key, patch_sizes, uniforms
from pipeline.saliency import layercam, scale_maps

Labels = NDArray[np.uint8]
AREA, ASPECT = (0.005, 0.05), (0.3, 3.3)


@dataclasses.dataclass(frozen=True)
class Case:
    """Arguments of `draw_pairs`, with names that hypothesis can print."""

    labels: Labels
    keys: NDArray[np.uint64]
    image_size: int
    pairs: int = 8
    area: tuple[float, float] = AREA
    aspect: tuple[float, float] = ASPECT

    def draw(self) -> tuple[NDArray[np.int16], NDArray[np.uint8]]:
        labels, shares = torch.from_numpy(self.labels), {"area": self.area, "aspect": self.aspect}
        boxes, relaxed = draw_pairs(labels, self.keys, pairs=self.pairs, image_size=self.image_size, **shares)
        return boxes.numpy(), relaxed.numpy()


def keys_of(count: int, seed: int = 0) -> NDArray[np.uint64]:
    return np.array([pair_key(seed, f"a/{i:03}.png", "blocks.1") for i in range(count)], np.uint64)


@st.composite
def cases(draw: st.DrawFn, extreme: bool) -> Case:
    """Random maps: blobs of a top cluster of one cell and more, flat maps, and labels that skip no number."""
    image_size = draw(st.sampled_from([32, 35, 64, 100]))
    side = draw(st.sampled_from([1, 2, 5, image_size // 4]))
    maps = draw(st.integers(1, 5))
    random = np.random.default_rng(draw(st.integers(0, 2**32)))
    labels = np.zeros((maps, side, side), np.uint8)
    for one in labels:
        for cluster in range(1, draw(st.integers(1, 16))):
            cells = random.integers(0, side * side, draw(st.sampled_from([1, 2, side])))
            one.flat[cells] = cluster
        one[:] = np.unique(one, return_inverse=True)[1].reshape(one.shape)
    low = draw(st.floats(1e-6, 0.25) if extreme else st.floats(0.003, 0.03))
    high = draw(st.floats(low, 0.25 if extreme else 0.06))
    narrow = draw(st.floats(0.1, 10) if extreme else st.floats(0.3, 1))
    wide = draw(st.floats(narrow, 10 if extreme else 3.3))
    keys = random.integers(0, 2**64, maps, np.uint64)
    return Case(labels, keys, image_size, draw(st.sampled_from([1, 7, 16])), (low, high), (narrow, wide))


def assert_valid(boxes: NDArray[np.int16], image_size: int) -> None:
    y1, x1, y2, x2, height, width = np.moveaxis(boxes.astype(int), -1, 0)
    assert (height >= 1).all() and (width >= 1).all()
    for y, x in ((y1, x1), (y2, x2)):
        assert (y >= 0).all() and (x >= 0).all()
        assert (y + height <= image_size).all() and (x + width <= image_size).all()
    assert ((abs(y1 - y2) >= height) | (abs(x1 - x2) >= width)).all()


def in_clusters(labels: Labels, lowest: int, box: NDArray[np.int16], patch: int, image_size: int) -> bool:
    """Whether a patch has its centre in a cell of cluster `lowest` or higher, before it was moved into the image."""
    size = box[4:].astype(int)
    corner = box[2 * patch : 2 * patch + 2].astype(int)
    cells = np.argwhere(labels >= lowest)
    scale = image_size / np.array(labels.shape)
    # A cell covers the pixels from floor(cell * scale) to the last below (cell + 1) * scale.
    first = np.clip(np.floor(cells * scale).astype(int) - size // 2, 0, image_size - size)
    last = np.clip(np.ceil((cells + 1) * scale).astype(int) - 1 - size // 2, 0, image_size - size)
    return bool(((first <= corner) & (corner <= last)).all(1).any())


# --- the generator ------------------------------------------------------------------------------------------------


def test_uniforms_are_those_of_the_reference_splitmix64() -> None:
    reference = [0xE220A8397B1DCDAF, 0x6E789E6AA1B965F4, 0x06C45D188009454F]
    drawn = uniforms(torch.zeros(1, dtype=torch.int64), 3)
    assert drawn.dtype == torch.float64
    assert drawn[0].tolist() == [(value >> 11) / 2**53 for value in reference]


def bits(keys: NDArray[np.uint64]) -> Tensor:
    return torch.from_numpy(keys.view(np.int64))


def splitmix64(state: int, count: int) -> list[int]:
    """The reference implementation (Vigna, splitmix64.c), in Python's unbounded integers."""
    values = []
    for _ in range(count):
        state = (state + 0x9E3779B97F4A7C15) % 2**64
        z = state
        z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9 % 2**64
        z = (z ^ (z >> 27)) * 0x94D049BB133111EB % 2**64
        values.append(z ^ (z >> 31))
    return values


@given(st.lists(st.integers(0, 2**64 - 1), min_size=1, max_size=4), st.integers(1, 40))
def test_uniforms_of_any_key(keys: list[int], count: int) -> None:
    expected = [[(value >> 11) / 2**53 for value in splitmix64(key, count)] for key in keys]
    assert uniforms(bits(np.array(keys, np.uint64)), count).tolist() == expected


def test_uniforms_are_uniform() -> None:
    drawn = uniforms(bits(keys_of(200)), 500).numpy()
    counts = np.histogram(drawn, bins=20, range=(0, 1))[0]
    # 100,000 draws in 20 bins: a bin's deviation is 69, so 350 is five of them.
    assert abs(counts - 5000).max() < 350
    assert abs(np.corrcoef(drawn)[~np.eye(200, dtype=bool)]).max() < 0.25


def test_keys_differ_in_seed_path_and_stage() -> None:
    same = pair_key(0, "a/1.png", "blocks.1")
    assert same == pair_key(0, "a/1.png", "blocks.1") and same.dtype == np.uint64
    others = {
        pair_key(1, "a/1.png", "blocks.1"),
        pair_key(0, "a/2.png", "blocks.1"),
        pair_key(0, "a/1.png", "blocks.2"),
    }
    assert len(others | {same}) == 4
    # No concatenation of other parts makes the same key.
    assert pair_key(1, "2", "3") != pair_key(12, "", "3") and pair_key(0, "ab", "c") != pair_key(0, "a", "bc")


def test_keys_are_those_of_every_machine_and_process() -> None:
    # printf '0\\0mono/train/good/000.png\\0blocks.1' | b2sum -l 64
    assert int(pair_key(0, "mono/train/good/000.png", "blocks.1")).to_bytes(8, "little").hex() == "d0b2440881ce7bed"


# --- sizes --------------------------------------------------------------------------------------------------------


@given(
    u=st.lists(st.tuples(st.floats(0, 1, exclude_max=True), st.floats(0, 1, exclude_max=True)), min_size=1, max_size=9),
    image_size=st.integers(64, 1024),
    area=st.tuples(st.floats(0.003, 0.25), st.floats(0.003, 0.25)).map(sorted),
    aspect=st.tuples(st.floats(0.1, 10), st.floats(0.1, 10)).map(sorted),
)
def test_sizes_are_those_asked_for(
    u: list[tuple[float, float]], image_size: int, area: list[float], aspect: list[float]
) -> None:
    height, width = (
        side.numpy() for side in patch_sizes(*torch.tensor(u, dtype=torch.float64).T, image_size, area, aspect)
    )
    long, short = np.maximum(height, width), np.minimum(height, width)
    assert (short >= 2).all() and (short <= image_size // 2).all() and (long <= image_size).all()
    for h, w, (u_area, u_aspect) in zip(height.tolist(), width.tolist(), u, strict=True):
        if h in (2, image_size, image_size // 2) or w in (2, image_size, image_size // 2):
            continue
        # Rounding moves a side by half a pixel.
        assert (h - 0.5) * (w - 0.5) <= (area[0] + u_area * (area[1] - area[0])) * image_size**2 * (1 + 1e-9)
        assert (h + 0.5) * (w + 0.5) >= (area[0] + u_area * (area[1] - area[0])) * image_size**2 * (1 - 1e-9)
        ratio = aspect[0] ** (1 - u_aspect) * aspect[1] ** u_aspect
        assert (h - 0.5) / (w + 0.5) <= ratio * (1 + 1e-9) and (h + 0.5) / (w - 0.5) >= ratio * (1 - 1e-9)


def test_sizes_fill_the_ranges() -> None:
    boxes, _ = Case(np.zeros((50, 16, 16), np.uint8), keys_of(50), 256, 16).draw()
    height, width = boxes[..., 4].astype(float), boxes[..., 5].astype(float)
    area, aspect = height * width / 256**2, height / width
    assert area.min() < 0.006 and area.max() > 0.049 and abs(area.mean() - 0.0275) < 0.001
    assert aspect.min() < 0.32 and aspect.max() > 3.1 and abs(np.log(aspect).mean()) < 0.06


# --- pairs --------------------------------------------------------------------------------------------------------


@settings(max_examples=150, deadline=None)
@given(st.booleans().flatmap(lambda extreme: cases(extreme=extreme)))
def test_pairs_are_valid_whatever_the_settings(case: Case) -> None:
    boxes, relaxed = case.draw()
    assert boxes.shape == (len(case.labels), case.pairs, 6) and boxes.dtype == np.int16
    assert relaxed.shape == (len(case.labels), case.pairs) and relaxed.dtype == np.uint8
    assert set(np.unique(relaxed)) <= {0, 1}
    assert_valid(boxes, case.image_size)


# Half of 35 rounds to 18, and two patches of 18 would not fit.
@pytest.mark.parametrize("image_size", [32, 35])
@pytest.mark.parametrize("aspect", [(1.0, 1.0), (0.1, 0.1), (10.0, 10.0), (0.1, 10.0)])
def test_the_largest_patches_of_the_smallest_images_fit(aspect: tuple[float, float], image_size: int) -> None:
    lone = np.zeros((40, 8, 8), np.uint8)
    lone[:, 3, 4] = 1
    for labels in (lone, np.zeros_like(lone)):
        boxes, _ = Case(labels, keys_of(40), image_size, 16, (0.25, 0.25), aspect).draw()
        assert_valid(boxes, image_size)


@settings(max_examples=100, deadline=None)
@given(cases(extreme=False))
def test_pairs_come_from_the_top_cluster(case: Case) -> None:
    boxes, relaxed = case.draw()
    for labels, rows, flags in zip(case.labels, boxes, relaxed, strict=True):
        top = labels.max()
        for box, flag in zip(rows, flags, strict=True):
            if not flag:
                assert in_clusters(labels, top, box, 0, case.image_size)
                assert in_clusters(labels, top, box, 1, case.image_size)


def test_the_first_patch_of_a_relaxed_pair_stays_on_the_top_cluster() -> None:
    labels = np.zeros((60, 16, 16), np.uint8)
    random = np.random.default_rng(0)
    for one in labels:
        one[tuple(random.integers(0, 16, (2, 60)))] = 1
        one[tuple(random.integers(0, 16, 2))] = 2
    boxes, relaxed = Case(labels, keys_of(60), 64, 16, (0.03, 0.05)).draw()
    assert relaxed.all()  # patches of 5 pixels and more around one cell of 4 cannot be apart
    next_down = 0
    for one, rows in zip(labels, boxes, strict=True):
        for box in rows:
            assert in_clusters(one, 2, box, 0, 64)
            next_down += in_clusters(one, 1, box, 1, 64)
    # Sixty cells are room enough: the lowest cluster is not needed.
    assert next_down == boxes.shape[0] * boxes.shape[1]


def test_relaxed_says_whether_the_top_cluster_was_too_small() -> None:
    one_cell = np.zeros((30, 16, 16), np.uint8)
    one_cell[:, 7, 9] = 3
    far_apart = one_cell.copy()
    far_apart[:, 2, 2] = 3
    half = np.zeros_like(one_cell)
    half[:, :8] = 1
    everywhere = np.zeros_like(one_cell)
    for labels, expected in ((one_cell, 1), (far_apart, 0), (half, 0), (everywhere, 0)):
        _, relaxed = Case(labels, keys_of(30), 64, 16, (0.02, 0.03)).draw()
        assert (relaxed == expected).all()


def test_a_pair_within_one_cell_is_not_relaxed() -> None:
    # Cells of 16 pixels, patches of 4: two fit apart into the one cell of the top cluster.
    labels = np.zeros((30, 4, 4), np.uint8)
    labels[:, 1, 2] = 1
    boxes, relaxed = Case(labels, keys_of(30), 64, 16, (16 / 4096, 16 / 4096), (1, 1)).draw()
    assert not relaxed.any()
    assert_valid(boxes, 64)


def test_both_patches_reach_all_of_the_cluster() -> None:
    labels = np.zeros((100, 8, 8), np.uint8)
    labels[:, 2:6, 2:6] = 1
    boxes, _ = Case(labels, keys_of(100), 64, 16, (0.004, 0.004), (1, 1)).draw()
    for y, x in ((0, 1), (2, 3)):
        centre = boxes[..., [y, x]] + boxes[..., 4:] // 2
        counts = np.histogram2d(*centre.reshape(-1, 2).T, bins=4, range=[(16, 48)] * 2)[0]
        assert counts.sum() == 1600 and counts.min() > 60 and counts.max() < 140


@settings(max_examples=60, deadline=None)
@given(st.booleans().flatmap(lambda extreme: cases(extreme=extreme)), st.randoms(use_true_random=False))
def test_pairs_depend_on_the_key_and_the_map_alone(case: Case, random: object) -> None:
    boxes, relaxed = case.draw()
    order = list(range(len(case.labels)))
    random.shuffle(order)  # type: ignore[attr-defined]
    shuffled, flags = dataclasses.replace(case, labels=case.labels[order], keys=case.keys[order]).draw()
    np.testing.assert_array_equal(shuffled, boxes[order])
    np.testing.assert_array_equal(flags, relaxed[order])
    for i in range(len(case.labels)):
        alone, flag = dataclasses.replace(case, labels=case.labels[i : i + 1], keys=case.keys[i : i + 1]).draw()
        np.testing.assert_array_equal(alone[0], boxes[i])
        np.testing.assert_array_equal(flag[0], relaxed[i])


def test_other_keys_give_other_pairs() -> None:
    labels = np.zeros((3, 16, 16), np.uint8)
    keys = np.array([pair_key(0, "a.png", "s"), pair_key(1, "a.png", "s"), pair_key(0, "b.png", "s")], np.uint64)
    boxes, _ = Case(labels, keys, 64, 8).draw()
    assert len({tuple(box) for rows in boxes for box in rows}) == 24


def test_pairs_of_real_maps(photos: NDArray[np.uint8]) -> None:
    backbone = load_backbone("efficientnet_lite0")
    x = backbone.normalise(torch.from_numpy(photos).permute(0, 3, 1, 2))
    raw, _ = layercam(backbone, x, ["blocks.1", "blocks.2", "blocks.4", "blocks.6"])
    labels = cluster_maps(scale_maps(raw, 16).flatten(0, 1), 4)[0].numpy()
    boxes, relaxed = Case(labels, keys_of(24), 64, 16).draw()
    assert_valid(boxes, 64)
    assert 0 < relaxed.mean() < 1
    for one, rows in zip(labels, boxes, strict=True):
        assert all(in_clusters(one, one.max(), box, 0, 64) for box in rows)
