"""The preprocessing that a federation agrees on is that of all training cases in one table."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pandas as pd
import pytest

from modaltune.data.cohort import Bag, Cohort
from modaltune.data.preprocessing import Preprocessing, Scale
from modaltune.federation.study import Study
from modaltune.tasks.survival import bin_edges, event_histogram
from tests.integration.helpers import Finished

pytestmark = pytest.mark.integration


@pytest.fixture(scope="module")
def preprocessing(federation: Finished) -> Preprocessing:
    return federation.result.preprocessing


@pytest.fixture(scope="module")
def train(cohorts: dict[str, Cohort]) -> pd.DataFrame:
    """Training cases of all hospitals in one table."""
    return pd.concat([cohort.cases[cohort.cases["split"] == "train"] for cohort in cohorts.values()])


def training_bags(cohorts: Mapping[str, Cohort], train: pd.DataFrame) -> list[Bag]:
    return [bag for c in cohorts.values() for case in train.index.intersection(list(c.bags)) for bag in c.bags[case]]


def assert_scale(scale: Scale | None, values: np.ndarray) -> None:
    assert scale is not None
    np.testing.assert_allclose(scale.mean, values.mean(axis=0), rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(scale.deviation, values.std(axis=0), rtol=1e-7)


def test_genes_are_those_that_all_measure_and_a_set_names(
    preprocessing: Preprocessing, study: Study, cohorts: dict[str, Cohort]
) -> None:
    measured = [set(cohort.expression.columns) for cohort in cohorts.values() if cohort.expression is not None]
    named = {gene for members in study.gene_sets.values() for gene in members}
    assert len(measured) == 4
    assert preprocessing.genes == tuple(sorted(set.intersection(*measured) & named))
    assert set(preprocessing.gene_sets) == set(study.gene_sets)


def test_expression_is_scaled_as_in_one_table(
    preprocessing: Preprocessing, cohorts: dict[str, Cohort], train: pd.DataFrame
) -> None:
    table = pd.concat([cohort.expression for cohort in cohorts.values() if cohort.expression is not None])
    rows = table.loc[table.index.isin(train.index), list(preprocessing.genes)]
    assert len(rows) < len(train)
    assert_scale(preprocessing.expression, rows.to_numpy(np.float64))


def test_patches_are_scaled_as_in_one_table(
    preprocessing: Preprocessing, cohorts: dict[str, Cohort], train: pd.DataFrame
) -> None:
    bags = training_bags(cohorts, train)
    assert_scale(preprocessing.patches, np.concatenate([bag.features for bag in bags]).astype(np.float64))


def test_age_is_scaled_as_in_one_table(preprocessing: Preprocessing, train: pd.DataFrame) -> None:
    assert_scale(preprocessing.clinical["age"], train[["age"]].to_numpy(np.float64))


def test_candidates_are_the_labels_of_all_training_cases(
    preprocessing: Preprocessing, study: Study, train: pd.DataFrame
) -> None:
    for task in study.tasks:
        if task.kind != "survival":
            present = set(train[task.name].dropna())
            assert preprocessing.tasks[task.name].candidates == tuple(v for v in task.values if v in present)


def test_time_bins_hold_equal_shares_of_all_deaths(
    preprocessing: Preprocessing, study: Study, train: pd.DataFrame
) -> None:
    known = train.dropna(subset=["time_months", "event"])
    months, event = known["time_months"].to_numpy(), known["event"].to_numpy(bool)
    space, bins = preprocessing.tasks["survival"], len(study.task("survival").bins)
    assert space.bin_edges == bin_edges(event_histogram(months, event), bins)
    deaths = np.bincount(np.searchsorted(space.bin_edges, months[event]), minlength=bins)
    assert deaths.sum() == event.sum()
    assert deaths.max() - deaths.min() <= 2
    assert all(np.diff(space.bin_times) > 0)


def test_hospitals_that_have_no_sums_are_named(preprocessing: Preprocessing) -> None:
    assert preprocessing.suppressed == {
        "expression": ("H4",),
        "patches": ("H3",),
        "labels.diagnosis": ("H3", "H4"),
        "labels.stage": ("H2", "H4", "H5"),
        "labels.survival": ("H2", "H3"),
    }
