from __future__ import annotations

from pathlib import Path

import pytest

from client.approvals import Approvals
from client.enrol import enrol
from client.home import Home
from modaltune.federation.settings import EvaluationSpec, LabelQuerySpec, ProbesSpec
from modaltune.invitation import Invitation
from modaltune.trust.certificates import create_authority
from modaltune.trust.keys import SigningKey
from server.coordinator.bundle import Bundle
from simulation.study import read_sites
from simulation.synthetic import build_synthetic
from tests.client.conversation import Conversation
from tests.client.stack import probe_bundle
from tests.client.wire import Wire
from tests.integration.helpers import make_study, vocabulary

COUNTS = EvaluationSpec(counts=True, bins=8)
MINIMUM = 5
PROBES = ProbesSpec(questions=2, largest=5.0)
QUERIES = LabelQuerySpec(budget=2, max_candidates=3, by_label=True)


@pytest.fixture(scope="session")
def conversation(tmp_path_factory: pytest.TempPathFactory) -> Conversation:
    """The messages of one round between a coordinator and the hospital H1, and its honest replies."""
    folders = build_synthetic(tmp_path_factory.mktemp("cohort"), cases=160)
    cohorts = read_sites(folders, vocabulary(), "unused")
    study = make_study(cohorts, folders[0].parent / "gene_sets.gmt")
    privacy = study.privacy.model_copy(update={"min_cell": MINIMUM})
    changes = {"privacy": privacy, "roster": ("H1",), "label_queries": QUERIES, "probes": PROBES, "evaluation": COUNTS}
    study = study.model_copy(update=changes)
    return Conversation(Path(folders[0]), study)


@pytest.fixture(scope="session")
def bundle() -> Bundle:
    return probe_bundle()


@pytest.fixture
def home(conversation: Conversation, bundle: Bundle, tmp_path: Path) -> Home:
    """An enrolled hospital that approved the study with the bundle."""
    create_authority(tmp_path / "ca", "test", 30)
    authority = (tmp_path / "ca" / "ca.crt").read_text()
    key = SigningKey.create(tmp_path / "key").public_pem
    home = Home(tmp_path / "home")
    invitation = Invitation(site="H1", coordinator="127.0.0.1:1", ca=authority, public_key=key)
    enrol(home, invitation, conversation.folder, tmp_path)
    Approvals(home.approvals).add(conversation.approval.model_copy(update={"bundle": bundle.sha256}))
    return home


@pytest.fixture
def wire(home: Home, bundle: Bundle) -> Wire:
    return Wire(home, bundle)
