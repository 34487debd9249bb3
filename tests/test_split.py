"""Which normals a learner does not see, and the folds in which all are scored as new ones are."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from train.split import MOST_FOR_FOLDS, hold_out, split

PATHS = st.lists(st.text(min_size=1), min_size=4, max_size=60, unique=True)
SHARES = st.floats(0.001, 0.5)


def alone(paths: list[str]) -> NDArray[np.int64]:
    """Every image shows another part."""
    return np.arange(len(paths))


@settings(deadline=None, max_examples=40)
@given(PATHS, SHARES, st.randoms())
def test_the_same_normals_are_held_out_in_any_order(paths: list[str], share: float, random: Any) -> None:
    held = {path for path, out in zip(paths, hold_out(paths, alone(paths), share), strict=True) if out}
    shuffled = random.sample(paths, len(paths))
    assert held == {path for path, out in zip(shuffled, hold_out(shuffled, alone(paths), share), strict=True) if out}


@settings(deadline=None, max_examples=40)
@given(PATHS, SHARES, SHARES)
def test_a_larger_share_holds_out_more_and_at_most_half(paths: list[str], share: float, other: float) -> None:
    few, many = (hold_out(paths, alone(paths), value) for value in sorted((share, other)))
    assert few.dtype == np.bool_ and few.shape == (len(paths),)
    assert not (few & ~many).any()
    for value, held in zip(sorted((share, other)), (few, many), strict=True):
        wanted = max(2, round(value * len(paths)), min(10, len(paths) // 3))
        assert held.sum() == min(wanted, len(paths) // 2)


def test_another_image_moves_few_from_one_side_to_the_other() -> None:
    paths = [f"tile/train/good/{i:03}.png" for i in range(200)]
    assert (hold_out(paths, alone(paths), 0.15)[:199] != hold_out(paths[:199], alone(paths[:199]), 0.15)).sum() <= 2


@settings(deadline=None, max_examples=60)
@given(PATHS, st.integers(1, 12), st.integers(2, 20), st.randoms())
def test_no_part_is_divided_and_every_normal_is_in_one_fold(
    paths: list[str], folds: int, parts: int, random: Any
) -> None:
    of = np.array([*range(2), *(random.randrange(parts) for _ in paths[2:])])
    found = split(paths, of, 0.15, folds)
    places = np.concatenate(found.folds)
    assert len(set(of[found.held_out]) & set(of[~found.held_out])) == 0
    assert found.held_out.any() and not found.held_out.all()
    for fold in found.folds:
        assert len(fold) and not set(of[fold]) & set(np.delete(of, fold))
    if folds == 1:
        assert sorted(places) == np.flatnonzero(found.held_out).tolist()
    else:
        assert sorted(places) == list(range(len(paths))) and len(found.folds) == min(folds, len(set(of)))


def test_folds_are_of_about_the_same_size() -> None:
    paths = [f"{i}.png" for i in range(64)]
    assert {len(fold) for fold in split(paths, alone(paths), 0.15, 10).folds} == {6, 7}


@pytest.mark.parametrize(("count", "folds"), [(MOST_FOR_FOLDS, 10), (MOST_FOR_FOLDS + 1, 1)])
def test_of_many_normals_a_part_is_enough(count: int, folds: int) -> None:
    paths = [f"{i}.png" for i in range(count)]
    found = split(paths, alone(paths), 0.15, 10)
    assert len(found.folds) == folds and found.held_out.sum() == 99  # enough for a threshold at 1 %


def test_three_normals_cannot_be_split() -> None:
    with pytest.raises(ValueError, match="3 normal"):
        hold_out(["a", "b", "c"], np.arange(3), 0.5)
