"""Images of one part share a group: copies, near copies, and those whose paths say so."""

from __future__ import annotations

from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from conftest import encode
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image
from scipy.ndimage import gaussian_filter

from pipeline.errors import UserError
from train.groups import MOST_COMPARED, group_by, group_of, groups_line

Pixels = NDArray[np.uint8]


def parts(count: int, seed: int = 0) -> list[Pixels]:
    """Grey textures (128,128,3), no two of one part."""
    noise = np.random.default_rng(seed).normal(0, 1, (count, 128, 128))
    smooth = [gaussian_filter(one, 2) for one in noise]
    return [np.repeat((128 + 30 * one / one.std()).clip(0, 255).astype(np.uint8)[..., None], 3, 2) for one in smooth]


def shot(image: Pixels, rng: np.random.Generator) -> Pixels:
    """Another photograph: turned by up to 2 degrees, shifted by 3 %, 5 % brighter or darker, with noise."""
    side = len(image)
    padded = Image.fromarray(np.pad(image, ((side // 8,) * 2, (side // 8,) * 2, (0, 0)), mode="edge"))
    moved = padded.rotate(
        rng.uniform(-2, 2), Image.Resampling.BICUBIC, translate=tuple(rng.uniform(-0.03, 0.03, 2) * side)
    )
    cut = np.asarray(moved.crop((side // 8, side // 8, side // 8 + side, side // 8 + side))).astype(float)
    return (cut * rng.uniform(0.95, 1.05) + rng.normal(0, 2, cut.shape[:2])[..., None]).clip(0, 255).astype(np.uint8)


def unknown(images: list[Pixels]) -> list[str]:
    return [""] * len(images)


def jpeg(image: Pixels) -> Pixels:
    return np.asarray(Image.open(BytesIO(encode(Image.fromarray(image), "JPEG", quality=75))).convert("RGB"))


def copies(images: list[Pixels]) -> list[list[Pixels]]:
    return [
        [jpeg(one) for one in images],
        [one[:, ::-1].copy() for one in images],
        [(one * 1.2).clip(0, 255).astype(np.uint8) for one in images],
    ]


def test_different_parts_are_alone() -> None:
    images = parts(12)
    assert group_of(images, unknown(images)).tolist() == list(range(12))


def test_four_shots_of_each_part_are_a_group() -> None:
    rng, sources = np.random.default_rng(0), parts(8)
    images = [shot(one, rng) for _ in range(4) for one in sources]
    labels = group_of(images, unknown(images))
    assert labels.tolist() == [*range(8)] * 4
    assert groups_line(labels) == "32 images look like 8 parts: groups of 4 are kept together"


def test_mirrored_compressed_and_brighter_copies_are_a_group() -> None:
    sources = parts(8)
    images = [*sources, *(one for kind in copies(sources) for one in kind)]
    assert group_of(images, unknown(images)).tolist() == [*range(8)] * 4


def test_real_cells_are_a_group_with_their_flipped_copies(elpv: dict[str, tuple[list[Path], list[Path]]]) -> None:
    files = elpv["poly"][0][:8]
    cells = [np.asarray(Image.open(path).convert("RGB").resize((128, 128))) for path in files]
    images = [*cells, *copies(cells)[1]]
    labels = group_of(images, unknown(images))
    assert (labels[:8] == labels[8:]).all()
    # Cells of one module may look the same: few do.
    assert len(set(labels.tolist())) >= 6


def test_copies_are_found_by_content_where_nothing_else_is_there_to_see() -> None:
    blank = [np.full((64, 64, 3), value, np.uint8) for value in (10, 10, 200)]
    assert group_of(blank, unknown(blank)).tolist() == [0, 0, 1]
    assert group_of(parts(3), ["a", "b", "a"]).tolist() == [0, 1, 0]
    assert group_of([], []).tolist() == []
    assert group_of(parts(1), [""]).tolist() == [0]


def test_of_very_many_images_only_the_digests_are_compared() -> None:
    def never_read() -> None:
        raise AssertionError("an image was read")

    class Unread:
        def __iter__(self) -> None:
            never_read()

    digests = [str(i // 2) for i in range(MOST_COMPARED + 2)]
    assert group_of(Unread(), digests).max() == MOST_COMPARED // 2  # type: ignore[arg-type]


@pytest.mark.slow
@settings(max_examples=3, deadline=None)
@given(st.lists(st.integers(0, 3), min_size=2, max_size=10), st.randoms(use_true_random=False))
def test_groups_are_the_same_in_any_order(which: list[int], random: object) -> None:
    sources = parts(4)
    order = list(range(len(which)))
    random.shuffle(order)  # type: ignore[attr-defined]
    images = [sources[i] for i in which]
    first, other = group_of(images, unknown(images)), group_of([images[i] for i in order], unknown(images))
    np.testing.assert_array_equal(first[:, None] == first, np.equal.outer(which, which))
    np.testing.assert_array_equal(other[:, None] == other, (first[:, None] == first)[np.ix_(order, order)])


def test_paths_name_the_groups() -> None:
    paths = ["a/p1_0.png", "a/p1_1.png", "b/p2_0.png", "b/other.png", "b/another.png"]
    assert group_by(paths, "folder").tolist() == [0, 0, 1, 1, 1]
    assert group_by(paths, r"(p\d+)_\d").tolist() == [0, 0, 1, 2, 3]
    assert group_by(paths, r"p\d+").tolist() == [0, 0, 1, 2, 3]


@pytest.mark.parametrize(("pattern", "says"), [("(", "is no regular expression"), ("xyz", "matches none of 2 paths")])
def test_an_expression_that_names_nothing_is_refused_in_one_line(pattern: str, says: str) -> None:
    with pytest.raises(UserError, match=says) as refused:
        group_by(["a.png", "b.png"], pattern)
    assert "\n" not in str(refused.value)


def test_the_line_says_how_large_groups_are() -> None:
    assert groups_line(np.arange(3)) is None
    assert groups_line(np.array([], np.int64)) is None
    assert groups_line(np.array([0, 0, 1])) == "3 images look like 2 parts: a group of 2 is kept together"
    assert (
        groups_line(np.array([0, 0, 1, 1, 1, 1])) == "6 images look like 2 parts: groups of about 3 are kept together"
    )
