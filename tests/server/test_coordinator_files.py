"""What a coordinator's home folder holds, and the errors on the way there."""

from __future__ import annotations

import errno
import json
import re
import shutil
import stat
import subprocess
from contextlib import nullcontext
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import SimpleNamespace
from unittest.mock import Mock, patch

import pytest

from modaltune.errors import CertificateError, ConfigError, FederationError, ModalTuneError
from modaltune.invitation import Invitation
from modaltune.trust import certificates
from modaltune.trust.audit import AuditLog, verify_log
from modaltune.trust.certificates import certificate_facts, check_server, issue_server
from modaltune.trust.keys import create_node_key
from server.coordinator import services, sites
from server.coordinator.home import Home, Settings, make_settings
from server.coordinator.nginx import nginx_conf
from server.coordinator.setup import init, renew

NGINX = shutil.which("nginx", path="/usr/sbin:/usr/local/sbin:/usr/bin")


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("coordinator") / "home"
    init(Home(folder), Settings(hosts=("coordinator.example.org", "127.0.0.1")))
    return folder


@pytest.fixture
def home(template: Path, tmp_path: Path) -> Home:
    """A fresh coordinator; its files were made once."""
    shutil.copytree(template, tmp_path / "home")
    return Home(tmp_path / "home")


def audited(home: Home) -> dict[str, int]:
    return dict(verify_log(home.audit, home.public_key.read_text()).events)


def test_no_secret_is_readable_by_others(home: Home) -> None:
    secrets = [home.ca / "ca.key", home.certificate_key, home.signing_key, home.superexec_secret]
    assert {stat.S_IMODE(path.stat().st_mode) for path in secrets} == {0o600}
    assert {stat.S_IMODE(path.parent.stat().st_mode) for path in secrets} == {0o700}


def test_the_certificate_is_for_every_host_and_for_loopback(home: Home) -> None:
    assert set(certificate_facts(home.certificate).names) == {"coordinator.example.org", "127.0.0.1", "localhost"}


def test_a_coordinator_is_never_made_over_another(home: Home) -> None:
    with pytest.raises(ConfigError, match="holds a coordinator already"):
        init(home, Settings(hosts=("other.example.org",)))


def test_init_that_broke_off_is_completed_with_the_same_keys(home: Home) -> None:
    before = home.public_key.read_text(), home.ca_certificate.read_bytes()
    home.settings_file.unlink()
    init(home, Settings(hosts=("coordinator.example.org",)))
    assert (home.public_key.read_text(), home.ca_certificate.read_bytes()) == before


def test_settings_come_back_as_they_were_written(home: Home) -> None:
    assert home.settings() == Settings(hosts=("coordinator.example.org", "127.0.0.1"))


@pytest.mark.parametrize(
    ("values", "says"),
    [
        ({"hosts": []}, "hosts"),
        ({"hosts": ["https://coordinator.example.org"]}, "without a scheme"),
        ({"hosts": ["coordinator.example.org:443"]}, "without a scheme or a port"),
        ({"hosts": ["a;\n} evil {"]}, "DNS name"),
        ({"hosts": ["a"], "port": 70000}, "port"),
        ({"hosts": ["a"], "listen": "0.0.0.0; evil"}, "listen"),
        ({"hosts": ["a"], "ports": 1}, "ports"),
    ],
)
def test_wrong_settings_are_one_line(values: dict[str, object], says: str) -> None:
    with pytest.raises(ConfigError, match=says) as caught:
        make_settings(values, "coordinator.toml")
    assert "\n" not in str(caught.value)


@pytest.mark.skipif(NGINX is None, reason="nginx is not installed")
@pytest.mark.parametrize("listen", ["0.0.0.0", "127.0.0.1", "::1"])
def test_nginx_takes_the_configuration(home: Home, listen: str) -> None:
    settings = Settings(hosts=("coordinator.example.org",), listen=listen, port=18443)
    home.nginx.write_text(nginx_conf(home, settings))
    command = [str(NGINX), "-t", "-q", "-p", str(home.folder), "-c", str(home.nginx), "-e", "stderr"]
    tested = subprocess.run(command, capture_output=True, text=True)
    assert "emerg" not in tested.stderr
    if listen != "::1" or "Address family" not in tested.stderr:
        assert tested.returncode == 0, tested.stderr


def test_an_invitation_holds_what_a_site_needs_and_no_secret(home: Home, tmp_path: Path) -> None:
    path = sites.invite(home, "H1", tmp_path)
    invitation = Invitation.load(path)
    assert invitation.site == "H1"
    assert invitation.coordinator == "coordinator.example.org:8443"
    assert invitation.ca.encode() == home.ca_certificate.read_bytes()
    assert "PRIVATE" not in path.read_text()
    assert sites.load_sites(home)["H1"].state == "invited"
    assert audited(home)["site-invited"] == 1


def test_nobody_is_invited_or_revoked_whom_the_log_does_not_know(
    home: Home, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    sites.invite(home, "H1", tmp_path)
    unregistered: list[int] = []
    services = SimpleNamespace(unregister=unregistered.append, nodes=list)
    monkeypatch.setattr("server.coordinator.link.connected", lambda _: nullcontext(services))
    sites._store(home, "H2", sites.Site(invited="then", node_id=7, admitted="then"))
    monkeypatch.setattr(AuditLog, "append", full)
    with pytest.raises(OSError, match="No space left"):
        sites.invite(home, "H3", tmp_path)
    for name in ("H1", "H2"):
        with pytest.raises(OSError, match="No space left"):
            sites.revoke(home, name)
    assert {name: site.state for name, site in sites.load_sites(home).items()} == {"H1": "invited", "H2": "admitted"}
    assert not (tmp_path / "H3.invite").exists()
    assert not unregistered


def test_a_damaged_invitation_is_one_line(home: Home, tmp_path: Path) -> None:
    path = sites.invite(home, "H1", tmp_path)
    content = json.loads(path.read_text())
    path.write_text(json.dumps(content | {"ca": "nothing"}))
    with pytest.raises(ConfigError, match=r"ca: .*ask the coordinator"):
        Invitation.load(path)


@pytest.mark.parametrize("name", ["../H1", "", "H 1", "-H1", "a" * 65])
def test_a_site_name_cannot_be_a_path(home: Home, tmp_path: Path, name: str) -> None:
    with pytest.raises(ConfigError, match="site name"):
        sites.invite(home, name, tmp_path)


def test_only_invited_sites_are_admitted(home: Home, tmp_path: Path) -> None:
    create_node_key(tmp_path / "H9")
    with pytest.raises(ConfigError, match="H9 was not invited"):
        sites.admit(home, tmp_path / "H9.pub")


def test_a_private_or_other_key_is_refused(home: Home, tmp_path: Path) -> None:
    sites.invite(home, "H1", tmp_path)
    (tmp_path / "H1.pub").write_text(home.public_key.read_text())
    with pytest.raises(ConfigError, match="not a node key"):
        sites.admit(home, tmp_path / "H1.pub")
    create_node_key(tmp_path / "H1key")
    (tmp_path / "H1.pub").write_text((tmp_path / "H1key").read_text())
    with pytest.raises(ModalTuneError, match="public key"):
        sites.admit(home, tmp_path / "H1.pub")


def test_one_key_is_one_hospital_and_commands_at_once_lose_nothing(
    home: Home, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Services:
        def register(self, name: str, key: bytes) -> int:
            sites.invite(home, "H3", tmp_path)  # somebody else, at the same time
            return 100

    monkeypatch.setattr("server.coordinator.link.connected", lambda _: nullcontext(Services()))
    for name in ("H1", "H2"):
        sites.invite(home, name, tmp_path)
    create_node_key(tmp_path / "H1")
    sites.admit(home, tmp_path / "H1.pub")
    assert {name: site.state for name, site in sites.load_sites(home).items()} == {
        "H1": "admitted",
        "H2": "invited",
        "H3": "invited",
    }
    (tmp_path / "H2.pub").write_text((tmp_path / "H1.pub").read_text())
    with pytest.raises(ConfigError, match=r"H2.pub: site H1 has this key; each hospital makes one of its own"):
        sites.admit(home, tmp_path / "H2.pub")


def test_admitting_without_services_says_how_to_start_them(home: Home, tmp_path: Path) -> None:
    sites.invite(home, "H1", tmp_path)
    create_node_key(tmp_path / "H1")
    home.settings_file.write_text(home.settings_file.read_text().replace("18000", "1"))
    with pytest.raises(ModalTuneError, match="modaltune-server start"):
        sites.admit(home, tmp_path / "H1.pub")
    assert sites.load_sites(home)["H1"].state == "invited"


def test_a_site_that_never_had_a_key_is_revoked_without_services(home: Home, tmp_path: Path) -> None:
    sites.invite(home, "H1", tmp_path)
    sites.revoke(home, "H1")
    assert sites.load_sites(home)["H1"].state == "revoked"
    assert sites.admitted_nodes(home) == {}
    with pytest.raises(ConfigError, match="no site H2; known: H1"):
        sites.revoke(home, "H2")


def test_renewal_keeps_the_key_and_is_audited(home: Home) -> None:
    key, before = home.certificate_key.read_bytes(), certificate_facts(home.certificate)
    mark = renew(home, days=30)
    assert home.certificate_key.read_bytes() == key
    assert mark == certificate_facts(home.certificate).sha256 != before.sha256
    assert audited(home)["certificate-renewed"] == 1


@pytest.mark.parametrize("name", ["server.crt", "server.key"])
def test_a_damaged_certificate_starts_nothing_and_is_issued_anew(
    name: str, home: Home, monkeypatch: pytest.MonkeyPatch
) -> None:
    started: list[Path] = []
    monkeypatch.setattr(services, "start", started.append)
    (home.tls / name).write_bytes(b"\0" * 100)
    with pytest.raises(CertificateError, match=re.escape(name)):
        services.start_services(home, in_foreground=False)
    assert not started
    renew(home, days=30)
    assert check_server(home.ca, home.tls).names == ("coordinator.example.org", "127.0.0.1", "localhost")


def test_a_certificate_that_is_over_or_of_another_pair_is_one_line(home: Home, tmp_path: Path) -> None:
    other = issue_server(home.ca, tmp_path / "other", ["localhost"], 30)
    shutil.copy(other, home.certificate)
    with pytest.raises(CertificateError, match=r"belong to server\.key; issue it anew: modaltune-server renew"):
        services.start_services(home, in_foreground=False)
    past = Mock(wraps=datetime, now=lambda zone=UTC: datetime.now(UTC) - timedelta(days=400))
    with patch.object(certificates, "datetime", past):
        renew(home, days=30)
    with pytest.raises(CertificateError, match="no hospital would connect; issue it anew"):
        services.start_services(home, in_foreground=False)


def test_what_was_started_is_stopped_when_it_does_not_come_up(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    stopped: list[Path] = []
    monkeypatch.setattr(services, "nginx_command", lambda: "nginx")
    monkeypatch.setattr(services, "write_config", lambda *_: Path("supervisor.conf"))  # a socket's path is short
    monkeypatch.setattr(services, "start", lambda _: None)
    monkeypatch.setattr(services, "stop", stopped.append)
    monkeypatch.setattr(services, "_START_SECONDS", 0.0)
    with pytest.raises(FederationError, match="did not come up"):
        services.start_services(home, in_foreground=False)
    assert stopped == [home.supervisor]


def test_a_renewal_that_cannot_be_issued_takes_nothing_away(home: Home) -> None:
    before = {path.name: path.read_bytes() for path in home.tls.iterdir()}
    home.settings_file.write_text(home.settings_file.read_text().replace("coordinator.example", "new.example"))
    with pytest.raises(ModalTuneError, match="ends in"):
        renew(home, days=100_000)
    assert {path.name: path.read_bytes() for path in home.tls.iterdir()} == before


def test_an_address_is_the_same_in_every_spelling(home: Home) -> None:
    home.settings_file.write_text(
        home.settings_file.read_text().replace('"coordinator', '"2001:DB8:0::1", "coordinator')
    )
    renew(home, days=30)
    key = home.certificate_key.read_bytes()
    assert "2001:db8::1" in certificate_facts(home.certificate).names
    renew(home, days=30)
    assert home.certificate_key.read_bytes() == key


def test_renewal_follows_the_hosts_of_the_settings(home: Home) -> None:
    home.settings_file.write_text(home.settings_file.read_text().replace("coordinator.example", "new.example"))
    renew(home, days=30)
    assert "new.example.org" in certificate_facts(home.certificate).names


def test_no_home_says_how_to_make_one(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="modaltune-server init"):
        Home(tmp_path).settings()
