import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torchvision.transforms.v2 import functional as reference

from train.negatives.augment import jitter_colour, translate

STRENGTH = 0.4


def random_images(count: int, height: int = 20, width: int = 30, seed: int = 0) -> Tensor:
    """(B,3,height,width) float on the 0..255 scale."""
    return torch.rand(count, 3, height, width, generator=torch.Generator().manual_seed(seed)) * 255


def drawn_factors(count: int, seed: int) -> Tensor:
    """(3,B) factors of brightness, contrast and saturation that `jitter_colour` draws from this seed."""
    rng = np.random.default_rng(seed)
    return torch.from_numpy(rng.uniform(1 - STRENGTH, 1 + STRENGTH, (3, count))).float()


# --- colour -------------------------------------------------------------------------------------------------------


def test_no_strength_changes_nothing() -> None:
    images = random_images(3)
    before = images.clone()
    assert torch.equal(jitter_colour(images, 0, np.random.default_rng(0)), before)


@pytest.mark.parametrize("seed", range(3))
def test_jitter_is_that_of_torchvision(seed: int) -> None:
    images = random_images(5, seed=seed)
    jittered = jitter_colour(images, STRENGTH, np.random.default_rng(seed))
    for image, found, (brightness, contrast, saturation) in zip(
        images, jittered, drawn_factors(5, seed).T.tolist(), strict=True
    ):
        expected = reference.adjust_brightness(image / 255, brightness)
        expected = reference.adjust_contrast(expected, contrast)
        expected = reference.adjust_saturation(expected, saturation) * 255
        # torchvision's weight of red is 0.2989, ours 0.299.
        torch.testing.assert_close(found, expected, rtol=0, atol=0.05)


@settings(deadline=None, max_examples=25)
@given(st.floats(0.01, 0.99), st.integers(0, 2**32))
def test_jitter_keeps_the_range_and_its_input(strength: float, seed: int) -> None:
    images = random_images(4, 6, 5, seed % 2**31)
    images[0], images[1] = 0, 255
    before = images.clone()
    jittered = jitter_colour(images, strength, np.random.default_rng(seed))
    assert jittered.shape == images.shape and jittered.dtype == torch.float32
    assert jittered.min() >= 0 and jittered.max() <= 255
    assert torch.equal(images, before)


def test_a_constant_grey_image_changes_its_brightness_alone_and_within_bounds() -> None:
    grey = torch.full((400, 3, 4, 4), 100.0)
    jittered = jitter_colour(grey, 0.1, np.random.default_rng(0))
    factors = jittered / 100
    torch.testing.assert_close(factors, factors[:, :1, :1, :1].expand_as(factors))
    assert 0.9 - 1e-5 <= factors.min() < 0.905 and 1.095 < factors.max() <= 1.1 + 1e-5


def test_every_image_has_its_own_factors() -> None:
    same = random_images(1).expand(8, -1, -1, -1)
    jittered = jitter_colour(same, STRENGTH, np.random.default_rng(0))
    assert len({tuple(image.flatten().tolist()) for image in jittered}) == 8


def test_jitter_is_deterministic() -> None:
    first, second, other = (jitter_colour(random_images(3), 0.1, np.random.default_rng(s)) for s in (0, 0, 1))
    assert torch.equal(first, second) and not torch.equal(first, other)


# --- translation --------------------------------------------------------------------------------------------------


def coordinates(count: int, height: int, width: int) -> Tensor:
    """(B,2,height,width): the row and the column of every pixel."""
    grid = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    return torch.stack(grid).expand(count, -1, -1, -1)


@settings(deadline=None, max_examples=50)
@given(st.integers(5, 60), st.integers(5, 60), st.floats(0, 0.4), st.integers(0, 2**32))
def test_an_image_moves_as_a_whole_and_its_edges_fill_the_gap(height: int, width: int, share: float, seed: int) -> None:
    moved = translate(coordinates(6, height, width), share, np.random.default_rng(seed))
    assert moved.shape == (6, 2, height, width)
    rows, columns = moved[:, 0].numpy(), moved[:, 1].numpy()
    for found, side, axis in ((rows, height, 0), (columns, width, 1)):
        # Along its own axis every pixel comes from one shift further, across it from the same line.
        lines = found[:, :, 0] if axis == 0 else found[:, 0, :]
        np.testing.assert_array_equal(found, np.broadcast_to(np.expand_dims(lines, 2 - axis), found.shape))
        middle = side // 2
        shifts = lines[:, middle] - middle
        np.testing.assert_array_equal(lines, np.clip(np.arange(side) + shifts[:, None], 0, side - 1))
        assert abs(shifts).max() <= round(share * side)


def test_shifts_reach_their_bounds_each_way_and_each_image_has_its_own() -> None:
    moved = translate(coordinates(500, 20, 60), 0.1, np.random.default_rng(0))
    vertical, horizontal = (moved[:, 0, 10, 30] - 10).tolist(), (moved[:, 1, 10, 30] - 30).tolist()
    assert set(vertical) == set(range(-2, 3))
    assert set(horizontal) == set(range(-6, 7))


def test_no_share_moves_nothing_and_types_are_kept() -> None:
    images = torch.arange(2 * 3 * 8 * 8, dtype=torch.uint8).view(2, 3, 8, 8)
    assert torch.equal(translate(images, 0, np.random.default_rng(0)), images)
    assert translate(images, 0.3, np.random.default_rng(0)).dtype == torch.uint8


def test_translation_is_deterministic() -> None:
    first, second, other = (translate(random_images(6), 0.3, np.random.default_rng(s)) for s in (0, 0, 1))
    assert torch.equal(first, second) and not torch.equal(first, other)
