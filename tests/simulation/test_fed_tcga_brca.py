from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from modaltune.errors import DataError
from modaltune.evaluation.probes.cox import cox_sums
from modaltune.evaluation.probes.fit import ProbeSpec, fit_sites, hazard_ratios
from modaltune.evaluation.probes.sums import SiteCases
from simulation import fed_tcga_brca
from simulation.fed_tcga_brca import COVARIATES, FILE, METHODS, Rows, compare, read_rows
from simulation.federated_cox import Recipe, trained_by_rounds

ROWS = 240


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A table as FLamby's, with a random half of the deaths explained by the first covariate."""
    draw = np.random.default_rng(0)
    frame = pd.DataFrame(draw.integers(0, 2, (ROWS, COVARIATES)), columns=[f"covariate {n}" for n in range(COVARIATES)])
    frame["covariate 0"] = draw.normal(60, 10, ROWS).round()
    days = draw.exponential(900 * np.exp(-(frame["covariate 0"] - 60) / 10))
    frame["E"] = (days < 1200).astype(float)
    frame["T"] = np.minimum(days, 1200).round()
    frame["centre"] = draw.choice(4, ROWS, p=[0.4, 0.3, 0.2, 0.1]).astype(float)
    frame["case_id"] = [f"SYN-{n:04d}" for n in range(ROWS)]
    folder = tmp_path_factory.mktemp("fed")
    frame.assign(tss="SYN", fold="train").to_parquet(folder / FILE)
    return folder


@pytest.fixture(scope="module")
def sites(data: Path) -> dict[str, SiteCases]:
    held = read_rows(data, 0).among("train").sites()
    return {name: SiteCases(features=s.features[:, 1:6], group=s.group, months=s.months) for name, s in held.items()}


def test_every_centre_has_deaths_in_every_part_and_no_row_is_in_two(data: Path) -> None:
    rows = read_rows(data, 3)
    parts = {split: rows.among(split) for split in ("train", "val", "test")}
    assert sum(len(part.months) for part in parts.values()) == ROWS
    for name in ("train", "test"):
        assert all(cases.group.any() for cases in parts[name].sites().values())
    assert 0.2 < len(parts["test"].months) / ROWS < 0.3
    assert not np.array_equal(rows.split, read_rows(data, 4).split)


def test_one_local_step_and_averaging_is_a_step_on_the_likelihood_of_all_sites(sites: dict[str, SiteCases]) -> None:
    first = next(trained_by_rounds(sites, Recipe(local_steps=1, learning_rate=0.3), 1))
    slopes = [
        cox_sums(held.features, held.months, held.group == 1, np.zeros(5)).gradient
        for held in sites.values()
        if held.months is not None
    ]
    np.testing.assert_allclose(first, -0.3 * np.sum(slopes, axis=0) / sum(len(s.group) for s in sites.values()))


def test_many_rounds_of_one_step_come_to_the_exact_optimum(sites: dict[str, SiteCases]) -> None:
    *_, last = trained_by_rounds(sites, Recipe(local_steps=1, learning_rate=2.0), 300)
    np.testing.assert_allclose(last, hazard_ratios(fit_sites(ProbeSpec(kind="cox", ridge=0.0), sites)), atol=1e-3)


def test_a_proximal_term_holds_local_steps_back(sites: dict[str, SiteCases]) -> None:
    plain, held = (
        next(trained_by_rounds(sites, Recipe(local_steps=20, learning_rate=0.5, proximal=mu), 1)) for mu in (0.0, 1.0)
    )
    assert np.linalg.norm(held) < np.linalg.norm(plain)


def test_every_method_gets_a_row_for_each_centre_and_for_all(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fed_tcga_brca, "METHODS", {name: (fit, some[-1:]) for name, (fit, some) in METHODS.items()})
    found = json.loads(json.dumps(compare(data, [0], print)))
    rows = {(row["method"], row["hospital"]): row for row in found["metrics"]}
    assert {method for method, _ in rows} == {"exact", "pooled", "fedavg", "fedprox", "fedadam"}
    for method in METHODS:
        everybody = rows[method, "all"]
        assert everybody["low"] < everybody["value"] < everybody["high"]
        assert everybody["value"] > 0.6
        assert everybody["n"] == sum(row["n"] for (m, h), row in rows.items() if m == method and h != "all")
    assert [(row["method"], row["seed"]) for row in found["chosen"]] == [(method, 0) for method in METHODS]


def test_test_rows_choose_nothing(data: Path) -> None:
    rows = read_rows(data, 0)
    fit, settings = METHODS["exact"]
    blind = Rows(**{**vars(rows), "months": np.where(rows.split == "test", 1.0, rows.months)})
    assert fed_tcga_brca._best(rows, fit, settings) == fed_tcga_brca._best(blind, fit, settings)


def test_a_table_that_is_absent_or_another_one_is_said_in_one_line(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no such file"):
        read_rows(tmp_path, 0)
    pd.DataFrame({"case_id": ["a"], "centre": [0.0]}).to_parquet(tmp_path / FILE)
    with pytest.raises(DataError, match="39 covariates"):
        read_rows(tmp_path, 0)
