from __future__ import annotations

from pathlib import Path

import pytest

from modaltune.federation.settings import EvaluationSpec, LabelQuerySpec, ProbesSpec
from simulation.study import read_sites
from simulation.synthetic import build_synthetic
from tests.client.conversation import Conversation
from tests.integration.helpers import make_study, vocabulary

COUNTS = EvaluationSpec(counts=True, bins=8)
MINIMUM = 5
PROBES = ProbesSpec(questions=2, largest=5.0)
QUERIES = LabelQuerySpec(budget=2, max_candidates=3, by_label=True)


@pytest.fixture(scope="session")
def conversation(tmp_path_factory: pytest.TempPathFactory) -> Conversation:
    """The messages of one round between a coordinator and the hospital H1, and its honest replies."""
    folders = build_synthetic(tmp_path_factory.mktemp("cohort"), cases=80)
    cohorts = read_sites(folders, vocabulary(), "unused")
    study = make_study(cohorts, folders[0].parent / "gene_sets.gmt")
    privacy = study.privacy.model_copy(update={"min_cell": MINIMUM})
    changes = {"privacy": privacy, "roster": ("H1",), "label_queries": QUERIES, "probes": PROBES, "evaluation": COUNTS}
    study = study.model_copy(update=changes)
    return Conversation(Path(folders[0]), study)
