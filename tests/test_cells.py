import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from train.scorers.cells import CellScale


def maps(seed: int, low: float, high: float) -> Tensor:
    """(3,4,5) float32."""
    return torch.rand(3, 4, 5, generator=torch.Generator().manual_seed(seed)) * (high - low) + low


@settings(deadline=None)
@given(st.integers(0, 1000), st.floats(0.1, 10), st.floats(-5, 5), st.floats(0, 4))
def test_a_logit_raises_a_cell_by_what_it_is_above_the_bound_and_never_lowers_it(
    seed: int, deviation: float, bound: float, weight: float
) -> None:
    distances, logits = maps(seed, 0, 9), maps(seed + 1, -8, 8)
    combined = CellScale(deviation, bound).combine(distances, logits, weight)
    alone = distances / deviation
    assert combined.shape == distances.shape and combined.dtype == torch.float32
    assert (combined >= alone).all() and (combined >= 0).all()
    above = logits > bound
    assert torch.equal(combined[~above], alone[~above])
    torch.testing.assert_close(combined[above] - alone[above], weight * (logits[above] - bound), rtol=0, atol=1e-4)


@pytest.mark.parametrize("weight", [0.0, 0.5, 2.0])
def test_the_weight_is_that_of_what_is_above_the_bound(weight: float) -> None:
    distances = torch.tensor([[[4.0, 4.0, 4.0, 4.0]]])
    logits = torch.tensor([[[-9.0, 1.0, 2.0, 5.0]]])
    combined = CellScale(deviation=2.0, bound=1.0).combine(distances, logits, weight)
    assert combined.tolist() == [[[2.0, 2.0, 2.0 + weight, 2.0 + 4 * weight]]]


def test_without_a_localiser_the_distances_are_the_cells() -> None:
    distances = maps(0, 0, 9)
    assert torch.equal(CellScale().combine(distances, None, 2.0), distances)
    # A recipe's weight or a scale changes nothing where there are no logits.
    assert torch.equal(CellScale(3.0, -1.0).combine(distances, None, 0.0), distances)


def test_the_cells_that_are_combined_stay_as_they_are() -> None:
    distances, logits = maps(0, 0, 9), maps(1, -8, 8)
    before = distances.clone(), logits.clone()
    CellScale(2.0, 0.5).combine(distances, logits, 1.5)
    assert torch.equal(distances, before[0]) and torch.equal(logits, before[1])
