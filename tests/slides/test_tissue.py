from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

pytest.importorskip("openslide", reason="the extra 'slides' is not installed")

from modaltune.slides.reading import Scan
from modaltune.slides.tissue import MIN_TISSUE, tissue_mask, tissue_patches
from tests.slides.stand_ins import PINK, painted


def scan(width: int, height: int) -> Scan:
    return Scan(width=width, height=height, mpp=0.5, mpp_from="header", magnification=20)


def test_the_mask_is_where_the_colour_is() -> None:
    mask = tissue_mask(painted(200, 300, (50, 40, 250, 160)), 8.0)
    expected = np.zeros((200, 300), dtype=bool)
    expected[40:160, 50:250] = True
    assert (mask != expected).mean() < 0.02
    assert mask[60:140, 70:230].all()


def test_bare_glass_is_no_tissue() -> None:
    assert not tissue_mask(painted(200, 300), 8.0).any()


def test_a_slide_full_of_tissue_is_all_tissue() -> None:
    shades = painted(200, 300, (0, 0, 300, 200)).astype(np.float64)
    shades[:, :150] = 255 - (255 - shades[:, :150]) / 2  # half of it pale: Otsu alone would drop that half
    assert tissue_mask(shades.astype(np.uint8), 8.0).all()


@pytest.mark.parametrize("pen", [(8, 6, 12), (60, 150, 120), (20, 40, 150)], ids=["black", "green", "blue"])
def test_dust_and_pen_are_no_tissue(pen: tuple[int, int, int]) -> None:
    picture = painted(200, 300, (50, 50, 56, 56), (100, 40, 250, 160))
    picture[10:30, 20:280] = pen
    mask = tissue_mask(picture, 8.0)
    assert not mask[:35].any()
    assert not mask[:, :90].any()
    assert mask[60:140, 120:230].all()


def test_the_same_speck_counts_when_it_is_large_on_the_glass() -> None:
    picture = painted(100, 100, (50, 50, 56, 56))
    assert tissue_mask(picture, 32.0).any()


def test_grey_stain_without_colour_is_no_tissue() -> None:
    picture = np.full((100, 100, 3), 240, dtype=np.uint8)
    picture[20:80, 20:80] = 150
    assert not tissue_mask(picture, 8.0).any()
    picture[20:80, 20:80] = PINK
    assert tissue_mask(picture, 8.0).any()


@given(
    height=st.integers(1, 60),
    width=st.integers(1, 60),
    step=st.integers(1, 9),
    edge=st.integers(1, 150),
    seed=st.integers(0, 99),
)
def test_patches_are_the_cells_with_enough_tissue(height: int, width: int, step: int, edge: int, seed: int) -> None:
    mask = np.random.default_rng(seed).random((height, width)) < 0.3
    slide = scan(width * step, height * step)
    found = {tuple(map(int, corner)) for corner in tissue_patches(mask, slide, edge)}
    for row in range(slide.height // edge):
        for column in range(slide.width // edge):
            top, bottom = (round(place * edge / step) for place in (row, row + 1))
            left, right = (round(place * edge / step) for place in (column, column + 1))
            part = mask[top:bottom, left:right]
            enough = part.sum() >= max(MIN_TISSUE * part.size, MIN_TISSUE)
            assert ((column * edge, row * edge) in found) == enough
    assert all(x + edge <= slide.width and y + edge <= slide.height for x, y in found)


def test_patches_come_row_by_row() -> None:
    coords = tissue_patches(np.ones((4, 6), dtype=bool), scan(600, 400), 200)
    assert coords.tolist() == [[0, 0], [200, 0], [400, 0], [0, 200], [200, 200], [400, 200]]


def test_scans_of_one_glass_at_20x_and_40x_share_their_cells() -> None:
    mask = tissue_mask(painted(200, 300, (50, 40, 250, 160)), 8.0)
    twenty = tissue_patches(mask, scan(4800, 3200), 256) // 256
    forty = tissue_patches(mask, scan(9600, 6400), 512) // 512
    np.testing.assert_array_equal(twenty, forty)
    assert len(twenty)
