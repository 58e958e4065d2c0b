from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from modaltune.encoders.positions import grid_cells, position_embedding
from modaltune.errors import FeatureFileError

GRID, WIDTH = 5, 8


def one_axis(cell: int) -> list[float]:
    angles = [cell * 10000 ** (-index / (WIDTH // 4)) for index in range(WIDTH // 4)]
    return [math.sin(angle) for angle in angles] + [math.cos(angle) for angle in angles]


def test_rows_equal_a_table_written_out() -> None:
    table = [one_axis(column) + one_axis(row) for row in range(GRID) for column in range(GRID)]
    cells = torch.tensor([[row, column] for row in range(GRID) for column in range(GRID)])
    ours = position_embedding(cells, WIDTH)
    assert ours.dtype == torch.float32
    torch.testing.assert_close(ours, torch.tensor(table), atol=1e-7, rtol=0)


def test_every_cell_of_the_largest_grid_has_its_own_embedding() -> None:
    cells = torch.stack([torch.arange(1000), torch.arange(1000).flip(0)], dim=1)
    rows = position_embedding(cells, 64)
    assert len(rows.unique(dim=0)) == 1000


def test_embeddings_keep_leading_axes_and_have_one_length() -> None:
    cells = torch.arange(24).reshape(3, 4, 2)
    rows = position_embedding(cells, WIDTH)
    assert rows.shape == (3, 4, WIDTH)
    torch.testing.assert_close(rows.square().sum(dim=-1), torch.full((3, 4), WIDTH / 2))


def test_a_cell_is_the_patch_that_contains_the_corner() -> None:
    coords = np.array([[0, 511], [512, 1023], [1024, 513]])
    assert grid_cells(coords, 512, 10, "slide").tolist() == [[0, 0], [1, 1], [2, 1]]


def test_a_bag_without_patches_has_no_cells() -> None:
    assert grid_cells(np.zeros((0, 2), dtype=np.int64), 256, 10, "slide").shape == (0, 2)


@pytest.mark.parametrize(("coords", "found"), [([[0, 2560]], "cell 10 "), ([[-1, 0]], "smallest -1")])
def test_coordinates_outside_the_grid_are_refused(coords: list[list[int]], found: str) -> None:
    with pytest.raises(FeatureFileError, match=found) as caught:
        grid_cells(np.array(coords), 256, 10, "slide 3")
    assert str(caught.value).startswith("slide 3: ")
    assert "0..9" in str(caught.value)


def test_the_last_cell_of_the_grid_is_accepted() -> None:
    assert grid_cells(np.array([[2559, 2559]]), 256, 10, "slide").tolist() == [[9, 9]]
