from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from pipeline.pairs import draw_pairs
from pipeline.settings import PrecomputeSettings
from pipeline.swap import swap_patches
from train.negatives.cutpaste import paste, scar
from train.negatives.defects import blob, blur, line, noise
from train.negatives.exchange import draw_feather, draw_shape, exchange
from train.negatives.make import KINDS, make_negative
from train.negatives.stream import Normal
from train.settings import NEGATIVES

SIZE, STAGES, PAIRS = 64, 2, 4
SETTINGS = PrecomputeSettings(image_size=SIZE, stages=("blocks.1", "blocks.4"), pairs=PAIRS)
# Sigma of the softest border is 3, and a border reaches two of them.
REACH = 6
SHAPES = [(32, 32), (64, 40), (40, 64), (33, 150)]
DEFECTS = [blob, noise, blur, line]

Pixels = NDArray[np.float32]
Box = tuple[int, int, int, int, int, int]
Exchanges = list[list[int]]


def noise_image(height: int = SIZE, width: int = SIZE, seed: int = 0) -> Pixels:
    """(height,width,3) of whole levels: hardly two pixels are the same."""
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3)).astype(np.float32)


def drawn_pairs(count: int, size: int, area: tuple[float, float]) -> NDArray[np.int16]:
    """(count,6) pairs, all different."""
    anywhere = torch.zeros(count, 16, 16, dtype=torch.uint8)
    keys = np.arange(count, dtype=np.uint64)
    return draw_pairs(anywhere, keys, pairs=1, image_size=size, area=area, aspect=(0.3, 3.3))[0][:, 0].numpy()


@pytest.fixture(scope="module")
def normal() -> Normal:
    """Noise, with pairs that are all different."""
    pairs = drawn_pairs(STAGES * PAIRS, SIZE, (0.01, 0.1)).reshape(STAGES, PAIRS, 6)
    return Normal(noise_image(), pairs, SETTINGS)


def make(kind: str, normal: Normal, seed: int = 0) -> Pixels:
    return make_negative(kind, normal, np.random.default_rng(seed))


def changed(image: Pixels, negative: Pixels) -> NDArray[np.bool_]:
    """(H,W): where any channel differs."""
    different: NDArray[np.bool_] = (image != negative).any(2)
    return different


def extent(where: NDArray[np.bool_]) -> tuple[slice, slice]:
    """The smallest box around what is true."""
    rows, columns = np.flatnonzero(where.any(1)), np.flatnonzero(where.any(0))
    return slice(rows[0], rows[-1] + 1), slice(columns[0], columns[-1] + 1)


def patches(pair: Box, shape: tuple[int, ...], margin: int = 0) -> NDArray[np.bool_]:
    """(H,W): where the two patches of a pair are, and so many pixels around them."""
    where = np.zeros(shape[:2], bool)
    y1, x1, y2, x2, height, width = pair
    for y, x in ((y1, x1), (y2, x2)):
        where[max(0, y - margin) : y + height + margin, max(0, x - margin) : x + width + margin] = True
    return where


def sorted_pixels(image: Pixels) -> Pixels:
    flat = image.reshape(-1, 3)
    return flat[np.lexsort(flat.T)]


def places(height: int, width: int) -> Pixels:
    """(height,width,3): the row and the column of each pixel, and a third channel of one level."""
    y, x = np.mgrid[:height, :width].astype(np.float32)
    return np.stack([y, x, np.full_like(y, 100)], 2)


# --- the exchange of two patches ----------------------------------------------------------------------------------


@st.composite
def images_and_pairs(draw: st.DrawFn) -> tuple[Pixels, Box]:
    """An image, mostly not square, and disjoint patches inside it that may touch each other and its border."""
    vertical = draw(st.booleans())
    first, second, across = (draw(st.integers(1, 24)) for _ in range(3))
    side = min(first, second)
    before, between, behind, shift, other = (draw(st.integers(0, 9)) for _ in range(5))
    along_1, along_2 = before, before + side + between
    long, short = along_2 + side + behind, across + max(shift, other)
    seed = draw(st.integers(0, 2**32))
    if vertical:
        return noise_image(long, short, seed), (along_1, shift, along_2, other, side, across)
    return noise_image(short, long, seed), (shift, along_1, other, along_2, across, side)


@settings(deadline=None, max_examples=60)
@given(images_and_pairs(), st.integers(0, 2**32))
def test_an_exchange_keeps_the_sum_and_stays_within_the_feathered_patches(case: tuple[Pixels, Box], seed: int) -> None:
    image, pair = case
    after = image.copy()
    exchange(after, pair, np.random.default_rng(seed))
    assert after.dtype == np.float32 and after.shape == image.shape
    np.testing.assert_allclose(after.sum((0, 1), np.float64), image.sum((0, 1), np.float64), rtol=0, atol=0.05)
    assert not (changed(image, after) & ~patches(pair, image.shape, REACH)).any()


@settings(deadline=None, max_examples=60)
@given(images_and_pairs(), st.integers(0, 2**32))
def test_a_hard_exchange_permutes_pixels_of_the_patches_alone(case: tuple[Pixels, Box], seed: int) -> None:
    image, pair = case
    after = image.copy()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("train.negatives.exchange.draw_feather", lambda rng: 0.0)
        exchange(after, pair, np.random.default_rng(seed))
    np.testing.assert_array_equal(sorted_pixels(after), sorted_pixels(image))
    assert not (changed(image, after) & ~patches(pair, image.shape)).any()


@settings(deadline=None, max_examples=60)
@given(images_and_pairs(), st.integers(0, 2**32))
def test_a_hard_rectangle_of_the_whole_patch_is_the_swap(case: tuple[Pixels, Box], seed: int) -> None:
    image, pair = case
    after = image.copy()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("train.negatives.exchange._SHRINK", (1.0, 1.0))
        patch.setattr("train.negatives.exchange._RECTANGLES", 1.0)
        patch.setattr("train.negatives.exchange._HARD", 1.0)
        exchange(after, pair, np.random.default_rng(seed))
    np.testing.assert_array_equal(after, swap_patches(image.astype(np.uint8), pair))


def test_patches_shrink_about_their_centres_to_a_quarter_at_most(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("train.negatives.exchange._RECTANGLES", 1.0)
    monkeypatch.setattr("train.negatives.exchange._HARD", 1.0)
    image, pair = noise_image(40, 90), (2, 3, 7, 50, 20, 36)
    sides = []
    for seed in range(200):
        after = image.copy()
        exchange(after, pair, np.random.default_rng(seed))
        left = changed(image, after)
        left[:, 45:] = False
        rows, columns = extent(left)
        assert left[rows, columns].all()
        assert abs((rows.start + rows.stop) / 2 - 12) <= 0.5 and abs((columns.start + columns.stop) / 2 - 21) <= 0.5
        sides.append((rows.stop - rows.start, columns.stop - columns.start))
    heights, widths = np.array(sides).T
    assert heights.min() in (5, 6) and heights.max() in (19, 20)
    assert widths.min() in (9, 10) and widths.max() in (35, 36)
    # One factor for both sides, and log-uniform: half of the patches are of at most half of the side.
    assert abs(heights / 20 - widths / 36).max() < 0.05
    assert 0.4 < (widths <= 18).mean() < 0.6


@pytest.mark.parametrize(("side", "least"), [(1, 1), (2, 2), (3, 3), (9, 3)])
def test_patches_do_not_shrink_below_three_pixels(monkeypatch: pytest.MonkeyPatch, side: int, least: int) -> None:
    drawn = []

    def shape(rows: int, columns: int, rng: np.random.Generator) -> Pixels:
        drawn.append((rows, columns))
        return draw_shape(rows, columns, rng)

    monkeypatch.setattr("train.negatives.exchange.draw_shape", shape)
    for seed in range(200):
        exchange(np.zeros((12, 24, 3), np.float32), (1, 1, 2, 12, side, side), np.random.default_rng(seed))
    assert min(rows for rows, _ in drawn) == least and max(rows for rows, _ in drawn) == side


def test_a_soft_border_blends_and_a_hard_one_does_not() -> None:
    image = np.zeros((40, 80, 3), np.float32)
    image[:, 40:] = 200
    soft = 0
    for seed in range(100):
        after = image.copy()
        exchange(after, (10, 10, 12, 50, 18, 18), np.random.default_rng(seed))
        soft += not np.isin(after, (0, 200)).all()
        assert after.min() >= 0 and after.max() <= 200 + 1e-3
    assert 45 <= soft <= 75


def test_soft_borders_lie_outside_the_patch() -> None:
    image = np.zeros((60, 120, 3), np.float32)
    image[:, 60:] = 200
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("train.negatives.exchange._SHRINK", (1.0, 1.0))
        patch.setattr("train.negatives.exchange._RECTANGLES", 1.0)
        patch.setattr("train.negatives.exchange.draw_feather", lambda rng: 2.0)
        exchange(image, (20, 20, 20, 80, 20, 20), np.random.default_rng(0))
    profile = image[30, 10:50, 0]
    assert profile[5] == 0 and 0 < profile[8] < 100 < profile[11] < 200 and profile[20] == pytest.approx(200, abs=0.1)
    np.testing.assert_allclose(profile, profile[::-1], atol=1e-3)


def test_masks_are_rectangles_ellipses_and_blobs() -> None:
    masks = [draw_shape(15, 21, np.random.default_rng(seed)) for seed in range(300)]
    assert all(mask.shape == (15, 21) and mask.dtype == np.float32 and set(np.unique(mask)) <= {0, 1} for mask in masks)
    filled = np.array([mask.mean() for mask in masks])
    ellipses = [mask for mask in masks if np.array_equal(mask, mask[::-1]) and 0 < mask.mean() < 1]
    assert 0.3 < (filled == 1).mean() < 0.5 and 0.2 < len(ellipses) / len(masks) < 0.4
    assert len({mask.tobytes() for mask in ellipses}) == 1
    assert ellipses[0].mean() == pytest.approx(np.pi / 4, abs=0.05)
    assert len({mask.tobytes() for mask in masks}) > 50


@settings(deadline=None)
@given(st.integers(1, 20), st.integers(1, 20), st.integers(0, 2**32))
def test_a_mask_is_never_empty(rows: int, columns: int, seed: int) -> None:
    assert draw_shape(rows, columns, np.random.default_rng(seed)).any()


def test_sigmas_of_soft_borders() -> None:
    rng = np.random.default_rng(0)
    sigmas = np.array([draw_feather(rng) for _ in range(500)])
    soft = sigmas[sigmas > 0]
    assert 0.33 < (sigmas == 0).mean() < 0.47
    assert 0.5 <= soft.min() < 0.6 and 2.9 < soft.max() <= 3


# --- every kind ---------------------------------------------------------------------------------------------------


def test_there_is_a_negative_of_every_kind_that_the_settings_take() -> None:
    assert set(KINDS) == {*NEGATIVES} - {"none"}


@pytest.mark.parametrize("kind", KINDS)
def test_a_negative_differs_from_its_normal_and_leaves_it_alone(kind: str, normal: Normal) -> None:
    before, pairs = normal.image.copy(), normal.pairs.copy()
    for seed in range(60):
        negative = make(kind, normal, seed)
        assert negative.shape == before.shape and negative.dtype == np.float32
        assert negative.min() >= 0 and negative.max() <= 255
        assert changed(before, negative).any() and not changed(before, negative).all()
    np.testing.assert_array_equal(normal.image, before)
    np.testing.assert_array_equal(normal.pairs, pairs)


@pytest.mark.parametrize("kind", KINDS)
def test_the_generator_decides_every_bit(kind: str, normal: Normal) -> None:
    first, second, other = (make(kind, normal, seed) for seed in (5, 5, 6))
    np.testing.assert_array_equal(first, second)
    assert changed(first, other).any()


@pytest.mark.parametrize("kind", ["cutswap", "random-swap"])
def test_soft_swaps_of_patches_that_touch_stay_on_the_scale_of_the_image(
    kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Both borders reach into the other patch, and the image's own border cuts one side of them off.
    monkeypatch.setattr("train.negatives.exchange._SHRINK", (1.0, 1.0))
    monkeypatch.setattr("train.negatives.exchange._RECTANGLES", 1.0)
    monkeypatch.setattr("train.negatives.exchange.draw_feather", lambda rng: 3.0)
    extremes = np.where(noise_image(seed=3) < 128, 0, 255).astype(np.float32)
    pairs = np.array([[[10, 0, 10, 12, 12, 12]]], np.int16)
    crowded = PrecomputeSettings(image_size=SIZE, stages=("blocks.1",), pairs=1, patch_area=(0.2, 0.25))
    for seed in range(30):
        negative = make(kind, Normal(extremes, pairs, crowded), seed)
        assert negative.min() >= 0 and negative.max() <= 255


# --- swaps --------------------------------------------------------------------------------------------------------


@pytest.fixture
def exchanged(monkeypatch: pytest.MonkeyPatch) -> Exchanges:
    """The pairs that are exchanged, in their order."""
    seen: Exchanges = []

    def spied(image: Pixels, pair: list[int], rng: np.random.Generator) -> None:
        seen.append(list(pair))
        exchange(image, pair, rng)

    monkeypatch.setattr("train.negatives.make.exchange", spied)
    return seen


def test_cutswap_exchanges_one_to_three_cached_pairs(normal: Normal, exchanged: Exchanges) -> None:
    cached = normal.pairs.reshape(-1, 6).tolist()
    counts, used = set(), set()
    for seed in range(60):
        exchanged.clear()
        negative = make("cutswap", normal, seed)
        assert all(pair in cached for pair in exchanged)
        near = np.any([patches((*pair,), normal.image.shape, REACH) for pair in exchanged], 0)  # type: ignore[arg-type]
        assert not (changed(normal.image, negative) & ~near).any()
        counts.add(len(exchanged))
        used |= {cached.index(pair) for pair in exchanged}
    assert counts == {1, 2, 3} and used == set(range(STAGES * PAIRS))


def test_random_swap_exchanges_one_to_three_pairs_of_the_sizes_of_cutswap(normal: Normal, exchanged: Exchanges) -> None:
    low, high = np.array(SETTINGS.patch_area) * SIZE**2
    counts = set()
    for seed in range(60):
        exchanged.clear()
        make("random-swap", normal, seed)
        counts.add(len(exchanged))
        for y1, x1, y2, x2, height, width in exchanged:
            assert 0.7 * low <= height * width <= 1.3 * high
            assert min(y1, x1, y2, x2) >= 0 and max(y1, y2) + height <= SIZE and max(x1, x2) + width <= SIZE
            assert abs(y1 - y2) >= height or abs(x1 - x2) >= width
    assert counts == {1, 2, 3}


def test_random_swaps_reach_every_part_of_the_image_and_do_not_read_the_pairs(
    normal: Normal, exchanged: Exchanges
) -> None:
    other = Normal(normal.image, normal.pairs[::-1, ::-1], normal.settings)
    reached = np.zeros((SIZE, SIZE), bool)
    for seed in range(150):
        negative = make("random-swap", normal, seed)
        if seed < 10:
            np.testing.assert_array_equal(negative, make("random-swap", other, seed))
    for pair in exchanged:
        reached |= patches((*pair,), normal.image.shape)  # type: ignore[arg-type]
    assert reached.all()


# --- which of several ---------------------------------------------------------------------------------------------


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, int]]:
    """How often each way of making a negative was taken, in place of which nothing happens."""
    counts: dict[str, int] = {}

    def counting(name: str) -> Callable[[Any, np.random.Generator], Pixels]:
        def count(_: object, rng: np.random.Generator) -> Pixels:
            counts[name] = counts.get(name, 0) + 1
            return np.zeros((1, 1, 3), np.float32)

        return count

    names = "scar", "blob", "paste", "noise", "blur", "line"
    monkeypatch.setattr("train.negatives.make._OTHERS", tuple(map(counting, names)))
    for name in ("_cutswap", "paste", "scar"):
        monkeypatch.setattr(f"train.negatives.make.{name}", counting(name.removeprefix("_")))
    yield counts


def test_half_of_a_mix_is_cutswap_and_the_others_share_the_rest(normal: Normal, counted: dict[str, int]) -> None:
    rng = np.random.default_rng(0)
    for _ in range(3000):
        make_negative("mix", normal, rng)
    assert 0.47 < counted.pop("cutswap") / 3000 < 0.53
    assert len(counted) == 6 and all(0.065 < count / 3000 < 0.102 for count in counted.values())


def test_three_ways_are_half_pastes_and_half_scars(normal: Normal, counted: dict[str, int]) -> None:
    rng = np.random.default_rng(0)
    for _ in range(1000):
        make_negative("cutpaste-3way", normal, rng)
    assert counted.keys() == {"paste", "scar"} and 0.45 < counted["paste"] / 1000 < 0.55


# --- cutpaste -----------------------------------------------------------------------------------------------------


@pytest.fixture
def without_jitter(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("train.negatives.cutpaste._JITTER", 0.0)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.usefixtures("without_jitter")
def test_a_paste_is_one_box_of_the_image_put_elsewhere(shape: tuple[int, int]) -> None:
    image = places(*shape)
    before = image.copy()
    moved = set()
    for seed in range(40):
        pasted = paste(image, np.random.default_rng(seed))
        np.testing.assert_array_equal(image, before)
        # Without jitter only rounding changes what is pasted onto its own place.
        shift = np.rint(pasted - image)
        where = (shift != 0).any(2)
        if not where.any():
            continue
        rows, columns = extent(where)
        assert where[rows, columns].all()
        assert len(np.unique(shift[rows, columns].reshape(-1, 3), axis=0)) == 1
        dy, dx, _ = shift[rows.start, columns.start].astype(int).tolist()
        moved.add((dy, dx))
        assert rows.start + dy >= 0 and rows.stop + dy <= shape[0]
        assert columns.start + dx >= 0 and columns.stop + dx <= shape[1]
    assert len(moved) > 20


def test_pastes_have_the_areas_and_aspects_of_the_paper() -> None:
    shape = 64, 80
    image = noise_image(*shape)
    boxes = []
    for seed in range(200):
        rows, columns = extent(changed(image, paste(image, np.random.default_rng(seed))))
        boxes.append((rows.stop - rows.start, columns.stop - columns.start))
    heights, widths = np.array(boxes).T
    areas, aspects = heights * widths / np.prod(shape), widths / heights
    # Rounding to whole pixels changes both a little.
    assert 0.015 <= areas.min() < 0.025 and 0.13 < areas.max() <= 0.165
    assert 0.25 <= aspects.min() < 0.4 and 2.5 < aspects.max() <= 3.7


@pytest.mark.parametrize("cut", [paste, scar])
def test_pasted_colours_are_jittered_by_a_tenth(cut: Callable[[Pixels, np.random.Generator], Pixels]) -> None:
    # On grey without texture the jitter of brightness alone shows.
    grey = np.full((SIZE, SIZE, 3), 200, np.float32)
    levels = []
    for seed in range(200):
        after = cut(grey, np.random.default_rng(seed))
        levels.append(float(after[changed(grey, after)].mean()))
    assert 180 - 1e-2 <= min(levels) < 183 and 217 < max(levels) <= 220 + 1e-2


@pytest.mark.parametrize("shape", SHAPES)
def test_a_scar_is_thin_and_small_whatever_the_shape_of_the_image(shape: tuple[int, int]) -> None:
    image = noise_image(*shape)
    scale = min(shape) / 256
    areas, spans = [], []
    for seed in range(150):
        scarred = scar(image, np.random.default_rng(seed))
        assert scarred.shape == image.shape and scarred.dtype == np.float32
        y, x = np.nonzero(changed(image, scarred))
        areas.append(len(y))
        spans.append(max(np.ptp(y), np.ptp(x)) + 1 if len(y) else 0)
    assert np.count_nonzero(areas) == 150
    # In a small image a scar is at least 2 x 6 pixels.
    width, length = max(2.0, 16 * scale), max(6.0, 25 * scale)
    assert max(areas) <= (width + 1) * (length + 1)
    assert max(spans) <= np.hypot(width, length) + 2


def test_the_mean_area_of_scars_is_that_of_the_paper() -> None:
    image = noise_image(256, 256)
    areas = [changed(image, scar(image, np.random.default_rng(seed))).sum() for seed in range(150)]
    assert np.mean(areas) == pytest.approx(9 * 17.5, rel=0.2)


@pytest.mark.parametrize("shape", [(256, 256), (180, 250)])
@pytest.mark.usefixtures("without_jitter")
def test_a_scar_is_an_upright_patch_of_the_image_turned(shape: tuple[int, int]) -> None:
    image = places(*shape)
    angles = []
    for seed in range(50):
        scarred = np.rint(scar(image, np.random.default_rng(seed)))
        y, x = np.nonzero((scarred != image).any(2))
        # Of a narrow one rounding hides the turn.
        if len(y) == 0 or np.linalg.eigvalsh(np.cov(y, x))[0] < 4:
            continue
        to = np.stack([y, x, np.ones(len(y))], 1)
        source = scarred[y, x, :2].astype(float)
        assert source.min() >= 0 and (source < shape).all()
        turn = np.linalg.lstsq(to, source, rcond=None)[0]
        # A rotation, but for the rounding to whole pixels of the source.
        np.testing.assert_allclose(turn[:2] @ turn[:2].T, np.eye(2), atol=0.25)
        assert abs(to @ turn - source).max() < 1.2
        angles.append(np.degrees(np.arctan2(turn[0, 1], turn[0, 0])))
    assert len(angles) > 10 and max(map(abs, angles)) < 50 and min(angles) < -20 and max(angles) > 20


def test_scars_reach_to_two_pixels_of_every_border() -> None:
    shape = 48, 80
    image = noise_image(*shape)
    reached = np.zeros(shape, bool)
    for seed in range(400):
        reached |= changed(image, scar(image, np.random.default_rng(seed)))
    assert all(edge.any() for edge in (reached[:2], reached[-2:], reached[:, :2], reached[:, -2:]))


# --- drawn defects ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("defect", DEFECTS)
@pytest.mark.parametrize("shape", SHAPES)
def test_a_defect_changes_a_small_part_of_any_image(
    defect: Callable[[Pixels, np.random.Generator], Pixels], shape: tuple[int, int]
) -> None:
    image = noise_image(*shape)
    before = image.copy()
    shares = []
    for seed in range(60):
        drawn = defect(image, np.random.default_rng(seed))
        assert drawn.shape == image.shape and drawn.dtype == np.float32
        assert drawn.min() >= 0 and drawn.max() <= 255
        shares.append(float((abs(drawn - image).max(2) > 2).mean()))
    np.testing.assert_array_equal(image, before)
    assert min(shares) > 0 and max(shares) < 0.5 and np.median(shares) < 0.2


@pytest.mark.parametrize("defect", [blob, line])
def test_blobs_and_lines_are_lighter_or_darker_and_never_both(
    defect: Callable[[Pixels, np.random.Generator], Pixels],
) -> None:
    grey = np.full((SIZE, 80, 3), 128, np.float32)
    peaks = []
    for seed in range(100):
        difference = defect(grey, np.random.default_rng(seed)) - grey
        assert (difference >= 0).all() or (difference <= 0).all()
        np.testing.assert_array_equal(difference[..., 0], difference[..., 2])
        peaks.append(float(difference.flat[abs(difference).argmax()]))
    assert min(peaks) < -60 and max(peaks) > 60 and max(map(abs, peaks)) <= 80 + 1e-3
    assert np.median(np.abs(peaks)) > 15


def test_noise_is_the_same_in_the_three_channels() -> None:
    grey = np.full((SIZE, SIZE, 3), 128, np.float32)
    for seed in range(20):
        difference = noise(grey, np.random.default_rng(seed)) - grey
        np.testing.assert_allclose(difference[..., 0], difference[..., 1], atol=1e-3)
        assert difference.min() < 0 < difference.max()


def test_a_blur_takes_detail_away_and_keeps_a_flat_image() -> None:
    image, flat = noise_image(), np.full((SIZE, SIZE, 3), 90, np.float32)
    for seed in range(20):
        blurred = blur(image, np.random.default_rng(seed))
        where = abs(blurred - image).max(2) > 2
        assert blurred[where].std() < image[where].std()
        np.testing.assert_allclose(blur(flat, np.random.default_rng(seed)), flat, atol=1e-3)


@pytest.mark.parametrize("shape", [(33, 32), (32, 150)])
def test_a_line_always_starts_inside_the_image(shape: tuple[int, int]) -> None:
    # A third of these images' rows or columns are near a border.
    grey = np.full((*shape, 3), 128, np.float32)
    peaks = [abs(line(grey, np.random.default_rng(seed)) - grey).max() for seed in range(500)]
    assert min(peaks) >= 15 - 1e-3
