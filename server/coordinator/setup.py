"""Making a coordinator: its authority, certificate, keys and secrets, and the files that run it."""

from __future__ import annotations

import getpass
import secrets
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

import tomlkit

from modaltune import __version__
from modaltune.errors import CertificateError, ConfigError
from modaltune.storage import cache_folder, write_text
from modaltune.trust.certificates import certificate_facts, check_server, create_authority, issue_server, renew_server
from modaltune.trust.keys import SigningKey, write_private
from server.coordinator.home import Home, Settings, make_private, write_settings
from server.coordinator.journal import journal
from server.coordinator.nginx import nginx_conf
from server.coordinator.units import systemd_unit

AUTHORITY_DAYS, SERVER_DAYS = 10 * 365, 397
LOOPBACK = ("localhost", "127.0.0.1")  # the SuperLink shows the same certificate to the proxy and to the ServerApp


def init(home: Home, settings: Settings) -> None:
    """Make a home folder; one that is there is never overwritten, one that broke off half-way is completed.

    Raises:
        ConfigError: there is a coordinator already.
    """
    if home.settings_file.exists():
        raise ConfigError(f"{home.folder}: holds a coordinator already; choose another --home")
    for folder in (home.folder, home.ca, home.tls, home.signing_key.parent, home.superexec_secret.parent, home.flower):
        make_private(folder)
    for name in ("logs", "run/nginx", "runs"):
        (home.folder / name).mkdir(parents=True, exist_ok=True)
    key = SigningKey.load(home.signing_key) if home.signing_key.exists() else SigningKey.create(home.signing_key)
    write_text(home.public_key, key.public_pem)
    if not (home.ca / "ca.key").exists():
        create_authority(home.ca, f"ModalTune {settings.hosts[0]}"[:64], AUTHORITY_DAYS)
    if not home.certificate_key.exists():
        issue_server(home.ca, home.tls, _names(settings), SERVER_DAYS)
    if not home.superexec_secret.exists():
        write_private(home.superexec_secret, secrets.token_bytes(32))
    write_services(home, settings)
    write_settings(home, settings)  # last: what marks the folder as complete
    facts = certificate_facts(home.certificate)
    journal(home).append("coordinator-made", address=settings.address, version=__version__, certificate=facts.sha256)


def write_services(home: Home, settings: Settings) -> None:
    """The files that follow from the settings: nginx, systemd and Flower's connection."""
    cache_folder().mkdir(parents=True, exist_ok=True)  # the unit may write there, if it exists
    write_text(home.nginx, nginx_conf(home, settings))
    unit = systemd_unit(home, getpass.getuser(), settings.port)
    write_text(home.folder / "systemd" / "modaltune-coordinator.service", unit)
    connection = {"address": settings.superlink, "root-certificates": str(home.ca_certificate)}
    write_text(
        home.flower / "config.toml",
        tomlkit.dumps({"superlink": {"default": "coordinator", "coordinator": connection}}),
    )


def renew(home: Home, days: int) -> str:
    """Issue the server certificate anew, for the hosts that ``coordinator.toml`` names now; returns its fingerprint."""
    names = _names(home.settings())
    if home.certificate_key.exists() and _is_for(home, names):
        path = renew_server(home.ca, home.tls, days)
    else:
        with TemporaryDirectory(dir=home.tls) as made:  # nothing is taken away before all of it is there
            issue_server(home.ca, Path(made), names, days)
            if home.certificate_key.exists():
                home.certificate_key.replace(home.tls / "server.key.old")
            (Path(made) / home.certificate_key.name).replace(home.certificate_key)
            path = (Path(made) / home.certificate.name).replace(home.certificate)
    facts = certificate_facts(path)
    journal(home).append("certificate-renewed", certificate=facts.sha256, until=facts.not_after.isoformat())
    return facts.sha256


def _is_for(home: Home, names: Sequence[str]) -> bool:
    """Whether the certificate that is there can be read and is for these hosts."""
    try:
        return set(check_server(home.ca, home.tls).names) == set(names)
    except CertificateError:
        return False


def _names(settings: Settings) -> Sequence[str]:
    return tuple(dict.fromkeys((*settings.hosts, *LOOPBACK)))
