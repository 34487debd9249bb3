import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from train.features.grid import on_grid

SIDES = st.integers(1, 12)


def cells(rows: int, columns: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(2, 3, rows, columns, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def reference(before: Tensor, grid: tuple[int, int]) -> Tensor:
    """One axis after the other, each averaged down or interpolated up by torch."""
    for step in ((grid[0], before.shape[3]), grid):
        smaller = step[0] <= before.shape[2] and step[1] <= before.shape[3]
        resize = F.adaptive_avg_pool2d if smaller else interpolate
        before = resize(before, step)
    return before


def interpolate(before: Tensor, grid: tuple[int, int]) -> Tensor:
    return F.interpolate(before, grid, mode="bilinear", align_corners=False)


@settings(deadline=None)
@given(SIDES, SIDES, SIDES, SIDES, st.integers(0, 1000))
def test_along_each_axis_cells_are_averaged_down_or_interpolated_up(
    rows: int, columns: int, new_rows: int, new_columns: int, seed: int
) -> None:
    before = cells(rows, columns, seed)
    torch.testing.assert_close(on_grid(before, (new_rows, new_columns)), reference(before, (new_rows, new_columns)))


@pytest.mark.parametrize("grid", [(8, 6), (4, 3), (3, 5), (1, 1), (7, 12), (8, 12)])
def test_a_smaller_grid_is_that_of_adaptive_pooling(grid: tuple[int, int]) -> None:
    before = cells(8, 12, dtype=torch.float32)
    torch.testing.assert_close(on_grid(before, grid), F.adaptive_avg_pool2d(before, grid))


@pytest.mark.parametrize("grid", [(10, 7), (5, 8), (13, 11), (5, 7)])
def test_a_larger_grid_is_that_of_bilinear_interpolation(grid: tuple[int, int]) -> None:
    before = cells(5, 7, dtype=torch.float32)
    torch.testing.assert_close(on_grid(before, grid), interpolate(before, grid))


def test_the_same_grid_is_returned_as_it_is_and_another_is_not() -> None:
    before = cells(4, 5)
    assert on_grid(before, (4, 5)) is before and on_grid(before, before.shape[2:]) is before
    assert on_grid(before, (5, 4)).shape == (2, 3, 5, 4)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_types_are_kept_and_so_is_a_constant(dtype: torch.dtype) -> None:
    constant = torch.full((2, 6, 9), 3.0, dtype=dtype)
    found = on_grid(constant, (4, 12))
    assert found.dtype == dtype and found.shape == (2, 4, 12)
    torch.testing.assert_close(found, torch.full((2, 4, 12), 3.0, dtype=dtype))


@pytest.mark.parametrize("grid", [(2, 3), (6, 7), (2, 8)])
def test_gradients_are_those_of_torch(grid: tuple[int, int]) -> None:
    mine, yours = (cells(4, 5).requires_grad_() for _ in range(2))
    weights = cells(*grid, seed=1)
    (on_grid(mine, grid) * weights).sum().backward()
    (reference(yours, grid) * weights).sum().backward()
    assert mine.grad is not None and yours.grad is not None
    torch.testing.assert_close(mine.grad, yours.grad)
