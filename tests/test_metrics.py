from __future__ import annotations

import time
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy import ndimage
from sklearn.metrics import average_precision_score, f1_score, jaccard_score, roc_auc_score, roc_curve

from train.evaluation.image_metrics import defects_found, f1, good_kept, image_ap, image_auroc
from train.evaluation.metrics import METRICS, Scored, mean_and_standard_error, measure
from train.evaluation.pixel_metrics import PixelRanking, aupro, has_pixel_truth, iou, pixel_auroc

SEEDS = st.integers(0, 2**32 - 1)
PIXEL_METRICS = {"pixel_auroc", "aupro", "aupro_at_5", "iou"}


def _case(seed: int, levels: int) -> tuple[NDArray[np.bool_], NDArray[np.float32]]:
    """A few small images with many regions, the last one normal, and maps of few distinct scores."""
    rng = np.random.default_rng(seed)
    masks = rng.random((3, 7, 6)) < 0.3
    masks[-1] = False
    masks[0, 0, 0] = True
    maps = rng.integers(0, levels, masks.shape) + rng.integers(0, 2) * masks * levels / 3
    return masks, maps.astype(np.float32)


def _slow_aupro(masks: NDArray[np.bool_], maps: NDArray[np.float32], limit: float) -> float:
    """The definition, word by word: one threshold at a time, one region at a time."""
    regions = []
    for index, mask in enumerate(masks):
        labelled, count = ndimage.label(mask, structure=np.ones((3, 3)))
        regions += [(index, labelled == number + 1) for number in range(count)]
    points = [(0.0, 0.0)]
    for threshold in sorted(set(maps.ravel().tolist()), reverse=True):
        detected = maps >= threshold
        overlaps = [(detected[index] & region).sum() / region.sum() for index, region in regions]
        points.append((float(detected[~masks].mean()), float(np.mean(overlaps))))
    area = 0.0
    for (x0, y0), (x1, y1) in pairwise(points):
        if x0 >= limit or x1 == x0:
            continue
        end = min(x1, limit)
        y_end = y0 + (y1 - y0) * (end - x0) / (x1 - x0)
        area += (end - x0) * (y0 + y_end) / 2
    return area / limit


@given(seed=SEEDS, levels=st.sampled_from([1, 2, 5, 20, 10_000]), limit=st.sampled_from([0.05, 0.3, 0.77, 1.0]))
@settings(max_examples=150, deadline=None)
def test_aupro_is_its_definition(seed: int, levels: int, limit: float) -> None:
    masks, maps = _case(seed, levels)
    assert aupro(PixelRanking.of(masks, maps), limit) == pytest.approx(_slow_aupro(masks, maps, limit), abs=1e-12)


@given(seed=SEEDS, levels=st.sampled_from([1, 3, 10_000]))
@settings(max_examples=80, deadline=None)
def test_pixel_auroc_is_scikit_learns(seed: int, levels: int) -> None:
    masks, maps = _case(seed, levels)
    assert pixel_auroc(PixelRanking.of(masks, maps)) == pytest.approx(
        roc_auc_score(masks.ravel(), maps.ravel()), abs=1e-12
    )


@given(seed=SEEDS, levels=st.sampled_from([4, 50]))
@settings(deadline=None)
def test_pixel_figures_do_not_change_with_a_rising_function_or_the_order_of_images(seed: int, levels: int) -> None:
    masks, maps = _case(seed, levels)
    order = np.random.default_rng(seed).permutation(len(masks))
    for figure in (pixel_auroc, aupro):
        value = figure(PixelRanking.of(masks, maps))
        assert value is not None
        assert figure(PixelRanking.of(masks, maps**3 * 5 - 7)) == pytest.approx(value, abs=1e-12)
        assert figure(PixelRanking.of(masks[order], maps[order])) == pytest.approx(value, abs=1e-12)
        assert 0 <= value <= 1


def test_pixel_figures_of_known_maps() -> None:
    masks = _case(0, 2)[0]
    truth = masks.astype(np.float32)
    found = PixelRanking.of(masks, truth)
    assert pixel_auroc(found) == 1
    assert aupro(found) == pytest.approx(1)
    missed = PixelRanking.of(masks, -truth)
    assert pixel_auroc(missed) == 0
    assert aupro(missed) == 0
    # One score everywhere: the curve is the diagonal, so its mean up to 0.3 is 0.15.
    flat = PixelRanking.of(masks, 0 * truth)
    assert pixel_auroc(flat) == 0.5
    assert aupro(flat) == pytest.approx(0.15)


def test_aupro_counts_a_small_region_as_much_as_a_large_one() -> None:
    masks = np.zeros((1, 20, 20), dtype=bool)
    masks[0, :10, :10] = True
    masks[0, 15, 15] = True
    small_missed = masks.astype(np.float32)
    small_missed[0, 15, 15] = -1
    pixels = PixelRanking.of(masks, small_missed)
    assert aupro(pixels) == pytest.approx(0.5)
    assert (pixel_auroc(pixels) or 0) > 0.98


def test_diagonal_neighbours_are_one_region() -> None:
    masks = np.zeros((1, 10, 10), dtype=bool)
    masks[0, [0, 1, 2, 3, 9], [0, 1, 2, 3, 9]] = True
    chain_found = masks.astype(np.float32)
    chain_found[0, 9, 9] = -1
    # Two regions, the chain and the single pixel; with 4 neighbours there would be five, and four found.
    assert aupro(PixelRanking.of(masks, chain_found)) == pytest.approx(0.5)


def test_regions_do_not_reach_into_the_next_image() -> None:
    masks = np.zeros((2, 4, 4), dtype=bool)
    masks[0, -1], masks[1, 0] = True, True
    second_missed = masks.astype(np.float32)
    second_missed[1, 0] = -1
    assert aupro(PixelRanking.of(masks, second_missed)) == pytest.approx(0.5)


def test_figures_that_are_not_defined_are_none() -> None:
    maps = np.random.default_rng(0).random((2, 4, 4)).astype(np.float32)
    for masks in (np.zeros(maps.shape, dtype=bool), np.ones(maps.shape, dtype=bool)):
        pixels = PixelRanking.of(masks, maps)
        assert pixel_auroc(pixels) is None
        assert aupro(pixels) is None
    assert iou(PixelRanking.of(np.zeros(maps.shape, dtype=bool), maps), 0.5) is None
    for label in (0, 1):
        labels = np.full(5, label)
        assert image_auroc(labels, np.arange(5.0)) is None
        assert image_ap(labels, np.arange(5.0)) is None
        assert good_kept(labels, np.arange(5.0), 0.02) is defects_found(labels, np.arange(5.0), 0.02) is None


def test_anomalous_images_without_a_mask_are_left_out() -> None:
    masks, maps = _case(1, 5)
    unmarked = np.concatenate([masks, np.zeros_like(masks[:1])])
    with_high_scores = np.concatenate([maps, maps[:1] + 100])
    kept = has_pixel_truth(np.array([1, 1, 0, 1]), unmarked)
    assert kept.tolist() == [True, True, True, False]
    value = aupro(PixelRanking.of(masks, maps))
    assert aupro(PixelRanking.of(unmarked[kept], with_high_scores[kept])) == value
    assert aupro(PixelRanking.of(unmarked, with_high_scores)) != value


def test_what_cannot_be_ranked_is_refused() -> None:
    masks, maps = _case(0, 5)
    broken = maps.copy()
    broken[0, 0, 0] = np.nan
    with pytest.raises(ValueError, match="finite"):
        PixelRanking.of(masks, broken)
    with pytest.raises(ValueError, match="masks and maps"):
        PixelRanking.of(masks[:2], maps)
    with pytest.raises(ValueError, match="masks and maps"):
        PixelRanking.of(masks.astype(np.uint8), maps)  # type: ignore[arg-type]


@pytest.mark.parametrize("limit", [0.0, -0.1, 1.1, 30.0])
def test_aupro_refuses_a_limit_outside_0_to_1(limit: float) -> None:
    with pytest.raises(ValueError, match="false positive rate"):
        aupro(PixelRanking.of(*_case(0, 5)), fpr_limit=limit)


@pytest.mark.slow
def test_pixel_figures_of_a_large_category_take_seconds() -> None:
    rng = np.random.default_rng(0)
    masks = np.zeros((160, 256, 256), dtype=bool)
    for mask in masks[:110]:
        y, x = rng.integers(0, 220, 2)
        mask[y : y + 20, x : x + 30] = True
    maps = rng.standard_normal(masks.shape).astype(np.float32)
    start = time.perf_counter()
    assert aupro(PixelRanking.of(masks, maps)) == pytest.approx(0.15, abs=0.01)
    assert time.perf_counter() - start < 15


@given(seed=SEEDS, count=st.integers(2, 30))
def test_image_figures_are_scikit_learns(seed: int, count: int) -> None:
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 2, count)
    labels[:2] = 0, 1
    scores = rng.integers(0, 6, count).astype(np.float64)
    assert image_auroc(labels, scores) == roc_auc_score(labels, scores)
    assert image_ap(labels, scores) == average_precision_score(labels, scores)


@given(seed=SEEDS, levels=st.sampled_from([1, 3, 10_000]), chosen=st.lists(st.booleans(), min_size=3, max_size=3))
@settings(max_examples=80, deadline=None)
def test_the_pixels_of_some_images_are_ranked_as_if_there_were_no_others(
    seed: int, levels: int, chosen: list[bool]
) -> None:
    masks, maps = _case(seed, levels)
    images = np.array(chosen)
    some, alone = PixelRanking.of(masks, maps).select(images), PixelRanking.of(masks[images], maps[images])
    np.testing.assert_array_equal(some.scores, alone.scores)
    for figure in (pixel_auroc, aupro):
        assert figure(some) == pytest.approx(figure(alone), abs=1e-12)


def _images(seed: int, count: int, levels: int) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Labels and scores of images of both classes, higher for the anomalous, with ties where there are few levels."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 2, count)
    labels[:2] = 0, 1
    return labels, (rng.integers(0, levels, count) + labels * levels / 3).astype(np.float64)


@given(
    seed=SEEDS,
    count=st.integers(2, 300),
    levels=st.sampled_from([1, 4, 10_000]),
    share=st.sampled_from([0.0, 0.02, 0.05, 0.29, 0.5]),
)
@settings(max_examples=150, deadline=None)
def test_what_is_kept_and_found_at_a_share_is_the_best_point_of_the_roc_curve_that_keeps_it(
    seed: int, count: int, levels: int, share: float
) -> None:
    labels, scores = _images(seed, count, levels)
    flagged, found, _ = roc_curve(labels, scores, drop_intermediate=False)
    assert good_kept(labels, scores, share) == pytest.approx(1 - flagged[1 - found <= share + 1e-9].min())
    assert defects_found(labels, scores, share) == pytest.approx(found[flagged <= share + 1e-9].max())


def _anomalibs(labels: NDArray[np.int64], scores: NDArray[np.float64], share: float) -> tuple[float, float]:
    """PGn and PBn as anomalib 2.7 has them: by quantiles between two scores."""
    normal, anomalous = scores[labels == 0], scores[labels == 1]
    kept = (normal < np.quantile(anomalous, share)).mean()
    return float(kept), float((anomalous > np.quantile(normal, 1 - share)).mean())


@given(seed=SEEDS, levels=st.sampled_from([20, 10_000]))
@settings(max_examples=60, deadline=None)
def test_what_is_kept_and_found_is_anomalibs_where_its_quantile_is_a_score(seed: int, levels: int) -> None:
    rng = np.random.default_rng(seed)
    labels = rng.permutation(np.repeat([0, 1], 101))  # a quantile of 0.02 is the third of 101 scores
    scores = rng.integers(0, levels, 202) + labels * levels / 3
    ours = good_kept(labels, scores, 0.02), defects_found(labels, scores, 0.02)
    assert ours == pytest.approx(_anomalibs(labels, scores, 0.02))


def test_with_few_defects_none_is_missed_where_anomalib_misses_one() -> None:
    labels = np.repeat([0, 1], [10, 14])
    scores = np.concatenate([np.arange(10.0), [3.5, *[20.0] * 13]])
    assert good_kept(labels, scores, 0.02) == 0.4
    assert _anomalibs(labels, scores, 0.02)[0] == 0.8  # its threshold, 7.79, misses one of 14 defects: 7 %
    # The highest of ten normals may not be flagged, and so the anomalies below it are not found.
    assert defects_found(labels, scores, 0.02) == pytest.approx(13 / 14)


@given(seed=SEEDS, count=st.integers(1, 40), threshold=st.integers(-1, 7))
def test_f1_is_scikit_learns(seed: int, count: int, threshold: int) -> None:
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 2, count)
    flagged = rng.integers(0, 6, count) > threshold
    expected = f1_score(labels, flagged, zero_division=0) if 0 < labels.sum() < count else None
    assert f1(labels, flagged) == (None if expected is None else pytest.approx(expected))


@given(seed=SEEDS, levels=st.sampled_from([1, 3, 10_000]), place=st.floats(-0.1, 1.1))
@settings(max_examples=80, deadline=None)
def test_iou_is_scikit_learns_jaccard_score(seed: int, levels: int, place: float) -> None:
    masks, maps = _case(seed, levels)
    # Also a score of the map itself, which is not above the threshold.
    for threshold in (place * levels, float(maps.ravel()[seed % maps.size])):
        expected = jaccard_score(masks.ravel(), maps.ravel() > threshold)
        assert iou(PixelRanking.of(masks, maps), threshold) == pytest.approx(expected)


def scored(masks: NDArray[np.bool_], maps: NDArray[np.float32], *, masked: bool = True) -> Scored:
    """Images whose score is the highest of their map, flagged above the median of the scores."""
    labels, scores = masks.any(axis=(1, 2)).astype(np.int64), maps.max(axis=(1, 2)).astype(np.float64)
    ranked = slice(None) if masked else slice(0)
    pixels = PixelRanking.of(masks[ranked], maps[ranked])
    return Scored(labels, scores, scores > np.median(scores), pixels, float(np.quantile(maps, 0.9)))


def test_every_metric_is_measured_once_and_without_masks_those_of_images_alone() -> None:
    masks, maps = _case(2, 50)
    images = scored(masks, maps)
    measured, pixels = measure(images), images.pixels
    assert measured == {
        "image_auroc": image_auroc(images.labels, images.scores),
        "image_ap": image_ap(images.labels, images.scores),
        "good_kept_at_2": good_kept(images.labels, images.scores, 0.02),
        "defects_found_at_2": defects_found(images.labels, images.scores, 0.02),
        "f1": f1(images.labels, images.flagged),
        "pixel_auroc": pixel_auroc(pixels),
        "aupro": aupro(pixels, 0.3),
        "aupro_at_5": aupro(pixels, 0.05),
        "iou": iou(pixels, images.map_threshold),
    }
    assert [metric.name for metric in METRICS] == list(measured) and None not in measured.values()
    without = measure(scored(masks, maps, masked=False))
    assert without == {name: None if name in PIXEL_METRICS else value for name, value in measured.items()}


@given(seed=SEEDS, levels=st.sampled_from([1, 3, 10_000]), kept=st.sampled_from([[2], [0, 1], [0, 2], [0, 1, 2], []]))
@settings(max_examples=80, deadline=None)
def test_every_metric_is_in_0_to_1_or_none_whatever_images_there_are(seed: int, levels: int, kept: list[int]) -> None:
    masks, maps = (array[kept] for array in _case(seed, levels))
    if not kept:
        labels, scores = np.zeros(0, np.int64), np.zeros(0)
        images = Scored(labels, scores, labels == 1, PixelRanking.of(masks, maps), 0.5)
    else:
        images = scored(masks, maps)
    for name, value in measure(images).items():
        assert value is None or (type(value) is float and 0 <= value <= 1), name


def test_mean_and_standard_error() -> None:
    mean, error = mean_and_standard_error([0.8, 0.9, 1.0, 0.9])
    assert mean == pytest.approx(0.9)
    assert error == pytest.approx(np.sqrt(0.02 / 3) / 2)
    assert mean_and_standard_error([0.7]) == (0.7, None)
    for bad in ([], [0.5, float("nan")]):
        with pytest.raises(ValueError, match="mean needs"):
            mean_and_standard_error(bad)
