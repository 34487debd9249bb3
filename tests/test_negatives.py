import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from pipeline.pairs import draw_pairs
from pipeline.settings import PrecomputeSettings
from pipeline.swap import swap_patches
from train.negatives import make_negatives

SIZE, STAGES, PAIRS, COUNT = 64, 3, 4, 24
SETTINGS = PrecomputeSettings(image_size=SIZE, stages=("blocks.1", "blocks.2", "blocks.4"), pairs=PAIRS)
KINDS = ("cutswap", "random-swap", "cutpaste")


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


def test_cutpaste_jitters_the_colours_of_the_patch_by_a_tenth(pairs: NDArray[np.int16]) -> None:
    # On a grey image without texture the paste shows the jitter of brightness alone.
    grey = torch.full((COUNT, 3, SIZE, SIZE), 200, dtype=torch.uint8)
    negatives, _ = make("cutpaste", grey, pairs)
    levels: list[int] = []
    for image, negative in zip(grey, negatives, strict=True):
        levels += negative[:, torch.from_numpy(changed(image, negative))].unique().tolist()
    assert len(set(levels)) > COUNT / 2
    assert 179 <= min(levels) < 190 and 210 < max(levels) <= 220
