from __future__ import annotations

import numpy as np
import pytest

from modaltune.federation.statistics import Sums
from modaltune.federation.statistics_check import problems_beside_others


def sums_of(rows: np.ndarray, measured: np.ndarray | None = None) -> Sums:
    rows = rows if measured is None else np.where(measured, rows, 0.0)
    count = np.full(rows.shape[1], float(len(rows))) * (1 if measured is None else measured)
    return {"expression.count": count, "expression.sum": rows.sum(axis=0), "expression.squares": (rows**2).sum(axis=0)}


def sites(number: int = 4) -> dict[str, np.ndarray]:
    """Fifty patients with twenty genes at each site, with a batch effect of two deviations."""
    generator = np.random.default_rng(0)
    level = generator.gamma(2.0, 3.0, 20)
    spread = generator.uniform(0.2, 3.0, 20)
    return {
        f"H{site}": level + spread * (generator.normal(size=(50, 20)) + generator.normal(0, 2, 20))
        for site in range(1, number + 1)
    }


def test_sites_with_batch_effects_and_panels_of_their_own_are_all_right() -> None:
    found = {site: sums_of(rows) for site, rows in sites().items()}
    assert problems_beside_others(found) == {}
    found["H2"] = sums_of(sites()["H2"], np.arange(20) < 4)
    found["H3"] = sums_of(sites()["H3"], np.arange(20) >= 4)
    found["H4"] = sums_of(sites()["H4"][:0])
    assert problems_beside_others(found) == {}


@pytest.mark.parametrize("change", [lambda rows: 2**rows, lambda rows: 1000 * rows, lambda rows: rows + 200])
def test_a_site_in_another_unit_is_named(change: object) -> None:
    rows = sites()
    rows["H3"] = change(rows["H3"])  # type: ignore[operator]
    found = problems_beside_others({site: sums_of(values) for site, values in rows.items()})
    assert list(found) == ["H3"]
    assert "expression is of another size than at the other sites" in found["H3"]


def test_one_made_up_measurement_is_enough() -> None:
    found = {site: sums_of(rows) for site, rows in sites().items()}
    found["H1"]["expression.sum"][7], found["H1"]["expression.squares"][7] = 50 * 1e11, 50 * 1e22
    assert list(problems_beside_others(found)) == ["H1"]


def test_two_sites_cannot_tell_which_of_them_is_odd() -> None:
    rows = sites(2)
    assert problems_beside_others({"H1": sums_of(rows["H1"]), "H2": sums_of(1000 * rows["H2"])}) == {}
