from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

from modaltune.data.cohort import Cohort
from modaltune.data.preprocessing import prepare
from modaltune.data.tcga import cancer_task, hospital_tables, read_tcga, with_cancer_tasks, with_location
from modaltune.errors import DataError
from modaltune.evaluation.external import evaluate_tables
from modaltune.evaluation.predictions import predict, score_models
from modaltune.evaluation.survival import Censoring
from modaltune.federation.statistics import pooled_preprocessing, site_statistics
from modaltune.federation.study import Study
from modaltune.models.baselines.registry import baseline_study
from modaltune.models.learner import build_learner, load_model, save_model
from modaltune.tasks.head import candidate_targets
from simulation.studies.pancancer import pan_vocabulary
from tests.conftest import GENES

CASES = 60


@pytest.fixture
def tables(tmp_path: Path) -> Path:
    """Invented tables of two hospitals, expression only; the third diagnosis is seen at the second alone."""
    draw, number = np.random.default_rng(0), np.arange(CASES)
    first = number < CASES // 2
    clinical = pd.DataFrame(
        {
            "case_id": [f"PATIENT-{index:02d}" for index in number],
            "hospital": np.where(first, "H1", "H2"),
            "primary_class": np.where(first, number % 2, number % 3),
            "stage_num": 1 + number % 4,
            "os_months": draw.exponential(40, CASES) + 1,
            "os_event": number % 3 % 2,
            "age": draw.normal(60, 5, CASES),
            "sex": np.where(number % 2, "female", "male"),
        }
    )
    genes = pd.DataFrame(draw.normal(size=(CASES, len(GENES))), columns=GENES)
    (tmp_path / "data" / "RCC").mkdir(parents=True)
    clinical.to_parquet(tmp_path / "data" / "RCC" / "clinical.parquet")
    genes.assign(case_id=clinical["case_id"]).to_parquet(tmp_path / "data" / "RCC" / "rna.parquet")
    return tmp_path / "data"


def hospital(tables: Path, name: str, *, apart: bool = False) -> Cohort:
    """The cases of a hospital in the words of a model of several cancers."""
    read = read_tcga(tables, "RCC")
    share = hospital_tables(read, name)
    cases = (with_cancer_tasks if apart else with_location)(share.cases, "RCC").assign(split="train")
    tasks = tuple(cancer_task("RCC", task) if apart else task for task in read.tasks)
    return Cohort(site=name, tasks=tasks, cases=cases, expression=share.expression, bags={})


def trained(
    folder: Path,
    tables: Path,
    study: Study,
    cohorts: Sequence[str],
    kind: str = "modaltune",
    *,
    apart: bool = False,
) -> Path:
    """A model folder of a study of these cancers, with the preprocessing of the first hospital and no training."""
    read = read_tcga(tables, "RCC")
    names = {cancer_task("RCC", name) if apart else name for name in read.tasks}
    tasks = tuple(task for task in pan_vocabulary(cohorts, apart=apart) if task.name in names)
    study = study.model_copy(update={"tasks": tasks})
    study = study if kind == "modaltune" else baseline_study(study, kind)
    cohort = hospital(tables, "H1", apart=apart)
    preprocessing = pooled_preprocessing({"H1": site_statistics(cohort, study, GENES)}, study, GENES)
    generator = torch.Generator().manual_seed(0)
    width = study.model.output_width
    targets = {
        name: candidate_targets(torch.randn(len(space.candidates), width, generator=generator), centre=True)
        for name, space in preprocessing.tasks.items()
    }
    save_model(folder / "model", build_learner(study, preprocessing, targets), study, preprocessing)
    return folder / "model"


def one(rows: Sequence[dict[str, Any]], task: str, metric: str, hospital: str = "all") -> dict[str, Any]:
    """The row of a task's metric."""
    (found,) = (row for row in rows if (row["task"], row["metric"], row["hospital"]) == (task, metric, hospital))
    return found


def test_stages_are_scored_in_the_words_of_a_model_of_several_cancers(
    tables: Path, tiny_study: Study, tmp_path: Path
) -> None:
    model = trained(tmp_path, tables, tiny_study, ["RCC", "BRCA"])
    rows = evaluate_tables(model, tables, "RCC")
    found = one(rows, "stage", "auc")
    assert found["n"] == CASES
    assert found["value"] is not None
    assert found["low"] < found["high"]


def test_a_model_with_tasks_for_each_cancer_is_scored_on_those_of_the_tables(
    tables: Path, tiny_study: Study, tmp_path: Path
) -> None:
    model = trained(tmp_path, tables, tiny_study, ["RCC", "BRCA"], apart=True)
    rows = evaluate_tables(model, tables, "RCC")
    assert {row["task"] for row in rows} == {"kidney_diagnosis", "kidney_stage", "survival"}
    assert one(rows, "kidney_stage", "auc")["n"] == CASES


@pytest.mark.parametrize("place", ["H2", "all"])
def test_survival_is_weighted_for_the_censoring_of_the_cases_that_are_scored(
    place: str, tables: Path, tiny_study: Study, tmp_path: Path
) -> None:
    model = trained(tmp_path, tables, tiny_study, ["RCC"])
    learner, study, preprocessing = load_model(model)
    cohorts = [hospital(tables, name) for name in ("H1", "H2") if place in (name, "all")]
    table = pd.concat(
        predict(learner, study, preprocessing, cohort, prepare(cohort, study, preprocessing), split=None)
        for cohort in cohorts
    )
    followed = pd.concat(cohort.cases for cohort in cohorts)
    censoring = Censoring.of(followed["time_months"].to_numpy(), followed["event"].to_numpy() > 0)
    rows = evaluate_tables(model, tables, "RCC")
    edges = preprocessing.tasks["survival"].bin_edges
    for metric in ("c_index_ipcw", "auc_12m", "brier_12m"):
        expected = score_models(
            [table], study.task("survival"), (), metric, study.seed, edges=edges, censoring=censoring
        )
        assert expected.value is not None
        assert one(rows, "survival", metric, place)["value"] == pytest.approx(expected.value)


def test_labelled_cases_that_are_not_scored_are_counted_with_the_reason(
    tables: Path, tiny_study: Study, tmp_path: Path
) -> None:
    said: list[str] = []
    evaluate_tables(trained(tmp_path / "a", tables, tiny_study, ["RCC"]), tables, "RCC", say=said.append)
    untrained = "10 have a label that the model was not trained on"
    assert said == [f"diagnosis: 10 of {CASES} labelled cases are not scored: {untrained}."]
    said.clear()
    rows = evaluate_tables(
        trained(tmp_path / "b", tables, tiny_study, ["RCC"], "abmil"), tables, "RCC", say=said.append
    )
    unread = f"{CASES} lack slides, which the model needs"
    assert said == [
        f"{task}: {CASES} of {CASES} labelled cases are not scored: {unread}."
        for task in ("diagnosis", "stage", "survival")
    ]
    assert {row["n"] for row in rows} == {0}


def test_genes_that_the_tables_lack_are_counted_and_most_of_them_are_an_error(
    tables: Path, tiny_study: Study, tmp_path: Path
) -> None:
    model = trained(tmp_path, tables, tiny_study, ["RCC"])
    path, said = tables / "RCC" / "rna.parquet", list[str]()
    genes = pd.read_parquet(path)
    genes.drop(columns=GENES[:6]).to_parquet(path)
    evaluate_tables(model, tables, "RCC", say=said.append)
    assert "6 of 12 genes of the model are not in the tables and count as average." in said
    genes.drop(columns=GENES[:7]).to_parquet(path)
    with pytest.raises(DataError, match="H1: the expression table has 5 of the model's 12 genes, expected"):
        evaluate_tables(model, tables, "RCC")
