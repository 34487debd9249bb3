import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from pipeline.pairs import draw_pairs
from pipeline.settings import PrecomputeSettings
from pipeline.swap import swap_patches
from train.negatives.make import make_negatives

SIZE, STAGES, PAIRS, COUNT = 64, 3, 4, 24
SETTINGS = PrecomputeSettings(image_size=SIZE, stages=("blocks.1", "blocks.2", "blocks.4"), pairs=PAIRS)
KINDS = ("cutswap", "random-swap", "cutpaste", "cutpaste-scar", "cutpaste-3way")


@pytest.fixture(scope="module")
def images() -> Tensor:
    """(B,3,SIZE,SIZE) uint8 noise: hardly two pixels are the same."""
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (COUNT, 3, SIZE, SIZE), generator=generator, dtype=torch.uint8)


@pytest.fixture(scope="module")
def pairs() -> NDArray[np.int16]:
    """(B,STAGES,PAIRS,6), all different."""
    keys = np.arange(COUNT * STAGES, dtype=np.uint64)
    anywhere = torch.zeros(len(keys), 16, 16, dtype=torch.uint8)
    boxes, _ = draw_pairs(anywhere, keys, pairs=PAIRS, image_size=SIZE, area=(0.01, 0.1), aspect=(0.3, 3.3))
    return boxes.numpy().reshape(COUNT, STAGES, PAIRS, 6)


def make(kind: str, images: Tensor, pairs: NDArray[np.int16], seed: int = 0) -> tuple[Tensor, NDArray[np.int64]]:
    negatives, stage = make_negatives(kind, images, pairs, SETTINGS, np.random.default_rng(seed))
    assert negatives.shape == images.shape and negatives.dtype == torch.uint8
    assert stage.shape == (len(images),) and stage.dtype == torch.int64
    return negatives, stage.numpy()


def as_array(image: Tensor) -> NDArray[np.uint8]:
    return image.permute(1, 2, 0).numpy()


def sorted_pixels(image: Tensor) -> list[list[int]]:
    return sorted(image.flatten(1).T.tolist())


def changed(image: Tensor, negative: Tensor) -> NDArray[np.bool_]:
    """(SIZE,SIZE): where any channel differs."""
    return (image != negative).any(0).numpy()


@pytest.mark.parametrize("kind", KINDS)
def test_negatives_are_decided_by_the_generator_and_leave_the_normals_alone(
    kind: str, images: Tensor, pairs: NDArray[np.int16]
) -> None:
    before = images.clone()
    (first, stage), (second, same_stage), (other, _) = (make(kind, images, pairs, seed) for seed in (5, 5, 6))
    assert torch.equal(first, second) and np.array_equal(stage, same_stage)
    assert not torch.equal(first, other)
    assert torch.equal(images, before)
    assert all(changed(image, negative).any() for image, negative in zip(images, first, strict=True))


def test_cutswap_swaps_a_cached_pair_of_the_stage_it_returns(images: Tensor, pairs: NDArray[np.int16]) -> None:
    used = set()
    for seed in range(4):
        negatives, stages = make("cutswap", images, pairs, seed)
        for i, stage in enumerate(stages.tolist()):
            image, negative = as_array(images[i]), as_array(negatives[i])
            fitting = [p for p in range(PAIRS) if np.array_equal(swap_patches(image, pairs[i, stage, p]), negative)]
            assert len(fitting) == 1
            used.add((stage, fitting[0]))
            assert sorted_pixels(images[i]) == sorted_pixels(negatives[i])
    assert used == {(stage, pair) for stage in range(STAGES) for pair in range(PAIRS)}


def test_random_swap_permutes_two_patches_of_the_sizes_of_cutswap(images: Tensor, pairs: NDArray[np.int16]) -> None:
    area = np.array(SETTINGS.patch_area) * SIZE**2
    negatives, stage = make("random-swap", images, pairs)
    assert stage.tolist() == [0] * COUNT
    for image, negative in zip(images, negatives, strict=True):
        assert sorted_pixels(image) == sorted_pixels(negative)
        # Two patches of whole pixels; noise leaves one pixel in 2^24 unchanged.
        assert 2 * 0.8 * area[0] <= changed(image, negative).sum() <= 2 * 1.2 * area[1]


def test_random_swap_does_not_read_the_pairs(images: Tensor, pairs: NDArray[np.int16]) -> None:
    assert torch.equal(make("random-swap", images, pairs)[0], make("random-swap", images, pairs[::-1])[0])


def test_random_swaps_reach_every_part_of_the_image(images: Tensor, pairs: NDArray[np.int16]) -> None:
    reached = np.zeros((SIZE, SIZE), bool)
    for seed in range(20):
        negatives, _ = make("random-swap", images, pairs, seed)
        for image, negative in zip(images, negatives, strict=True):
            reached |= changed(image, negative)
    assert reached.all()


@pytest.mark.parametrize("seed", range(4))
def test_cutpaste_changes_the_inside_of_one_box(images: Tensor, pairs: NDArray[np.int16], seed: int) -> None:
    negatives, stage = make("cutpaste", images, pairs, seed)
    assert stage.tolist() == [0] * COUNT
    for image, negative in zip(images, negatives, strict=True):
        where = changed(image, negative)
        rows, columns = np.flatnonzero(where.any(1)), np.flatnonzero(where.any(0))
        height, width = np.ptp(rows) + 1, np.ptp(columns) + 1
        box = where[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
        assert box.mean() > 0.95
        # Rounding to whole pixels, and a long side cut at the image's, change the area a little.
        assert 0.02 * 0.8 <= height * width / SIZE**2 <= 0.15 * 1.1
        assert 0.3 * 0.75 <= height / width <= 3.3 / 0.75


def test_a_scar_is_one_thin_patch_whatever_the_size(pairs: NDArray[np.int16]) -> None:
    generator = np.random.default_rng(0)
    for size in (32, 128, 256):
        noise = torch.from_numpy(generator.integers(0, 256, (200, 3, size, size), np.uint8))
        settings = PrecomputeSettings(image_size=size)
        scarred, group = make_negatives("cutpaste-scar", noise, pairs, settings, np.random.default_rng(1))
        assert not group.any()
        scale = size / 256
        areas, spans = [], []
        for image, negative in zip(noise, scarred, strict=True):
            y, x = np.nonzero(changed(image, negative))
            areas.append(len(y))
            spans.append(max(np.ptp(y), np.ptp(x)) + 1)
        assert min(areas) >= 1 and max(areas) <= 1.1 * (16 * scale + 1) * (25 * scale + 1)
        # The mean of width times length, drawn apart from each other.
        assert np.mean(areas) == pytest.approx(9 * 17.5 * scale**2, rel=0.25)
        assert max(spans) <= np.hypot(16, 25) * scale + 2


def test_scars_are_rotated_upright_patches_of_their_image(pairs: NDArray[np.int16]) -> None:
    # Rows of one level each: where an upright patch keeps its rows together, a turned one does not.
    size = 256
    ramp = torch.arange(size, dtype=torch.uint8).view(1, 1, -1, 1).expand(COUNT, 3, size, size).clone()
    settings = PrecomputeSettings(image_size=size)
    scarred, _ = make_negatives("cutpaste-scar", ramp, pairs, settings, np.random.default_rng(2))
    slopes = []
    for image, negative in zip(ramp, scarred, strict=True):
        y, x = np.nonzero(changed(image, negative))
        if len(y) < 60:
            continue
        design = np.stack([y, x, np.ones(len(y))], 1).astype(float)
        slopes.append(np.linalg.lstsq(design, negative[0].numpy()[y, x].astype(float), rcond=None)[0][:2])
    angles = np.degrees([np.arctan2(abs(across), along) for along, across in slopes])
    assert len(angles) > COUNT / 2 and angles.max() < 50 and np.ptp(angles) > 20


def test_three_ways_are_half_pastes_and_half_scars(images: Tensor, pairs: NDArray[np.int16]) -> None:
    negatives, group = make("cutpaste-3way", images, pairs)
    assert np.bincount(group).tolist() == [COUNT / 2, COUNT / 2]
    assert group.tolist() != make("cutpaste-3way", images, pairs, 1)[1].tolist()
    areas = np.array([changed(image, negative).mean() for image, negative in zip(images, negatives, strict=True)])
    assert areas[group == 0].min() > 0.015 and areas[group == 1].max() < 0.015


@pytest.mark.parametrize("count", [1, 3])
def test_three_ways_of_an_odd_batch(images: Tensor, pairs: NDArray[np.int16], count: int) -> None:
    negatives, group = make("cutpaste-3way", images[:count], pairs[:count])
    assert group.sum() == count // 2
    assert all(changed(image, negative).any() for image, negative in zip(images, negatives, strict=False))


@pytest.mark.parametrize(("kind", "extremes"), [("cutpaste", (190, 210)), ("cutpaste-scar", (192, 208))])
def test_pastes_jitter_the_colours_of_the_patch_by_a_tenth(
    pairs: NDArray[np.int16], kind: str, extremes: tuple[int, int]
) -> None:
    # On a grey image without texture the paste shows the jitter of brightness alone.
    grey = torch.full((COUNT, 3, SIZE, SIZE), 200, dtype=torch.uint8)
    negatives, _ = make(kind, grey, pairs)
    levels: list[int] = []
    for image, negative in zip(grey, negatives, strict=True):
        levels += negative[:, torch.from_numpy(changed(image, negative))].unique().tolist()
    assert len(set(levels)) > COUNT / 2
    assert 179 <= min(levels) < extremes[0] and extremes[1] < max(levels) <= 220
