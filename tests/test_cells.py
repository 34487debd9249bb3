from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from train.recipe import Recipe, recipe_of
from train.scorers.cells import CellScale
from train.settings import TrainSettings


def rules(weight: float) -> Recipe:
    return replace(recipe_of("resnet18", TrainSettings()), logit_weight=weight)


def maps(seed: int, low: float, high: float) -> Tensor:
    """(3,4,5) float32."""
    return torch.rand(3, 4, 5, generator=torch.Generator().manual_seed(seed)) * (high - low) + low


@settings(deadline=None)
@given(st.integers(0, 1000), st.floats(0.1, 10), st.floats(-5, 5), st.floats(0, 4))
def test_a_logit_raises_a_cell_by_what_it_is_above_the_bound_and_never_lowers_it(
    seed: int, deviation: float, bound: float, weight: float
) -> None:
    distances, logits = maps(seed, 0, 9), maps(seed + 1, -8, 8)
    combined = CellScale(deviation, bound).to_decide(rules(weight), distances, logits)
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
    combined = CellScale(deviation=2.0, bound=1.0).to_decide(rules(weight), distances, logits)
    assert combined.tolist() == [[[2.0, 2.0, 2.0 + weight, 2.0 + 4 * weight]]]


def test_without_a_localiser_the_distances_are_the_cells() -> None:
    distances = maps(0, 0, 9)
    assert torch.equal(CellScale().to_decide(rules(2.0), distances, None), distances)
    # A recipe's weight or a scale changes nothing where there are no logits.
    assert torch.equal(CellScale(3.0, -1.0).to_decide(rules(0.0), distances, None), distances)


def test_the_cells_that_are_combined_stay_as_they_are() -> None:
    distances, logits = maps(0, 0, 9), maps(1, -8, 8)
    before = distances.clone(), logits.clone()
    CellScale(2.0, 0.5).to_decide(rules(1.5), distances, logits)
    assert torch.equal(distances, before[0]) and torch.equal(logits, before[1])


@settings(deadline=None)
@given(st.integers(0, 1000), st.floats(0, 1), st.floats(-5, 5))
def test_a_map_shows_suspicions_below_the_bound_as_far_as_the_localiser_is_trusted(
    seed: int, own_kind: float, bound: float
) -> None:
    distances, logits, recipe = maps(seed, 0, 9), maps(seed + 1, -8, 8), rules(2.0)
    scale = CellScale(2.0, bound, own_kind)
    decided, shown = (rule(recipe, distances, logits) for rule in (scale.to_decide, scale.to_show))
    trust = max(0.0, (own_kind - recipe.trusted_from) / (1 - recipe.trusted_from))
    above = logits.double() - bound
    # log(1 + exp(x)), 2 above where the bound is.
    reaching = torch.log1p(torch.exp(above + 2))
    expected = distances / 2 + 2 * ((1 - trust) * above.clamp(min=0) + trust * reaching)
    torch.testing.assert_close(shown.double(), expected, rtol=1e-4, atol=1e-4)
    assert (shown >= decided - 1e-4).all() and (own_kind > recipe.trusted_from or torch.equal(shown, decided))


def test_without_a_localiser_a_map_shows_the_distances() -> None:
    distances = maps(0, 0, 9)
    assert torch.equal(CellScale(1.0, 0.0, 1.0).to_show(rules(2.0), distances, None), distances)
