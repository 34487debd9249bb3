import pytest
import torch
from sklearn.discriminant_analysis import QuadraticDiscriminantAnalysis
from torch import Tensor

from train.scorers.discriminant import quadratic_discriminant, whiten


def covariance(width: int, seed: int) -> Tensor:
    mixed = torch.randn(width, 3 * width, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return mixed @ mixed.T / width


def test_the_distance_is_that_of_the_likelihood_ratio() -> None:
    normal, more = covariance(7, 0), covariance(7, 1)
    whitening = whiten(normal, 0.0)
    negative = whitening.T @ (normal + more) @ whitening
    factor = quadratic_discriminant(whitening, negative, 7)
    # Negatives exceed normals in every direction, so that nothing is cut off.
    expected = torch.linalg.inv(normal) - torch.linalg.inv(normal + more)
    torch.testing.assert_close(factor @ factor.T, expected)


def test_it_orders_as_scikit_learns_discriminant() -> None:
    generator = torch.Generator().manual_seed(3)
    scales = torch.tensor([1.0, 2.0, 4.0, 9.0], dtype=torch.float64).sqrt()
    normals = torch.randn(4000, 4, generator=generator, dtype=torch.float64)
    negatives = torch.randn(4000, 4, generator=generator, dtype=torch.float64) * scales
    normals, negatives = normals - normals.mean(0), negatives - negatives.mean(0)
    whitening = whiten(normals.T @ normals / len(normals), 0.0)
    moved = negatives @ whitening
    factor = quadratic_discriminant(whitening, moved.T @ moved / len(moved), 4)
    theirs = QuadraticDiscriminantAnalysis().fit(
        torch.cat([normals, negatives]).numpy(), [0] * len(normals) + [1] * len(negatives)
    )
    ours = (negatives @ factor).square().sum(1)
    ratio = torch.from_numpy(theirs.decision_function(negatives.numpy()))
    assert torch.corrcoef(torch.stack([ours, ratio]))[0, 1] > 0.9999


def test_directions_in_which_negatives_do_not_exceed_normals_do_not_count() -> None:
    identity = torch.eye(4, dtype=torch.float64)
    factor = quadratic_discriminant(identity, torch.diag(torch.tensor([0.2, 1, 2, 100], dtype=torch.float64)), 4)
    assert factor.shape == (4, 2)
    torch.testing.assert_close(factor.norm(dim=1).square(), torch.tensor([0, 0, 0.5, 0.99], dtype=torch.float64))
    assert quadratic_discriminant(identity, identity, 4).shape == (4, 0)
    # The strongest direction alone.
    narrow = quadratic_discriminant(identity, torch.diag(torch.tensor([5, 1, 2, 3], dtype=torch.float64)), 1)
    torch.testing.assert_close(narrow.norm(dim=1).square(), torch.tensor([0.8, 0, 0, 0], dtype=torch.float64))


@pytest.mark.parametrize("ridge", [0.0, 0.1])
def test_whitening_makes_every_variance_one(ridge: float) -> None:
    normal = covariance(5, 2)
    whitening = whiten(normal, ridge)
    ridged = normal + ridge * normal.trace() / 5 * torch.eye(5, dtype=torch.float64)
    torch.testing.assert_close(whitening.T @ ridged @ whitening, torch.eye(5, dtype=torch.float64))


def test_without_variance_nothing_is_whitened() -> None:
    assert torch.equal(whiten(torch.zeros(3, 3, dtype=torch.float64), 1e-3), torch.eye(3, dtype=torch.float64))
