from __future__ import annotations

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch

from modaltune.data.batch import CaseTensors
from modaltune.data.cohort import Cohort
from modaltune.evaluation.linear import fit_linear, linear_features
from modaltune.evaluation.metrics import c_index
from modaltune.federation.study import Study

CANDIDATES = {"diagnosis": ("alpha", "beta", "gamma"), "stage": ("I", "II", "III", "IV"), "survival": ("a", "b", "c")}


def some_cases(count: int, seed: int, *, genes: int = 20, classes: int = 3) -> list[CaseTensors]:
    """The first genes show the diagnosis, the first patch feature the risk."""
    draw = np.random.default_rng(seed)
    cases = []
    for number in range(count):
        label, risk = number % classes, draw.normal()
        expression = torch.from_numpy(draw.normal(size=genes).astype(np.float32))
        expression[label] += 6
        patches = torch.from_numpy(draw.normal(size=(3, 6)).astype(np.float32))
        patches[:, 0] += 2 * risk
        targets = {"diagnosis": (label, True)}
        cases.append(
            CaseTensors(
                patches=patches,
                cells=torch.zeros(3, 2, dtype=torch.long),
                expression=expression,
                has_expression=True,
                clinical=torch.zeros(2),
                targets=targets,
            )
        )
    return cases


def some_survival(cases: list[CaseTensors], seed: int) -> list[tuple[float, bool] | None]:
    draw = np.random.default_rng(seed)
    risk = [float(case.patches[:, 0].mean()) for case in cases]
    return [(float(draw.exponential(20 * np.exp(-value))) + 0.1, bool(draw.random() < 0.8)) for value in risk]


@pytest.mark.parametrize("genes", [4, 20, 60])
def test_separable_classes_and_risks_are_recovered(genes: int, tiny_study: Study) -> None:
    train, test = some_cases(90, 0, genes=genes), some_cases(60, 1, genes=genes)
    found = fit_linear(train, {"survival": some_survival(train, 2)}, test, tiny_study, CANDIDATES)
    labels = [case.targets["diagnosis"][0] for case in test]
    assert found["diagnosis"].shape == (60, 3)
    np.testing.assert_allclose(found["diagnosis"].sum(axis=1), 1)
    assert (found["diagnosis"].argmax(axis=1) == labels).mean() > 0.95
    months, event = (np.array(part) for part in zip(*some_survival(test, 3), strict=True))  # type: ignore[arg-type]
    assert c_index(months, event.astype(bool), found["survival"][:, 0], np.ones((1, 60)))[0] > 0.65


def test_a_task_without_labels_or_with_one_class_is_absent(tiny_study: Study) -> None:
    train = [replace(case, targets={"diagnosis": (1, True)}) for case in some_cases(30, 0)]
    found = fit_linear(train, {"survival": [None] * 30}, some_cases(5, 1), tiny_study, CANDIDATES)
    assert found == {}


@pytest.mark.parametrize(("deaths", "defined"), [(4, False), (5, True)])
def test_survival_needs_a_few_deaths(deaths: int, defined: bool, tiny_study: Study) -> None:
    train = some_cases(30, 0)
    survival: list[tuple[float, bool] | None] = [(float(number + 1), number < deaths) for number in range(30)]
    found = fit_linear(train, {"survival": survival}, some_cases(5, 1), tiny_study, CANDIDATES)
    assert ("survival" in found) == defined


def test_a_candidate_that_this_hospital_never_saw_has_no_chance(tiny_study: Study) -> None:
    train = some_cases(40, 0, classes=2)
    found = fit_linear(train, {"survival": [None] * 40}, some_cases(6, 1), tiny_study, CANDIDATES)["diagnosis"]
    assert (found[:, 2] == 0).all()
    np.testing.assert_allclose(found.sum(axis=1), 1)


def test_unlabelled_cases_are_left_out_of_the_fit(tiny_study: Study) -> None:
    train, test = some_cases(60, 0), some_cases(20, 1)
    mixed = [replace(case, targets={}) if number % 2 else case for number, case in enumerate(train)]
    outcomes = [None if number % 2 else outcome for number, outcome in enumerate(some_survival(train, 2))]
    found = fit_linear(mixed, {"survival": outcomes}, test, tiny_study, CANDIDATES)
    labels = [case.targets["diagnosis"][0] for case in test]
    assert (found["diagnosis"].argmax(axis=1) == labels).mean() > 0.8  # chance is a third
    assert np.isfinite(found["survival"]).all()


def test_features_are_genes_the_mean_patch_and_clinical_columns(tiny_study: Study) -> None:
    full = some_cases(1, 0)[0]
    blank = replace(full, patches=full.patches[:0], cells=full.cells[:0])
    rows = linear_features([full, blank], tiny_study)
    expected = np.concatenate([full.expression, full.patches.mean(dim=0), full.clinical])
    np.testing.assert_allclose(rows[0], expected, rtol=1e-6)
    np.testing.assert_array_equal(rows[1][20:26], np.zeros(6))
    np.testing.assert_array_equal(rows[1][:20], rows[0][:20])


def test_patches_whose_rows_mean_the_same_in_every_case_are_kept_apart(tiny_study: Study) -> None:
    slides = tiny_study.slides.model_copy(update={"standardise": "position", "rows": 3})
    by_row = tiny_study.model_copy(update={"slides": slides})
    full = some_cases(1, 0)[0]
    blank = replace(full, patches=full.patches[:0], cells=full.cells[:0])
    rows = linear_features([full, blank], by_row)
    np.testing.assert_allclose(rows[0][20:38], full.patches.reshape(-1), rtol=1e-6)
    assert not rows[1][20:38].any()


def test_real_cases_with_missing_parts_can_be_scored(
    tiny_study: Study, tiny_cases: list[CaseTensors], tiny_cohort: Cohort
) -> None:
    outcomes = [
        None if pd.isna(months) or pd.isna(event) else (float(months), bool(event))
        for months, event in zip(tiny_cohort.cases["time_months"], tiny_cohort.cases["event"], strict=True)
    ]
    found = fit_linear(tiny_cases, {"survival": outcomes}, tiny_cases, tiny_study, CANDIDATES)
    assert {task: len(rows) for task, rows in found.items()} == dict.fromkeys(CANDIDATES, 30)
    assert all(np.isfinite(rows).all() for rows in found.values())
