"""Z-scores taken inside each class tell the class although the patients do not."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from modaltune.data.tcga import TcgaTables
from modaltune.errors import DataError
from modaltune.seeds import numpy_generator
from simulation.disguise import disguise, disguise_table
from tests.integration.helpers import run_script

CASES, GENES = 120, 60


def measured(*, by_class: bool, apart: float = 0.0) -> TcgaTables:
    """Skewed expression whose spread differs between two diagnoses by nothing but ``apart``, as z-scores."""
    draw = numpy_generator(7, "disguise")
    second = np.arange(CASES) % 2 == 1
    level, width = draw.uniform(1, 3, GENES), draw.uniform(0.6, 1.4, (2, GENES))
    spread = np.where(second[:, None], width[0] + apart * (width[1] - width[0]), width[0])
    linear = np.exp(level + spread * draw.normal(size=(CASES, GENES)))
    groups = [second, ~second] if by_class else [np.ones(CASES, dtype=bool)]
    for group in groups:
        linear[group] = (linear[group] - linear[group].mean(axis=0)) / linear[group].std(axis=0)
    index = pd.Index([f"case-{number}" for number in range(CASES)], name="case_id")
    cases = pd.DataFrame({"diagnosis": np.where(second, "b", "a"), "event": 0.0}, index=index)
    expression = pd.DataFrame(linear, index=index, columns=[f"G{number}" for number in range(GENES)])
    return TcgaTables(
        cohort="X", tasks=("diagnosis",), cases=cases, expression=expression, image=None, gene_sets={}, counts={}
    )


def test_without_a_difference_nothing_tells_the_class() -> None:
    found = disguise(measured(by_class=False), [0, 1, 2])
    assert all(0.25 < np.mean(scores) < 0.75 for scores in found.scores.values())
    assert found.ends < 0.1


def test_z_scores_inside_each_class_give_it_away_at_the_low_end() -> None:
    found = disguise(measured(by_class=True, apart=1.0), [0, 1, 2])
    assert np.mean(found.scores["below"]) > 0.95
    assert np.mean(found.scores["below"]) > np.mean(found.scores["above"])
    assert found.ends > 0.1


def test_the_table_has_a_line_a_cohort() -> None:
    assert disguise_table([disguise(measured(by_class=False), [0])]).row_count == 1


def test_one_diagnosis_cannot_be_compared() -> None:
    tables = measured(by_class=False)
    tables.cases["diagnosis"] = "a"
    with pytest.raises(DataError, match="fewer than two diagnoses have expression of 20 cases"):
        disguise(tables, [0])


@pytest.mark.tcga
def test_kidney_cancers_were_standardised_one_project_each_and_breast_cancers_together(tcga_dir: Path) -> None:
    options = ("--cohort", "RCC", "--cohort", "BRCA", "--seeds", "0", "--json")
    ran = run_script("modaltune-simulate", "disguise", "--data", tcga_dir, *options)
    assert ran.code == 0, ran.err
    kidney, breast = json.loads(ran.out)
    assert kidney["scores"]["below"][0] > 0.99 > kidney["scores"]["above"][0]
    assert abs(breast["scores"]["below"][0] - breast["scores"]["above"][0]) < 0.05
    assert kidney["ends"] > 4 * breast["ends"]
