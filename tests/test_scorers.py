from __future__ import annotations

import io
import time
from itertools import combinations
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from sklearn.covariance import LedoitWolf
from sklearn.metrics import pairwise_distances
from torchvision.transforms.functional import gaussian_blur

from train.scorers.coreset import greedy_coreset
from train.scorers.gaussian import Gaussian, fit_gaussian, gaussian_of_factor
from train.scorers.maps import smooth_maps, top_mean
from train.scorers.nearest import PatchNearest, nearest
from train.scorers.standardise import FUSIONS, Standardiser, fit_standardiser
from train.scorers.state import from_state, state_of

SEEDS = st.integers(0, 2**32 - 1)


def _embeddings(seed: int, count: int, width: int) -> NDArray[np.float32]:
    """Correlated embeddings away from the origin, as pooled activations are."""
    rng = np.random.default_rng(seed)
    mixing = rng.standard_normal((width, width))
    return (rng.standard_normal((count, width)) @ mixing + rng.uniform(0, 5, width)).astype(np.float32)


def _scores(fitted: Gaussian, embeddings: NDArray[Any]) -> NDArray[np.float64]:
    return fitted.scores(torch.from_numpy(embeddings)).numpy()


def _standardised(normals: NDArray[np.float64]) -> NDArray[np.float64]:
    return fit_standardiser(normals).standardise(torch.from_numpy(normals)).numpy()


@pytest.fixture(params=["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def device(request: pytest.FixtureRequest) -> str:
    if request.param == "cuda" and not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    return str(request.param)


def test_too_few_normals_and_sizes_out_of_range_are_refused() -> None:
    one = np.ones((1, 3), dtype=np.float32)
    with pytest.raises(ValueError, match="N >= 2"):
        fit_gaussian(one)
    with pytest.raises(ValueError, match="2 or more"):
        fit_standardiser(np.ones(1))
    for size in (0, 2):
        with pytest.raises(ValueError, match=f"coreset of {size}"):
            greedy_coreset(torch.from_numpy(one), size, 128, seed=0)


@given(seed=SEEDS, count=st.integers(3, 40), width=st.integers(1, 60))
@settings(max_examples=40, deadline=None)
def test_gaussian_is_scikit_learns_ledoit_wolf(seed: int, count: int, width: int) -> None:
    normals, points = _embeddings(seed, count, width), _embeddings(seed + 1, 7, width)
    reference = LedoitWolf().fit(normals.astype(np.float64))
    centred = points.astype(np.float64) - normals.astype(np.float64).mean(axis=0)
    expected = np.sqrt(np.einsum("md,de,me->m", centred, np.linalg.inv(reference.covariance_), centred))

    scores = _scores(fit_gaussian(normals), points)

    assert scores.dtype == np.float64
    np.testing.assert_allclose(scores, expected, rtol=1e-6)


@pytest.mark.parametrize(("count", "width"), [(200, 12), (12, 200), (30, 30)])
def test_gaussian_is_scikit_learns_whether_normals_or_dimensions_are_more(count: int, width: int) -> None:
    normals, points = _embeddings(0, count, width), _embeddings(1, 7, width)
    gaussian = fit_gaussian(normals)
    reference = LedoitWolf().fit(normals.astype(np.float64))
    rebuilt = gaussian.rest * np.eye(width)
    directions, variances = gaussian.directions.numpy(), gaussian.variances.numpy()
    rebuilt += directions * (variances - gaussian.rest) @ directions.T
    np.testing.assert_allclose(rebuilt, reference.covariance_, rtol=1e-8, atol=1e-8 * reference.covariance_.max())
    np.testing.assert_allclose(gaussian.mean, reference.location_, rtol=1e-12)
    np.testing.assert_allclose(directions.T @ directions, np.eye(directions.shape[1]), atol=1e-10)
    assert directions.shape[1] <= min(count, width)
    np.testing.assert_allclose(_scores(gaussian, points) ** 2, reference.mahalanobis(points), rtol=1e-6)


def test_gaussian_of_few_normals_in_many_dimensions_takes_no_time() -> None:
    normals, width = np.random.default_rng(0).standard_normal((40, 4464)).astype(np.float32), 4464
    start = time.process_time()
    gaussian = fit_gaussian(normals)
    scores = _scores(gaussian, normals)
    # The covariance, of 4464 x 4464 values, takes many seconds to factor.
    assert time.process_time() - start < 3
    assert gaussian.directions.shape == (width, 39) and gaussian.directions.dtype == torch.float64
    assert scores.shape == (40,) and np.isfinite(scores).all()
    beside = normals.mean(0) + 0.01 * np.random.default_rng(1).standard_normal((1, width)).astype(np.float32)
    assert 0 < _scores(gaussian, beside)[0] < scores.min()


@given(seed=SEEDS, count=st.integers(1, 9), width=st.integers(1, 12), rank=st.integers(1, 12))
@settings(max_examples=40, deadline=None)
def test_gaussian_of_a_factor_is_the_length_of_what_the_factor_leaves(
    seed: int, count: int, width: int, rank: int
) -> None:
    mean, factor = _embeddings(seed, 1, width)[0].astype("f8"), _embeddings(seed + 1, width, rank).astype("f8")
    points = _embeddings(seed + 2, count, width)
    expected = np.linalg.norm((points.astype("f8") - mean) @ factor, axis=1)
    scores = _scores(gaussian_of_factor(torch.from_numpy(mean), torch.from_numpy(factor)), points)
    np.testing.assert_allclose(scores, expected, rtol=1e-9, atol=1e-9)


@given(seed=SEEDS, count=st.integers(2, 30), width=st.integers(2, 12))
@settings(max_examples=40, deadline=None)
def test_gaussian_ignores_shift_scale_and_rotation(seed: int, count: int, width: int) -> None:
    normals, points = _embeddings(seed, count, width), _embeddings(seed + 1, 5, width)
    rotation = np.linalg.qr(np.random.default_rng(seed).standard_normal((width, width)))[0]

    def moved(embeddings: NDArray[np.float32]) -> Any:
        return 3.0 * embeddings.astype(np.float64) @ rotation + 2.0

    np.testing.assert_allclose(
        _scores(fit_gaussian(moved(normals)), moved(points)),
        _scores(fit_gaussian(normals), points),
        rtol=1e-4,
    )


def test_gaussian_of_two_normals_sees_what_leaves_their_line() -> None:
    normals = np.array([[0, 0, 0], [2, 0, 0]], dtype=np.float32)
    points = np.array([[1, 0, 0], [2, 0, 0], [1, 1, 0], [1, 2, 0]], dtype=np.float32)
    centre, normal, beside, farther = _scores(fit_gaussian(normals), points)
    assert centre == pytest.approx(0, abs=1e-9)
    assert normal == pytest.approx(1)
    assert normal < beside < farther < np.inf


def test_gaussian_notices_a_constant_feature_that_moves() -> None:
    normals = _embeddings(0, 30, 4)
    normals[:, 2] = 7
    moved = normals.copy()
    moved[:, 2] += 1
    gaussian = fit_gaussian(normals)
    assert (_scores(gaussian, moved) > _scores(gaussian, normals) + 0.1).all()


@pytest.mark.parametrize("value", [0.0, 0.1, 1e4])
def test_gaussian_of_identical_normals_is_the_euclidean_distance(value: float) -> None:
    normals = np.full((7, 3), value, dtype=np.float32)
    points = normals[:1] + np.array([[300, 400, 0]], dtype=np.float32)
    assert _scores(fit_gaussian(normals), points) == pytest.approx([500])


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_values_that_are_not_finite_are_refused(bad: float) -> None:
    normals = _embeddings(0, 6, 3)
    broken = normals.copy()
    broken[1, 2] = bad
    for call in (
        lambda: fit_gaussian(broken),
        lambda: fit_standardiser(broken[:, 2].astype(np.float64)),
        lambda: greedy_coreset(torch.from_numpy(broken), size=2, width=128, seed=0),
    ):
        with pytest.raises(ValueError, match="finite"):
            call()


@given(seed=SEEDS, scale=st.floats(1e-3, 1e3), shift=st.floats(-100, 100))
def test_standardised_normals_have_no_unit(seed: int, scale: float, shift: float) -> None:
    normals = np.random.default_rng(seed).standard_normal(20)
    standard = _standardised(normals)
    assert standard.mean() == pytest.approx(0, abs=1e-9)
    assert standard.std(ddof=1) == pytest.approx(1)
    other_unit = scale * (normals + shift)
    np.testing.assert_allclose(_standardised(other_unit), standard, atol=1e-6)


def test_standardiser_of_equal_scores_stays_finite() -> None:
    standardiser = fit_standardiser(np.full(5, 0.1))
    np.testing.assert_allclose(
        standardiser.standardise(torch.tensor([0.1, 2.1], dtype=torch.float64)), [0, 2], atol=1e-12
    )


def test_scores_that_hardly_differ_give_no_huge_ones() -> None:
    standardiser = fit_standardiser(5 + 1e-9 * np.arange(10.0))
    assert standardiser.standardise(torch.tensor([6.0], dtype=torch.float64)).item() == pytest.approx(200, rel=1e-6)


def test_scores_are_fused_by_the_largest_or_the_sum() -> None:
    standardised = torch.tensor([[1.0, -2.0, 3.0], [0.5, -1.0, -9.0]])
    assert FUSIONS["largest"](standardised).tolist() == [1, -1, 3]
    assert FUSIONS["sum"](standardised).tolist() == [1.5, -3, -6]


@given(seed=SEEDS, count=st.integers(1, 20), width=st.integers(1, 8), shift=st.floats(0, 1e3))
@settings(max_examples=40, deadline=None)
def test_the_nearest_is_that_of_brute_force_however_far_from_the_origin(
    seed: int, count: int, width: int, shift: float
) -> None:
    references, points = _embeddings(seed, count, width), _embeddings(seed + 1, 9, width)
    found = nearest(torch.from_numpy(references + np.float32(shift)), torch.from_numpy(points + np.float32(shift)))
    distances = pairwise_distances(points.astype("f8"), references.astype("f8"))
    np.testing.assert_allclose(distances[np.arange(9), found], distances.min(1), rtol=1e-3, atol=1e-2)


def test_a_patch_score_is_the_mean_of_the_highest_cells() -> None:
    distances = torch.arange(128.0).view(2, 8, 8)
    # 8 % of 64 cells are five.
    assert top_mean(distances, 0.08).tolist() == [61, 125]
    assert top_mean(distances[:, :1, :2], 0.08).tolist() == [1, 65]
    assert top_mean(distances, 0).tolist() == [63, 127]


def test_patch_nearest_in_chunks_is_brute_force(device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    normals, points = _embeddings(0, 80, 6), _embeddings(1, 57, 6)
    monkeypatch.setattr("train.scorers.finite._CHUNK_ELEMENTS", 64)
    on_device = torch.from_numpy(normals).to(device)
    references = PatchNearest(on_device[greedy_coreset(on_device, size=30, width=128, seed=3)])
    chosen = normals[greedy_coreset(on_device, 30, 128, 3).cpu().numpy()]
    expected = pairwise_distances(points.astype("f8"), chosen.astype("f8")).min(axis=1)
    np.testing.assert_allclose(references.scores(torch.from_numpy(points)).cpu().numpy(), expected, rtol=1e-5)
    np.testing.assert_array_equal(references.scores(torch.from_numpy(chosen)).cpu().numpy(), 0)


@settings(max_examples=15, deadline=None)
@given(
    seed=SEEDS, rows=st.integers(1, 12), columns=st.integers(1, 12), scale=st.integers(4, 9), blur=st.floats(0.01, 0.1)
)
def test_maps_are_upsampled_and_smoothed_as_torchvision_does(
    seed: int, rows: int, columns: int, scale: int, blur: float
) -> None:
    size = scale * max(rows, columns, 4)
    distances = torch.rand(2, rows, columns, generator=torch.Generator().manual_seed(seed))
    maps = torch.nn.functional.interpolate(distances[:, None].double(), (size, size), mode="bilinear")
    expected = gaussian_blur(maps, [2 * round(3 * blur * size) + 1] * 2, [blur * size] * 2)[:, 0]
    smooth = smooth_maps(distances, size, blur)
    assert smooth.dtype == torch.float32 and smooth.shape == (2, size, size) and bool((smooth >= 0).all())
    torch.testing.assert_close(smooth.double(), expected, rtol=0, atol=1e-5 * float(expected.max()))


def _radius(distances: Any, chosen: Any) -> float:
    return float(distances[:, list(chosen)].min(axis=1).max())


@given(seed=SEEDS, count=st.integers(2, 9), data=st.data())
@settings(max_examples=60, deadline=None)
def test_coreset_radius_is_at_most_twice_the_best(seed: int, count: int, data: st.DataObject) -> None:
    size = data.draw(st.integers(1, min(count, 4)))
    embeddings = _embeddings(seed, count, 3)
    distances = pairwise_distances(embeddings.astype("f8"))
    best = min(_radius(distances, chosen) for chosen in combinations(range(count), size))
    chosen = greedy_coreset(torch.from_numpy(embeddings), size, 128, seed % 1000).tolist()
    assert _radius(distances, chosen) <= 2 * best + 1e-4


def test_coreset_covers_wide_embeddings_better_than_random_subsets() -> None:
    rng = np.random.default_rng(0)
    # 30 clusters, of which half hold a single embedding: what a random subset misses.
    sizes = [40] * 15 + [1] * 15
    embeddings = np.repeat(rng.standard_normal((30, 300)), sizes, axis=0) + 0.05 * rng.standard_normal((615, 300))
    distances = pairwise_distances(embeddings)
    chosen = greedy_coreset(torch.from_numpy(embeddings.astype("f4")), 30, 128, seed=0).numpy()
    random = [_radius(distances, rng.choice(615, 30, replace=False)) for _ in range(20)]
    assert _radius(distances, chosen) < min(random) / 2


@given(seed=st.integers(0, 1000), distinct=st.integers(1, 6), copies=st.integers(1, 5), data=st.data())
@settings(max_examples=40, deadline=None)
def test_coreset_of_copies_is_distinct(seed: int, distinct: int, copies: int, data: st.DataObject) -> None:
    embeddings = torch.from_numpy(np.tile(_embeddings(seed, distinct, 4), (copies, 1)))
    size = data.draw(st.integers(distinct, distinct * copies))
    chosen = greedy_coreset(embeddings, size, 128, seed)
    assert len(set(chosen.tolist())) == size
    assert len(np.unique(embeddings[chosen].numpy(), axis=0)) == distinct


def test_coreset_depends_on_the_seed_alone() -> None:
    embeddings = torch.from_numpy(_embeddings(0, 200, 150))
    torch.manual_seed(1)
    first = greedy_coreset(embeddings, 20, 128, seed=5)
    torch.manual_seed(2)
    assert torch.equal(greedy_coreset(embeddings, 20, 128, seed=5), first)
    assert not torch.equal(greedy_coreset(embeddings, 20, 128, seed=6), first)


def _stored(state: dict[str, torch.Tensor]) -> Any:
    file = io.BytesIO()
    torch.save(state, file)
    return torch.load(io.BytesIO(file.getvalue()), weights_only=True)


def test_fitted_scorers_score_the_same_after_a_save_and_a_load() -> None:
    normals, points = _embeddings(0, 30, 5), _embeddings(1, 9, 5)
    patches = torch.from_numpy(points)

    gaussian = fit_gaussian(normals)
    again = from_state(Gaussian, _stored(state_of(gaussian)))
    np.testing.assert_array_equal(_scores(again, points), _scores(gaussian, points))

    of_factor = gaussian_of_factor(gaussian.mean, torch.from_numpy(_embeddings(2, 5, 3)).double())
    reloaded = from_state(Gaussian, _stored(state_of(of_factor)))
    np.testing.assert_array_equal(_scores(reloaded, points), _scores(of_factor, points))

    standardiser = fit_standardiser(normals[:, 0].astype(np.float64))
    assert from_state(Standardiser, _stored(state_of(standardiser))) == standardiser

    normal_patches = torch.from_numpy(normals)
    fitted = PatchNearest(normal_patches[greedy_coreset(normal_patches, 7, 128, 0)])
    loaded = from_state(PatchNearest, _stored(state_of(fitted)))
    assert torch.equal(loaded.scores(patches), fitted.scores(patches))
