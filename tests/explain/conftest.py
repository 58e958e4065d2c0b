from __future__ import annotations

from pathlib import Path

import pytest

from modaltune.data.cohort import Cohort
from modaltune.data.preprocessing import Preprocessing
from modaltune.federation.study import Study
from modaltune.models.learner import Learner
from tests.prediction.released import Released, Run, release, runner


@pytest.fixture
def released(
    tmp_path: Path, tiny_learner: Learner, tiny_study: Study, tiny_preprocessing: Preprocessing, tiny_cohort: Cohort
) -> Released:
    return release(tmp_path, tiny_learner, tiny_study, tiny_preprocessing, tiny_cohort)


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    return runner(monkeypatch, capsys)
