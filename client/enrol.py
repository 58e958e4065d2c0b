"""Making a hospital's home folder: keys that never leave it, settings, systemd units."""

from __future__ import annotations

import secrets
import socket
from contextlib import suppress
from getpass import getuser
from pathlib import Path

import tomlkit

from client.home import SETTINGS, Home, Limits, Settings
from client.services import systemd_units
from modaltune.data.site import read_site_config
from modaltune.errors import ConfigError
from modaltune.invitation import Invitation
from modaltune.storage import write_text
from modaltune.trust.audit import AuditLog
from modaltune.trust.certificates import certificate_fingerprint
from modaltune.trust.keys import SigningKey, create_node_key, fingerprint, write_private

_COMMENTS = {
    "site": "name in the roster of studies",
    "site_folder": "folder with site.toml",
    "coordinator": "the one address that this machine connects to",
    "runtime_host": "where the daemon listens for the client app; 0.0.0.0 only inside a container",
    "runtime_port": "for the client app",
    "app_user": "account that runs the client app when root starts the daemon; it needs the site folder only",
    "keep_sent": "keep every message that is sent in the folder sent, to be looked at",
    "rounds": "training rounds answered in one study, repeated ones included",
    "bytes_per_day": "received and sent together",
}


def enrol(home: Home, invitation: Invitation, site_folder: Path, out: Path, app_user: str = "") -> str:
    """Make the home folder and the file ``SITE.pub`` for the coordinator.

    Keys that an interrupted attempt has left are kept.

    Returns:
        Fingerprint of the node key, to be read out to the coordinator.
    Raises:
        ConfigError: the site folder is another site's, or this home is in use.
    """
    named = read_site_config(site_folder).name
    if named != invitation.site:
        raise ConfigError(
            f"the invitation is for site {invitation.site}, but {site_folder / 'site.toml'} is of site {named}; rename"
            " it there, or ask for another invitation"
        )
    if home.enrolled:
        raise ConfigError(f"{home.folder}: is a home folder already; name another one with --home")
    settings = Settings(
        site=invitation.site,
        site_folder=site_folder.absolute(),
        coordinator=invitation.coordinator,
        runtime_port=_free_port(),
        app_user=app_user,
    )
    if app_user == getuser():
        raise ConfigError(f"--app-user {app_user}: is the account that would hold the keys; name another one")
    account = home.account(app_user) if app_user else None
    home.make()
    write_text(home.authority, invitation.ca)
    write_text(home.coordinator_key, invitation.public_key)
    audit = AuditLog(home.audit, _keys(home))
    if account is not None:
        with suppress(PermissionError):  # this account is not in that group: systemd hands the secret over
            home.share_secret(account)
    public = home.node_public.read_text(encoding="ascii")
    write_text(out / f"{settings.site}.pub", public)
    for name, text in systemd_units(home, settings, getuser()).items():
        write_text(home.folder / "systemd" / name, text)
    marks = {"node_key": fingerprint(public), "authority": certificate_fingerprint(invitation.ca)}
    audit.append("init", site=settings.site, coordinator=settings.coordinator, **marks)
    _write_settings(home, settings)
    return fingerprint(public)


def _keys(home: Home) -> SigningKey:
    if not home.node_key.exists():
        create_node_key(home.node_key)
    if not home.secret.exists():
        write_private(home.secret, secrets.token_hex(32).encode())
    key = SigningKey.load(home.audit_key) if home.audit_key.exists() else SigningKey.create(home.audit_key)
    write_text(home.audit_public, key.public_pem)
    return key


def _write_settings(home: Home, settings: Settings) -> None:
    document = tomlkit.document()
    for name, value in settings.model_dump(mode="json", exclude={"limits"}).items():
        document.add(name, tomlkit.item(value).comment(_COMMENTS[name]))
    limits = tomlkit.table()
    for name, value in Limits().model_dump().items():
        limits.add(name, tomlkit.item(value).comment(_COMMENTS[name]))
    document.add("limits", limits)
    write_text(home.folder / SETTINGS, tomlkit.dumps(document))


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
