from __future__ import annotations

import pytest

from modaltune.data.preprocessing import Preprocessing, TaskSpace
from modaltune.federation.study import Study


@pytest.fixture(scope="session")
def gate_study(tiny_study: Study) -> Study:
    """Survival alone, at two hospitals."""
    survival = tuple(task for task in tiny_study.tasks if task.kind == "survival")
    return tiny_study.model_copy(update={"tasks": survival, "roster": ("H1", "H2")})


@pytest.fixture(scope="session")
def gate_preprocessing(gate_study: Study) -> Preprocessing:
    """Time bins; nothing else is needed to score predictions."""
    bins = gate_study.tasks[0].bins
    space = TaskSpace(candidates=bins, texts=bins, bin_edges=(10.0, 30.0), bin_times=(5.0, 20.0, 60.0))
    return Preprocessing(study=gate_study.digest, tasks={"survival": space})
