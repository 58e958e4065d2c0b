"""The hospital's two programs under their supervisor, with a coordinator that is away."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from client.enrol import enrol
from client.home import Home
from client.overview import overview
from client.services import hand_over, service_states, start_services, stop_services
from modaltune.errors import ConfigError
from modaltune.invitation import Invitation
from modaltune.trust.certificates import create_authority
from modaltune.trust.keys import SigningKey
from tests.client.conversation import Conversation
from tests.client.stack import free_port, until
from tests.conftest import REPOSITORY


@pytest.fixture
def home(conversation: Conversation, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Home:
    monkeypatch.setenv("PYTHONPATH", str(REPOSITORY))
    create_authority(tmp_path / "ca", "test", 30)
    authority = (tmp_path / "ca" / "ca.crt").read_text()
    key = SigningKey.create(tmp_path / "key").public_pem
    home = Home(tmp_path / "home")
    invitation = Invitation(site="H1", coordinator=f"127.0.0.1:{free_port()}", ca=authority, public_key=key)
    enrol(home, invitation, conversation.folder, tmp_path)
    return home


@pytest.mark.integration
def test_both_programs_start_wait_for_the_coordinator_and_stop(home: Home) -> None:
    assert overview(home, time.time())["programs"] == "not started"
    start_services(home, in_foreground=False)
    try:
        until(lambda: {state.state for state in service_states(home)} == {"RUNNING"}, "the programs do not run")
        until(lambda: "daemon started" in home.audit.read_text(), "the daemon does not start")
        log = home.folder / "logs" / "supernode.log"
        until(lambda: "retrying" in log.read_text(), "the daemon does not try again")
        assert set(overview(home, time.time())["programs"]) == {"supernode", "app"}
        secret = home.secret.read_text()
        assert secret not in log.read_text() + (home.folder / "supervisor.conf").read_text()
    finally:
        assert stop_services(home)
    assert not service_states(home)
    assert not stop_services(home)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give files to another account")
def test_the_apps_account_owns_its_own_folders_only(home: Home) -> None:
    settings = home.settings().model_copy(update={"app_user": "nobody"})
    account = home.account("nobody")
    memory = settings.site_folder / ".state"
    try:
        hand_over(home, settings)
        assert {path.stat().st_uid for path in (home.app, home.secret, memory)} == {account.pw_uid}
        assert {path.stat().st_uid for path in (home.keys, home.node_key, home.approvals, home.audit)} == {0}
    finally:
        os.chown(memory, 0, 0)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may start programs as any account")
def test_another_account_needs_root(home: Home) -> None:
    settings = home.settings().model_copy(update={"app_user": "nobody"})
    with pytest.raises(ConfigError, match="only root can start it"):
        hand_over(home, settings)
