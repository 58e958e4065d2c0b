from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from modaltune.tasks.survival import CELL_MONTHS, CELLS, bin_edges, bin_times, event_histogram, time_bin

histograms = arrays(np.float64, CELLS, elements=st.integers(0, 20).map(float))
sparse_histograms = st.dictionaries(st.integers(0, CELLS - 1), st.integers(1, 9), min_size=1, max_size=6).map(
    lambda cells: np.array([float(cells.get(cell, 0)) for cell in range(CELLS)])
)
any_histogram = st.one_of(histograms, sparse_histograms)


@given(histogram=any_histogram, bins=st.integers(2, 6))
@settings(deadline=None)
def test_edges_increase_and_share_the_deaths_equally(histogram: np.ndarray, bins: int) -> None:
    assume(histogram.sum() >= bins)
    edges = bin_edges(histogram, bins)
    assert len(edges) == bins - 1
    assert all(low < high for low, high in zip((0, *edges), (*edges, CELLS * CELL_MONTHS), strict=True))
    cumulative = np.concatenate([[0.0], histogram.cumsum()])
    deaths_before = np.interp(edges, np.arange(CELLS + 1) * CELL_MONTHS, cumulative)
    np.testing.assert_allclose(deaths_before, np.arange(1, bins) * histogram.sum() / bins, atol=1e-5)


@given(histogram=any_histogram, bins=st.integers(2, 6))
@settings(deadline=None)
def test_bin_times_increase_and_lie_inside_their_bins(histogram: np.ndarray, bins: int) -> None:
    assume(histogram.sum() >= bins)
    edges = bin_edges(histogram, bins)
    times = bin_times(histogram, edges)
    assert len(times) == bins
    bounds = (0, *edges, np.inf)
    for low, time, high in zip(bounds, times, bounds[1:], strict=False):
        assert low <= time <= high
    assert all(low < high for low, high in pairwise(times))


@pytest.mark.parametrize("deaths", [0, 1, 3])
def test_fewer_deaths_than_bins_give_no_edges(deaths: int) -> None:
    histogram = np.zeros(CELLS)
    histogram[:deaths] = 1
    assert bin_edges(histogram, 4) == ()
    histogram[:4] = 1
    assert len(bin_edges(histogram, 4)) == 3


def test_real_times_fall_into_the_bins_in_about_equal_shares() -> None:
    months = np.random.default_rng(0).exponential(40, 4000)
    edges = bin_edges(event_histogram(months, np.ones(4000, dtype=bool)), 4)
    shares = np.bincount([time_bin(time, edges) for time in months], minlength=4) / 4000
    np.testing.assert_allclose(shares, 0.25, atol=0.02)
    np.testing.assert_allclose(edges, np.quantile(months, [0.25, 0.5, 0.75]), atol=CELL_MONTHS / 2)


def test_deaths_at_one_time_still_give_increasing_edges() -> None:
    edges = bin_edges(event_histogram(np.full(8, 10.0), np.ones(8, dtype=bool)), 4)
    assert 9 < edges[0] < edges[1] < edges[2] < 12


@given(
    months=st.lists(st.floats(0.01, 400), max_size=40),
    event=st.lists(st.booleans(), min_size=40, max_size=40),
)
@settings(deadline=None)
def test_the_histogram_counts_deaths_and_nothing_else(months: list[float], event: list[bool]) -> None:
    times, dead = np.array(months, dtype=np.float64), np.array(event[: len(months)], dtype=bool)
    histogram = event_histogram(times, dead)
    assert histogram.shape == (CELLS,)
    assert histogram.sum() == dead.sum()
    assert histogram[-1] == (times[dead] >= (CELLS - 1) * CELL_MONTHS).sum()


def test_a_death_lies_in_the_cell_that_begins_at_its_time() -> None:
    histogram = event_histogram(np.array([2.9, 3.0, 500.0]), np.ones(3, dtype=bool))
    assert np.flatnonzero(histogram).tolist() == [0, 1, CELLS - 1]


def test_a_time_on_an_edge_belongs_to_the_later_bin() -> None:
    edges = (12.0, 24.0)
    assert [time_bin(months, edges) for months in (0.1, 11.9, 12.0, 23.9, 24.0, 900.0)] == [0, 0, 1, 1, 2, 2]


def test_a_cell_whose_centre_is_an_edge_counts_in_the_bin_of_its_time() -> None:
    histogram = event_histogram(np.array([1.5]), np.ones(1, dtype=bool))
    assert time_bin(1.5, (1.5,)) == 1
    assert bin_times(histogram, (1.5,)) == (0.75, 1.5)  # no death in the first bin: its middle


@given(months=st.floats(0.01, 500), later=st.floats(0, 500), histogram=any_histogram)
@settings(deadline=None)
def test_a_later_time_never_has_an_earlier_bin(months: float, later: float, histogram: np.ndarray) -> None:
    assume(histogram.sum() >= 4)
    edges = bin_edges(histogram, 4)
    assert time_bin(months, edges) <= time_bin(months + later, edges)
