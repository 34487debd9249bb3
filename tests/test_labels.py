import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from train.localiser.labels import CELL, CHANGED, IGNORED, SHOWN, UNCHANGED, label_cells

Pixels = NDArray[np.float32]


def image(height: int = 48, width: int = 64, seed: int = 0) -> Pixels:
    return np.random.default_rng(seed).integers(50, 200, (height, width, 3)).astype(np.float32)


def with_change(normal: Pixels, box: tuple[slice, slice], levels: float) -> Pixels:
    changed = normal.copy()
    changed[box] += np.float32(levels)
    return changed


def cells(box: tuple[slice, slice], shape: tuple[int, ...]) -> NDArray[np.bool_]:
    """(H/8,W/8): the cells that a box of whole cells covers."""
    pixels = np.zeros(shape[:2], bool)
    pixels[box] = True
    return pixels[::CELL, ::CELL]


@pytest.mark.parametrize("shape", [(8, 8), (48, 64), (160, 16)])
def test_there_is_a_label_of_each_cell_and_identical_images_are_unchanged(shape: tuple[int, int]) -> None:
    labels = label_cells(image(*shape), image(*shape))
    assert labels.shape == (shape[0] // 8, shape[1] // 8) and labels.dtype == np.int8
    assert (labels == UNCHANGED).all()


@settings(deadline=None, max_examples=40)
@given(
    st.tuples(st.integers(0, 5), st.integers(0, 7), st.integers(1, 6), st.integers(1, 8)),
    st.sampled_from([-40, -12, 12, 50]),
)
def test_a_visible_change_is_changed_there_and_nowhere_else(box: tuple[int, int, int, int], levels: int) -> None:
    top, left, rows, columns = (CELL * side for side in box)
    where = slice(top, top + rows), slice(left, left + columns)
    normal = image()
    labels = label_cells(normal, with_change(normal, where, levels))
    np.testing.assert_array_equal(labels, np.where(cells(where, normal.shape), CHANGED, UNCHANGED))


def test_a_change_of_one_channel_is_as_visible() -> None:
    normal = image()
    changed = normal.copy()
    changed[8:24, 16:32, 1] -= 20
    labels = label_cells(normal, changed)
    assert (labels == CHANGED).sum() == 4 and (labels[1:3, 2:4] == CHANGED).all()


@pytest.mark.parametrize("levels", [1, 4, -6])
def test_a_faint_change_is_ignored_where_it_is_and_unchanged_elsewhere(levels: float) -> None:
    normal = image()
    where = slice(8, 24), slice(16, 40)
    labels = label_cells(normal, with_change(normal, where, levels))
    np.testing.assert_array_equal(labels, np.where(cells(where, normal.shape), IGNORED, UNCHANGED))


def test_what_no_eye_and_no_8_bit_image_shows_is_unchanged() -> None:
    normal = image()
    assert (label_cells(normal, normal + np.float32(0.4)) == UNCHANGED).all()


def test_single_pixels_are_no_change_but_many_of_them_are_ignored() -> None:
    normal = image()
    some, many = normal.copy(), normal.copy()
    some[9, 17] += 100
    # Of each block of 4 x 4 a quarter differs, which is not more than a quarter.
    many[8:16:2, 16:24:2] += 100
    assert (label_cells(normal, some) == UNCHANGED).all()
    labels = label_cells(normal, many)
    assert labels[1, 2] == IGNORED and (np.delete(labels.ravel(), 1 * 8 + 2) == UNCHANGED).all()


@pytest.mark.parametrize(
    ("rows", "columns", "label"),
    [
        (4, 2, CHANGED),  # half of one block: 8 of 64 pixels
        (4, 4, CHANGED),
        (2, 3, IGNORED),  # shown by its block, but 6 of 64 pixels
        (1, 4, IGNORED),  # too few for its block
        (1, 3, UNCHANGED),  # 3 of 64 differ
    ],
)
def test_the_share_of_a_cell_that_must_be_changed(rows: int, columns: int, label: int) -> None:
    normal = image()
    labels = label_cells(normal, with_change(normal, (slice(16, 16 + rows), slice(24, 24 + columns)), 100))
    assert labels[2, 3] == label
    assert (np.delete(labels.ravel(), 2 * 8 + 3) == UNCHANGED).all()


def test_the_level_above_which_a_change_shows() -> None:
    normal = image()
    where = slice(0, 16), slice(0, 16)
    assert (label_cells(normal, with_change(normal, where, SHOWN))[:2, :2] == IGNORED).all()
    assert (label_cells(normal, with_change(normal, where, SHOWN + 1))[:2, :2] == CHANGED).all()


def test_labels_do_not_depend_on_which_of_two_images_is_the_normal() -> None:
    normal = image()
    negative = with_change(with_change(normal, (slice(3, 21), slice(10, 30)), 30), (slice(30, 44), slice(5, 50)), 7)
    labels = label_cells(normal, negative)
    np.testing.assert_array_equal(labels, label_cells(negative, normal))
    assert set(labels.ravel().tolist()) == {CHANGED, UNCHANGED, IGNORED}
