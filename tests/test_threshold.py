"""Thresholds from unseen normals, the rate of false positives they keep, and p-values."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import beta

from train.threshold import FalsePositives, normals_for, p_value, threshold_at

SCORES = st.lists(st.integers(-5, 5) | st.floats(-1e6, 1e6).map(lambda x: round(x, 4)), min_size=1, max_size=60)


@given(scores=SCORES, rate=st.floats(0, 1, exclude_max=True))
def test_a_threshold_is_the_least_score_whose_expected_rate_is_kept(scores: list[float], rate: float) -> None:
    values = np.array(scores, dtype=np.float64)
    threshold = threshold_at(values, rate)
    assert 0 <= (threshold - values[np.abs(values - threshold).argmin()]) < 1.01e-4  # it is rounded up
    expected = FalsePositives.of(scores, threshold)
    assert expected.estimate <= rate + 1e-9 or expected.above == 0
    for lower in values[values < threshold - 1.01e-4]:
        assert FalsePositives.of(scores, lower).estimate > rate - 1e-9


def test_a_threshold_of_few_normals_is_their_highest_score() -> None:
    values = np.random.default_rng(0).permutation(40).astype(np.float64)
    assert threshold_at(values, 0.01) == 39
    assert threshold_at(values, 0.0) == 39
    assert threshold_at(values, 2 / 41) == 38
    assert threshold_at(np.arange(99.0), 0.01) == threshold_at(np.arange(98.0), 0.01) + 1 == 98
    assert threshold_at(np.arange(199.0), 0.01) == 197
    assert threshold_at(np.arange(99.0), 0.29) == 70
    assert threshold_at(np.array([1.00001, 0.5]), 0.01) == 1.0001  # rounded up


@pytest.mark.parametrize(("scores", "rate"), [([], 0.1), ([1.0, np.nan], 0.1), ([1.0], 1.0), ([1.0], -0.1)])
def test_a_threshold_refuses_what_has_no_quantile(scores: list[float], rate: float) -> None:
    with pytest.raises(ValueError, match=r"threshold needs|rate of false positives"):
        threshold_at(np.array(scores), rate)


@pytest.mark.parametrize(("above", "count"), [(0, 60), (1, 150), (5, 30), (0, 1), (2, 2)])
def test_rates_are_those_of_scipy(above: int, count: int) -> None:
    found = FalsePositives.of(range(count), count - 1.0 - above)
    assert found == FalsePositives(above, count) and found.estimate == (above + 1) / (count + 1)
    if above < count:
        assert found.low == pytest.approx(beta.ppf(0.05, above + 1, count - above))
        assert found.high == pytest.approx(beta.ppf(0.95, above + 1, count - above))
        assert 0 < found.low <= found.high < 1


def test_the_highest_of_sixty_normals_keeps_less_than_two_percent() -> None:
    found = FalsePositives(0, 60)
    assert (round(100 * found.estimate, 1), round(100 * found.high, 1)) == (1.6, 4.9)
    assert normals_for(0.01) == 99 and normals_for(0.05) == 19 and normals_for(0.5) == 1


@pytest.mark.parametrize(("count", "rate"), [(30, 0.01), (60, 0.01), (150, 0.01), (150, 0.05)])
def test_the_stated_rate_and_bound_hold_for_new_normals(count: int, rate: float) -> None:
    """Whatever the distribution is: 4,000 draws of `count` normals, each with its true rate."""
    rng = np.random.default_rng(0)
    rates, bounds = [], []
    for _ in range(4000):
        scores = rng.exponential(size=count)
        threshold = threshold_at(scores, rate)
        found = FalsePositives.of(scores.round(4).tolist(), threshold)
        rates.append(np.exp(-threshold))
        bounds.append(found.low <= rates[-1] <= found.high)
    assert np.mean(rates) == pytest.approx(found.estimate, rel=0.05)
    assert np.mean(bounds) == pytest.approx(0.9, abs=0.02)  # 5 % beside each of the two


@given(scores=SCORES, score=st.floats(-10, 10))
def test_a_p_value_is_a_share_of_the_normals_and_the_image(scores: list[float], score: float) -> None:
    normals = sorted(scores)
    value = p_value(normals, score)
    assert value is not None and 1 / (len(scores) + 1) <= value <= 1
    assert value == (1 + sum(normal >= round(score, 4) for normal in scores)) / (len(scores) + 1)
    assert p_value((), score) is None
    # An image is above the threshold of a rate only if its p-value is at most that rate.
    if round(score, 4) > threshold_at(np.array(normals, np.float64), 0.2) and len(scores) >= 4:
        assert value <= 0.2 + 1e-9
