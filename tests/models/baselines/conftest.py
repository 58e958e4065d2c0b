from __future__ import annotations

from collections.abc import Callable

import pytest

from modaltune.data.preprocessing import Preprocessing
from modaltune.federation.study import Study
from modaltune.models.baselines.registry import baseline_study
from modaltune.models.learner import Learner, build_learner

Build = Callable[[str], Learner]


@pytest.fixture(scope="session")
def narrow_study(tiny_study: Study) -> Callable[[str], Study]:
    """The tiny study with a baseline an eighth as wide as published."""
    model = tiny_study.model.model_copy(update={"width_scale": 0.125})
    return lambda kind: baseline_study(tiny_study.model_copy(update={"model": model}), kind)


@pytest.fixture
def build(narrow_study: Callable[[str], Study], tiny_preprocessing: Preprocessing) -> Build:
    """A fresh baseline of the tiny study, in evaluation mode."""
    return lambda kind: build_learner(narrow_study(kind), tiny_preprocessing).eval()
