from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

from modaltune.data.cohort import Cohort
from modaltune.data.tcga import hospital_tables, read_tcga, with_location
from modaltune.evaluation.external import evaluate_tables
from modaltune.federation.statistics import pooled_preprocessing, site_statistics
from modaltune.federation.study import Study, TaskSpec
from modaltune.models.learner import build_learner, save_model
from modaltune.tasks.head import candidate_targets
from simulation.studies.pancancer import pan_vocabulary
from tests.conftest import GENES

CASES = 60


@pytest.fixture
def tables(tmp_path: Path) -> Path:
    """Invented tables of BLCA at two hospitals: every case has expression, none an image."""
    draw, number = np.random.default_rng(0), np.arange(CASES)
    clinical = pd.DataFrame(
        {
            "case_id": [f"PATIENT-{index:02d}" for index in number],
            "hospital": np.where(number < CASES // 2, "H1", "H2"),
            "primary_class": number % 2,
            "stage_num": 1 + number % 4,
            "os_months": draw.exponential(40, CASES) + 1,
            "os_event": number % 3 % 2,
            "age": draw.normal(60, 5, CASES),
            "sex": np.where(number % 2, "female", "male"),
        }
    )
    genes = pd.DataFrame(draw.normal(size=(CASES, len(GENES))), columns=GENES)
    (tmp_path / "data" / "BLCA").mkdir(parents=True)
    clinical.to_parquet(tmp_path / "data" / "BLCA" / "clinical.parquet")
    genes.assign(case_id=clinical["case_id"]).to_parquet(tmp_path / "data" / "BLCA" / "rna.parquet")
    return tmp_path / "data"


def trained(folder: Path, tables: Path, study: Study, tasks: Sequence[TaskSpec], **changes: Any) -> Path:
    """A model folder with the preprocessing of the first hospital; its weights are untrained."""
    read = read_tcga(tables, "BLCA")
    held = tuple(task for task in tasks if task.name in read.tasks)
    study = study.model_copy(update={"tasks": held, **changes})
    share = hospital_tables(read, "H1")
    placed = any(label.scale for task in tasks for label in task.labels)
    cases = with_location(share.cases, "BLCA") if placed else share.cases
    cohort = Cohort(
        site="H1", tasks=read.tasks, cases=cases.assign(split="train"), expression=share.expression, bags={}
    )
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
    model = trained(tmp_path, tables, tiny_study, pan_vocabulary(["BLCA", "BRCA"]))
    rows = evaluate_tables(model, tables, "BLCA")
    found = one(rows, "stage", "auc")
    assert found["n"] == CASES
    assert found["value"] is not None
    assert found["low"] < found["high"]
