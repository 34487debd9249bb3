"""A wrong or blank frame is told from a defect: what the normals' frames are like, and what is far from them."""

import numpy as np
import pytest
from numpy.typing import NDArray

from train.frames import Frames

SIZES = [(640, 480), (650, 480)]


def photo(mean: float, deviation: float, seed: int = 0) -> NDArray[np.uint8]:
    noise = np.random.default_rng(seed).normal(mean, deviation, (64, 64, 1))
    return np.repeat(noise.clip(0, 255).astype(np.uint8), 3, axis=2)


@pytest.fixture(scope="module")
def frames() -> Frames:
    made = Frames.of([photo(120 + i % 5, 20 + i % 3, i) for i in range(30)], SIZES)
    assert made is not None
    return made


@pytest.mark.parametrize(
    ("mean", "deviation", "told"),
    [
        (122, 21, ""),
        (95, 17, ""),
        (165, 28, ""),
        (41, 7, "3 times as dark"),
        (200, 35, "1.6 times as bright"),
        (122, 6, "3.4 times less contrast"),
        (122, 60, "2.8 times more contrast"),
        (41, 0.8, "3 times as dark, "),
        (250, 2, "2 times as bright, "),
        (0, 0, "constant"),
        (122, 0, "constant"),
        (255, 0, "constant"),
    ],
)
def test_light_and_contrast_are_told_where_they_are_far_from_the_normals(
    frames: Frames, mean: float, deviation: float, told: str
) -> None:
    said = frames.unlike(photo(mean, deviation, 99))
    assert said.startswith(told) if told.endswith(", ") else said == told


@pytest.mark.parametrize(
    ("size", "told"),
    [
        ((640, 480), ""),
        ((800, 600), ""),
        ((700, 480), ""),
        ((320, 240), "2 times as small"),
        ((6400, 4800), "10 times as large"),
        ((960, 480), "1.5 times as wide for its height"),
        ((480, 640), "1.8 times as tall for its width"),
        ((1, 1), "556 times as small, 1.3 times as tall for its width"),
    ],
)
def test_size_and_aspect_are_told(frames: Frames, size: tuple[int, int], told: str) -> None:
    assert frames.unlike(photo(122, 21), size) == told
    assert frames.unlike(photo(122, 21)) == ""


def test_normals_near_to_white_leave_room_for_one_that_is_nearer() -> None:
    frames = Frames.of([photo(200, 15, i) for i in range(10)])
    assert frames is not None
    assert frames.unlike(photo(215, 15)) == "" and frames.unlike(photo(245, 18)) == "1.2 times as bright"


def test_sizes_that_nobody_knows_say_nothing() -> None:
    frames = Frames.of([photo(120, 20)])
    assert frames is not None and frames.unlike(photo(120, 20), (1, 5000)) == ""


def test_constant_normals_are_no_measure() -> None:
    assert Frames.of([]) is None and Frames.of([photo(0, 0), photo(90, 0)]) is None
    frames = Frames.of([photo(0, 0), photo(120, 20)])
    assert frames is not None and frames.brightness.low > 100


def test_they_come_back_as_they_were_stored(frames: Frames) -> None:
    for one in (frames, Frames.of([photo(120, 20)])):
        assert one is not None and Frames.from_state(one.to_state()) == one
    assert Frames.from_state(None) is None
