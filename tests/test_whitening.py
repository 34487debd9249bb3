import numpy as np
import pytest
import torch
from sklearn.covariance import ledoit_wolf_shrinkage
from sklearn.decomposition import PCA
from torch import Tensor

from train.scorers.whitening import WHITENINGS, by_pca, by_ridge

COUNT, WIDTH = 400, 7


def patches(count: int = COUNT, width: int = WIDTH, seed: int = 0) -> Tensor:
    """(count,width) float64, correlated, each dimension on a scale of its own and away from 0."""
    generator = torch.Generator().manual_seed(seed)
    mixed = torch.randn(count, width, generator=generator, dtype=torch.float64)
    mixed = mixed @ torch.randn(width, width, generator=generator, dtype=torch.float64)
    return mixed * torch.logspace(-3, 3, width, dtype=torch.float64) + 5


def in_directions(variances: list[float], count: int = 3000) -> Tensor:
    """Patches whose covariance has exactly these eigenvalues, in turned directions."""
    generator = torch.Generator().manual_seed(1)
    width = len(variances)
    white = torch.randn(count, width, generator=generator, dtype=torch.float64)
    white = torch.linalg.qr(white - white.mean(0))[0] * count**0.5
    turned = torch.linalg.qr(torch.randn(width, width, generator=generator, dtype=torch.float64))[0]
    patches: Tensor = white * torch.tensor(variances, dtype=torch.float64).sqrt() @ turned.T
    return patches


def covariance(values: Tensor) -> Tensor:
    return torch.cov(values.T, correction=0)


def identity(width: int) -> Tensor:
    return torch.eye(width, dtype=torch.float64)


# --- by ridge -----------------------------------------------------------------------------------------------------


def test_without_a_ridge_whitened_patches_vary_as_much_in_every_direction() -> None:
    whitening = by_ridge(patches(), 0.0)
    assert whitening.shape == (WIDTH, WIDTH) and whitening.dtype == torch.float64
    torch.testing.assert_close(covariance(patches() @ whitening), identity(WIDTH), rtol=0, atol=1e-6)


@pytest.mark.parametrize("ridge", [0.01, 0.1, 3.0])
def test_distances_are_those_of_mahalanobis_with_a_ridge_on_the_correlation(ridge: float) -> None:
    values = patches()
    deviation = values.std(0, correction=0)
    correlation = torch.from_numpy(np.corrcoef(values.numpy().T))
    ridged = (correlation + ridge * identity(WIDTH)) * deviation[:, None] * deviation
    differences = values[:50] - values[50:100]
    expected = (differences @ torch.linalg.inv(ridged) * differences).sum(1).sqrt()
    torch.testing.assert_close((differences @ by_ridge(values, ridge)).norm(dim=1), expected)


def test_scales_of_dimensions_do_not_matter() -> None:
    values, scales = patches(), torch.tensor([0.05, 1.0, 50.0, 2.0, 0.1, 7.0, 9.0], dtype=torch.float64)
    distances = torch.cdist(values[:20] @ by_ridge(values, 0.1), values[20:40] @ by_ridge(values, 0.1))
    scaled = values * scales
    again = torch.cdist(scaled[:20] @ by_ridge(scaled, 0.1), scaled[20:40] @ by_ridge(scaled, 0.1))
    torch.testing.assert_close(distances, again)


def test_a_large_ridge_leaves_each_dimension_over_its_deviation() -> None:
    values, ridge = patches(), 1e8
    differences = values[:30] - values[30:60]
    expected = (differences / values.std(0, correction=0)).norm(dim=1)
    torch.testing.assert_close((differences @ by_ridge(values, ridge)).norm(dim=1) * ridge**0.5, expected)


def test_dimensions_that_never_vary_change_no_distance_among_patches() -> None:
    values = patches()
    with_constants = torch.cat([values[:, :3], torch.zeros(COUNT, 1), values[:, 3:], torch.full((COUNT, 1), 4.0)], 1)
    distances = torch.cdist(values[:20] @ by_ridge(values, 0.1), values[20:40] @ by_ridge(values, 0.1))
    whitening = by_ridge(with_constants, 0.1)
    assert whitening.isfinite().all()
    whitened = with_constants @ whitening
    torch.testing.assert_close(torch.cdist(whitened[:20], whitened[20:40]), distances)


def test_fewer_patches_than_dimensions_are_whitened_by_the_ridge() -> None:
    values = patches(5, 20)
    whitening = by_ridge(values, 0.1)
    assert whitening.shape == (20, 20) and whitening.isfinite().all()
    assert covariance(values @ whitening).diagonal().max() < 1 / 0.1


# --- by principal directions --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("variances", "kept"),
    [
        ([100.0, 50.0, 0.1, 0.1, 0.1], 2),
        ([96.0, 2.0, 1.5, 0.5], 3),
        ([1.0, 1.0, 1.0, 1.0], 4),
        ([1000.0, 0.001, 0.001], 1),
    ],
)
def test_the_least_directions_that_hold_99_per_cent_are_kept(variances: list[float], kept: int) -> None:
    values = in_directions(variances)
    assert by_pca(values, 0.0).shape == (len(variances), kept)
    assert PCA(0.99).fit(values.numpy()).n_components_ == kept


def test_it_is_the_whitened_pca_of_scikit_learn_but_for_the_shrinkage() -> None:
    values = in_directions([100.0, 40.0, 9.0, 5.0, 0.3, 0.2, 0.1], 300)
    pca = PCA(0.99, svd_solver="full").fit(values.numpy())
    scores = pca.transform(values.numpy())
    variances = scores.var(0)
    shrinkage = ledoit_wolf_shrinkage(scores, assume_centered=True)
    assert 0.001 < shrinkage < 0.5
    shrunk = (1 - shrinkage) * variances + shrinkage * variances.mean()
    expected = torch.from_numpy(scores / np.sqrt(shrunk))
    found = values @ by_pca(values, 0.0)
    torch.testing.assert_close(torch.cdist(found[:40], found[40:80]), torch.cdist(expected[:40], expected[40:80]))


def test_of_many_patches_the_kept_directions_vary_as_much() -> None:
    values = in_directions([9.0, 4.0, 2.0, 0.01], 20_000)
    torch.testing.assert_close(covariance(values @ by_pca(values, 0.0)), identity(3), rtol=0, atol=0.01)


def test_the_ridge_of_a_recipe_says_nothing_to_it() -> None:
    assert torch.equal(by_pca(patches(), 0.0), by_pca(patches(), 5.0))


def test_constant_dimensions_are_left_out_and_patches_that_never_vary_are_no_error() -> None:
    values = torch.cat([in_directions([3.0, 2.0, 1.0]), torch.full((3000, 2), 6.0)], 1)
    whitening = by_pca(values, 0.0)
    assert whitening.shape == (5, 3)
    torch.testing.assert_close(whitening[3:], torch.zeros(2, 3, dtype=torch.float64), rtol=0, atol=1e-6)
    assert by_pca(torch.full((10, 4), 2.0, dtype=torch.float64), 0.0).isfinite().all()


@pytest.mark.parametrize("name", WHITENINGS)
def test_the_mean_of_patches_does_not_matter(name: str) -> None:
    values = patches()
    distances = [
        torch.cdist(v[:20] @ w, v[20:40] @ w) for v in (values, values - 40) for w in [WHITENINGS[name](v, 0.1)]
    ]
    torch.testing.assert_close(distances[0], distances[1], rtol=1e-4, atol=1e-6)
