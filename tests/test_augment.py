from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from torchvision.transforms.v2 import functional as reference

from train.negatives.augment import jitter_colour, jitter_light

STRENGTH = 0.4
JITTERS = [jitter_light, jitter_colour]

Pixels = NDArray[np.float32]
Jitter = Callable[[Pixels, float, np.random.Generator], Pixels]


def random_image(height: int = 20, width: int = 30, seed: int = 0, low: float = 0, high: float = 255) -> Pixels:
    return np.random.default_rng(seed).uniform(low, high, (height, width, 3)).astype(np.float32)


def grey_image(seed: int, low: float = 0, high: float = 255) -> Pixels:
    """Three equal channels: the mean of all of them is that of torchvision's grey."""
    return np.repeat(random_image(seed=seed, low=low, high=high)[..., :1], 3, 2)


def factors(seed: int, strength: float = STRENGTH) -> tuple[float, float, float]:
    """Of brightness, contrast and saturation, as a jitter draws them from this seed."""
    brightness, contrast, saturation = np.random.default_rng(seed).uniform(1 - strength, 1 + strength, 3).tolist()
    return brightness, contrast, saturation


def torchvision(adjust: Callable[[torch.Tensor, float], torch.Tensor], image: Pixels, factor: float) -> Pixels:
    """An adjustment of torchvision on an image (H,W,3) on the 0..255 scale, to whose range it clips."""
    adjusted: Pixels = adjust(torch.from_numpy(image).permute(2, 0, 1) / 255, factor).permute(1, 2, 0).numpy() * 255
    return adjusted


@pytest.mark.parametrize("jitter", JITTERS)
def test_no_strength_changes_nothing(jitter: Jitter) -> None:
    image = random_image()
    np.testing.assert_allclose(jitter(image, 0, np.random.default_rng(0)), image, rtol=0, atol=1e-3)


@pytest.mark.parametrize("jitter", JITTERS)
@settings(deadline=None, max_examples=40)
@given(st.floats(0.01, 0.99), st.integers(0, 2**32), st.sampled_from([(0, 255), (0, 0), (255, 255), (200, 255)]))
def test_jitter_keeps_the_range_the_type_and_its_input(
    jitter: Jitter, strength: float, seed: int, levels: tuple[float, float]
) -> None:
    image = random_image(6, 5, seed, *levels)
    before = image.copy()
    jittered = jitter(image, strength, np.random.default_rng(seed))
    assert jittered.shape == image.shape and jittered.dtype == np.float32
    assert jittered.min() >= 0 and jittered.max() <= 255
    np.testing.assert_array_equal(image, before)


@pytest.mark.parametrize("jitter", JITTERS)
def test_the_generator_decides_every_bit(jitter: Jitter) -> None:
    first, second, other = (jitter(random_image(), 0.1, np.random.default_rng(seed)) for seed in (0, 0, 1))
    np.testing.assert_array_equal(first, second)
    assert not np.array_equal(first, other)


@pytest.mark.parametrize("seed", range(4))
def test_brightness_moves_the_mean_and_contrast_the_deviation_of_all_channels(seed: int) -> None:
    # Levels of the middle alone, so that nothing is clipped.
    image = random_image(low=110, high=140)
    jittered = jitter_light(image, 0.3, np.random.default_rng(seed))
    brightness, contrast, _ = factors(seed, 0.3)
    assert jittered.mean() == pytest.approx(brightness * image.mean(), rel=1e-5)
    assert jittered.std() == pytest.approx(contrast * image.std(), rel=1e-4)
    # The channels keep their distances, but for the contrast.
    distances = [float(one[..., 0].mean() - one[..., 2].mean()) for one in (jittered, image)]
    assert distances[0] == pytest.approx(contrast * distances[1], abs=1e-3)


@pytest.mark.parametrize("seed", range(4))
def test_of_grey_images_it_is_the_brightness_and_contrast_of_torchvision(seed: int) -> None:
    # torchvision's contrast works on the deviations that its brightness has scaled, ours on those of the image.
    image = grey_image(seed, low=60, high=150)
    brightness, contrast, _ = factors(seed)
    expected = torchvision(reference.adjust_brightness, image, brightness)
    expected = torchvision(reference.adjust_contrast, expected, contrast / brightness)
    found = jitter_light(image, STRENGTH, np.random.default_rng(seed))
    np.testing.assert_allclose(found, expected, rtol=0, atol=0.05)


@pytest.mark.parametrize("seed", range(4))
def test_saturation_is_that_of_torchvision(seed: int) -> None:
    image = random_image(seed=seed)
    lit = jitter_light(image, STRENGTH, np.random.default_rng(seed))
    expected = torchvision(reference.adjust_saturation, lit, factors(seed)[2])
    found = jitter_colour(image, STRENGTH, np.random.default_rng(seed))
    # torchvision's weight of red is 0.2989, ours 0.299.
    np.testing.assert_allclose(found, expected, rtol=0, atol=0.05)
    assert abs(found - lit).max() > 1


def test_light_keeps_grey_grey_and_so_does_colour() -> None:
    for jitter in JITTERS:
        jittered = jitter(grey_image(0), STRENGTH, np.random.default_rng(3))
        np.testing.assert_allclose(jittered, jittered[..., :1].repeat(3, 2), atol=1e-3)


@pytest.mark.parametrize("jitter", JITTERS)
def test_a_constant_image_changes_its_brightness_alone_and_up_to_the_strength(jitter: Jitter) -> None:
    grey = np.full((4, 4, 3), 100, np.float32)
    levels = []
    for seed in range(300):
        jittered = jitter(grey, 0.1, np.random.default_rng(seed))
        assert np.ptp(jittered) < 1e-3
        levels.append(float(jittered.mean()))
    assert 90 - 1e-3 <= min(levels) < 90.5 and 109.5 < max(levels) <= 110 + 1e-3
