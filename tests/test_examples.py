from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from pipeline.pairs import draw_pairs
from pipeline.settings import PrecomputeSettings
from train.localiser.examples import crop_side, make_example
from train.localiser.labels import CHANGED, UNCHANGED
from train.negatives.make import KINDS
from train.negatives.stream import Normal

SIZE = 64
SETTINGS = PrecomputeSettings(image_size=SIZE, stages=("blocks.1",), pairs=4)

Pixels = NDArray[np.float32]


def places(height: int, width: int) -> Pixels:
    """(height,width,3): the row and the column of each pixel, and a third channel of one level."""
    y, x = np.mgrid[:height, :width].astype(np.float32)
    return np.stack([y, x, np.full_like(y, 50)], 2)


def normal_of(image: Pixels) -> Normal:
    keys = np.arange(1, dtype=np.uint64)
    anywhere = torch.zeros(1, 16, 16, dtype=torch.uint8)
    pairs, _ = draw_pairs(anywhere, keys, pairs=4, image_size=SIZE, area=(0.05, 0.1), aspect=(0.5, 2))
    return Normal(image, pairs.numpy(), SETTINGS)


@pytest.fixture(scope="module")
def noise() -> Normal:
    return normal_of(np.random.default_rng(0).integers(0, 256, (SIZE, SIZE, 3)).astype(np.float32))


def changing(box: tuple[slice, slice], levels: float) -> Callable[[str, Normal, np.random.Generator], Pixels]:
    """In place of `make_negative`."""

    def change(kind: str, normal: Normal, rng: np.random.Generator) -> Pixels:
        image = normal.image.copy()
        image[box] += np.float32(levels)
        return image

    return change


@given(st.integers(16, 1024), st.integers(32, 1024), st.integers(32, 1024))
def test_the_side_of_a_crop_is_a_multiple_of_16_within_the_image(crop: int, height: int, width: int) -> None:
    side = crop_side(crop, (height, width, 3))
    assert side % 16 == 0 and 16 <= side <= min(crop, height, width)
    assert side + 16 > min(crop, height, width)


@settings(deadline=None, max_examples=40)
@given(st.integers(16, 80), st.integers(32, 70), st.integers(32, 70), st.integers(0, 2**32))
def test_an_example_is_a_crop_of_its_normal_without_changed_cells(
    crop: int, height: int, width: int, seed: int
) -> None:
    image = places(height, width)
    before = image.copy()
    example = make_example(normal_of(image), None, crop, 0.0, np.random.default_rng(seed))
    side = crop_side(crop, image.shape)
    assert example.image.shape == (3, side, side) and example.image.dtype == np.float32
    assert example.labels.shape == (side // 8, side // 8) and example.labels.dtype == np.int8
    assert (example.labels == UNCHANGED).all()
    # Its first pixel says where it was cut out.
    found = np.rint(example.image.transpose(1, 2, 0))
    top, left = found[0, 0, :2].astype(int)
    np.testing.assert_array_equal(found, image[top : top + side, left : left + side])
    np.testing.assert_array_equal(image, before)


def test_crops_of_normals_come_from_everywhere() -> None:
    normal = normal_of(places(40, 64))
    crops = [make_example(normal, None, 32, 0.0, np.random.default_rng(seed)).image for seed in range(300)]
    tops, lefts = (np.rint([crop[channel, 0, 0] for crop in crops]).astype(int) for channel in (0, 1))
    assert set(tops) == set(range(9)) and set(lefts) == set(range(33))


@settings(deadline=None, max_examples=80)
@given(
    st.tuples(st.integers(0, SIZE - 8), st.integers(0, SIZE - 8), st.integers(8, 40), st.integers(8, 40)),
    st.sampled_from([16, 32, 48]),
    st.sampled_from([-30, 60]),
    st.integers(0, 2**32),
)
def test_a_crop_is_aimed_at_a_visible_change(
    box: tuple[int, int, int, int], crop: int, levels: float, seed: int
) -> None:
    top, left, rows, columns = box
    normal = normal_of(np.full((SIZE, SIZE, 3), 100, np.float32))
    with pytest.MonkeyPatch.context() as patch:
        change = changing((slice(top, top + rows), slice(left, left + columns)), levels)
        patch.setattr("train.localiser.examples.make_negative", change)
        example = make_example(normal, "cutswap", crop, 0.0, np.random.default_rng(seed))
    assert (example.labels == CHANGED).any()
    # The labels are those of the crop: a twentieth of an unchanged cell may differ from the grey around it.
    differs = abs(example.image[0] - 100) > 1
    share = differs.reshape(crop // 8, 8, crop // 8, 8).mean((1, 3))
    assert (share[example.labels == CHANGED] > 0.1).all()
    assert (share[example.labels == UNCHANGED] <= 0.05).all()


def test_what_was_changed_lies_in_the_middle_half_of_the_crop_wherever_there(monkeypatch: pytest.MonkeyPatch) -> None:
    one = changing((slice(30, 31), slice(33, 34)), 100)
    monkeypatch.setattr("train.localiser.examples.make_negative", one)
    normal = normal_of(np.full((SIZE, SIZE, 3), 100, np.float32))
    found = []
    for seed in range(300):
        example = make_example(normal, "cutswap", 32, 0.0, np.random.default_rng(seed))
        found.append(np.argwhere(example.image[0] > 150)[0])
    rows, columns = np.array(found).T
    assert set(rows.tolist()) == set(columns.tolist()) == set(range(8, 24))


def test_a_negative_that_shows_no_change_is_cropped_anywhere(monkeypatch: pytest.MonkeyPatch) -> None:
    faint = changing((slice(0, 16), slice(0, 16)), 5)
    monkeypatch.setattr("train.localiser.examples.make_negative", faint)
    normal = normal_of(places(SIZE, SIZE))
    corners = set()
    for seed in range(100):
        example = make_example(normal, "cutswap", 32, 0.0, np.random.default_rng(seed))
        assert not (example.labels == CHANGED).any()
        corners.add(tuple(np.rint(example.image[:2, -1, -1]).astype(int).tolist()))
    assert len(corners) > 80


@pytest.mark.parametrize("kind", KINDS)
def test_nearly_every_negative_has_a_changed_cell_in_its_crop(kind: str, noise: Normal) -> None:
    changed = 0
    for seed in range(60):
        example = make_example(noise, kind, 32, 0.1, np.random.default_rng(seed))
        assert example.image.shape == (3, 32, 32) and example.labels.shape == (4, 4)
        assert example.image.min() >= 0 and example.image.max() <= 255
        changed += bool((example.labels == CHANGED).any())
    # Scars are thinner than cells of so small an image.
    assert changed >= (15 if kind in ("cutpaste-scar", "cutpaste-3way") else 45)


def test_light_changes_the_image_and_not_its_labels(noise: Normal) -> None:
    plain, lit = (make_example(noise, "cutswap", 32, jitter, np.random.default_rng(1)) for jitter in (0.0, 0.3))
    np.testing.assert_array_equal(plain.labels, lit.labels)
    assert abs(plain.image - lit.image).mean() > 1
    unlit = make_example(noise, None, 32, 0.3, np.random.default_rng(1))
    assert (unlit.labels == UNCHANGED).all()


def test_the_generator_decides_every_bit(noise: Normal) -> None:
    first, second, other = (make_example(noise, "mix", 32, 0.1, np.random.default_rng(seed)) for seed in (2, 2, 3))
    np.testing.assert_array_equal(first.image, second.image)
    np.testing.assert_array_equal(first.labels, second.labels)
    assert not np.array_equal(first.image, other.image)
