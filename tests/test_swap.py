import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from pipeline.pairs import draw_pairs
from pipeline.swap import swap_patches

SIZE = 40


def numbered(count: int) -> NDArray[np.uint8]:
    """(count,SIZE,SIZE,3) uint8 in which the three channels of a pixel name its image, row and column."""
    return np.stack(np.meshgrid(*map(np.arange, (count, SIZE, SIZE)), indexing="ij"), -1).astype(np.uint8)


@st.composite
def pairs(draw: st.DrawFn) -> NDArray[np.int16]:
    """(B,6) pairs of any size that the settings allow, as `draw_pairs` makes them."""
    keys = np.array(draw(st.lists(st.integers(0, 2**64 - 1), min_size=1, max_size=6)), np.uint64)
    largest = draw(st.sampled_from([0.01, 0.1, 0.25]))
    labels = torch.zeros(len(keys), 10, 10, dtype=torch.uint8)
    boxes, _ = draw_pairs(labels, keys, pairs=1, image_size=SIZE, area=(0.002, largest), aspect=(0.1, 10))
    return boxes[:, 0].numpy()


@settings(deadline=None)
@given(pairs())
def test_a_swap_moves_the_two_patches_and_nothing_else(boxes: NDArray[np.int16]) -> None:
    for image, box in zip(numbered(len(boxes)), boxes, strict=True):
        before = image.copy()
        swapped = swap_patches(image, box)
        np.testing.assert_array_equal(image, before)
        y1, x1, y2, x2, height, width = box.tolist()
        expected = (
            np.add.outer(np.arange(height), np.zeros(width, int)),
            np.add.outer(np.zeros(height, int), np.arange(width)),
        )
        for y, x, from_y, from_x in ((y1, x1, y2, x2), (y2, x2, y1, x1)):
            patch = swapped[y : y + height, x : x + width]
            np.testing.assert_array_equal(patch[..., 1], expected[0] + from_y)
            np.testing.assert_array_equal(patch[..., 2], expected[1] + from_x)
            swapped[y : y + height, x : x + width] = image[y : y + height, x : x + width]
        np.testing.assert_array_equal(swapped, image)


@settings(deadline=None)
@given(pairs())
def test_a_swap_permutes_the_pixels_and_undoes_itself(boxes: NDArray[np.int16]) -> None:
    for image, box in zip(numbered(len(boxes)), boxes, strict=True):
        swapped = swap_patches(image, box)
        names = [pixels.reshape(-1, 3).astype(int) @ [10_000, 100, 1] for pixels in (swapped, image)]
        np.testing.assert_array_equal(np.sort(names[0]), names[1])
        assert (swapped != image).any(-1).sum() == 2 * int(box[4]) * int(box[5])
        np.testing.assert_array_equal(swap_patches(swapped, box), image)
