"""The hospital's two programs under their supervisor, with a coordinator that is away."""

from __future__ import annotations

import os
import stat
import time
from collections.abc import Iterator
from getpass import getuser
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

from client.enrol import enrol
from client.home import Home
from client.overview import overview
from client.services import UNIT, UNIT_APP, hand_over, programs, service_states, start_services, stop_services
from modaltune.errors import ConfigError
from modaltune.invitation import Invitation
from modaltune.trust.certificates import create_authority
from modaltune.trust.keys import SigningKey
from tests.client.conversation import Conversation
from tests.client.stack import free_port, until
from tests.conftest import REPOSITORY


@pytest.fixture
def short() -> Iterator[Path]:
    """A folder with a short name: a supervisor's socket has one too."""
    with TemporaryDirectory() as folder:
        yield Path(folder)


@pytest.fixture
def home(conversation: Conversation, short: Path, monkeypatch: pytest.MonkeyPatch) -> Home:
    monkeypatch.setenv("PYTHONPATH", str(REPOSITORY))
    create_authority(short / "ca", "test", 30)
    authority = (short / "ca" / "ca.crt").read_text()
    key = SigningKey.create(short / "key").public_pem
    home = Home(short / "home")
    invitation = Invitation(site="H1", coordinator=f"127.0.0.1:{free_port()}", ca=authority, public_key=key)
    enrol(home, invitation, conversation.folder, short)
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
def test_the_apps_account_owns_its_own_folder_only(home: Home) -> None:
    account = home.account("nobody")
    hand_over(home, home.settings().model_copy(update={"app_user": "nobody"}))
    assert home.app.stat().st_uid == account.pw_uid
    secret = home.secret.stat()
    assert (secret.st_uid, secret.st_gid, stat.S_IMODE(secret.st_mode)) == (0, account.pw_gid, 0o640)
    assert {path.stat().st_uid for path in (home.keys, home.node_key, home.approvals, home.audit, home.cache)} == {0}


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give files to another account")
def test_root_gives_away_nothing_that_the_app_points_at(home: Home, tmp_path: Path) -> None:
    treasure = tmp_path / "treasure"
    (treasure / "inside").mkdir(parents=True)
    settings = home.settings().model_copy(update={"app_user": "nobody"})
    (home.app / "link").symlink_to(treasure)
    os.link(home.audit_public, home.app / "hard")
    hand_over(home, settings)
    home.app.rename(home.folder / "away")
    home.app.symlink_to(treasure)
    hand_over(home, settings)
    assert {path.stat().st_uid for path in (treasure, treasure / "inside", home.audit_public)} == {0}


def test_the_units_part_the_accounts_and_keep_the_app_off_the_network(home: Home) -> None:
    daemon, app = ((home.folder / "systemd" / f"{name}.service").read_text() for name in (UNIT, UNIT_APP))
    users = [next(line for line in unit.splitlines() if line.startswith("User=")) for unit in (daemon, app)]
    assert users[0] != users[1] == "User=modaltune-app"
    for line in (
        "IPAddressDeny=any",
        "IPAddressAllow=127.0.0.1",
        "RestrictAddressFamilies=AF_INET AF_INET6",
        "ProtectProc=invisible",
        f"LoadCredential=secret:{home.secret}",
        f'Environment="MODALTUNE_STATE=/var/lib/{UNIT_APP}/state"',
    ):
        assert line in app.splitlines(), line
    assert "${CREDENTIALS_DIRECTORY}/secret" in app
    hidden = next(line for line in app.splitlines() if line.startswith("InaccessiblePaths="))
    paths = hidden.removeprefix("InaccessiblePaths=").split()
    assert {str(home.keys), str(home.sent)} <= set(paths)
    assert all(Path(path).is_dir() for path in paths), "systemd starts no unit that hides what is not there"


@pytest.mark.skipif(os.geteuid() == 0, reason="root may start programs as any account")
def test_another_account_needs_root(home: Home) -> None:
    settings = home.settings().model_copy(update={"app_user": "nobody"})
    with pytest.raises(ConfigError, match="only root can start it"):
        hand_over(home, settings)


def test_nothing_is_written_into_the_site_folder(home: Home) -> None:
    app = programs(home, home.settings())[1]
    written = {app.environment[name] for name in ("FLWR_HOME", "MODALTUNE_CACHE", "MODALTUNE_STATE")}
    assert all(Path(folder).is_relative_to(home.app) for folder in written)
    hand_over(home, home.settings())
    assert not home.app.is_relative_to(home.settings().site_folder)


def test_the_account_that_holds_the_keys_runs_no_app(home: Home, conversation: Conversation, tmp_path: Path) -> None:
    invitation = Invitation(
        site="H1",
        coordinator="127.0.0.1:1",
        ca=home.authority.read_text(),
        public_key=home.coordinator_key.read_text(),
    )
    with pytest.raises(ConfigError, match="is the account that would hold the keys"):
        enrol(Home(tmp_path / "other"), invitation, conversation.folder, tmp_path, app_user=getuser())
