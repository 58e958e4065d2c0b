"""Which hospitals take part: invited by name, admitted by the key that they made, revoked for good."""

from __future__ import annotations

import fcntl
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePublicKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat, load_ssh_public_key
from pydantic import BaseModel, ConfigDict, TypeAdapter, ValidationError

from modaltune.errors import ConfigError
from modaltune.federation.settings import Name
from modaltune.federation.study import first_problem
from modaltune.invitation import Invitation
from modaltune.storage import write_bytes
from modaltune.trust.keys import fingerprint
from server.coordinator.home import Home
from server.coordinator.journal import journal


class Site(BaseModel):
    """A hospital; times are UTC, ISO 8601."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    invited: str
    fingerprint: str | None = None
    node_id: int | None = None
    admitted: str | None = None
    revoked: str | None = None

    @property
    def state(self) -> Literal["invited", "admitted", "revoked"]:
        """Where this site stands."""
        return "revoked" if self.revoked else "admitted" if self.admitted else "invited"


_SITES = TypeAdapter(dict[Name, Site])
_NAME = TypeAdapter(Name)


def load_sites(home: Home) -> dict[str, Site]:
    """Site name -> what is known of it; empty before the first invitation."""
    if not home.sites.is_file():
        return {}
    try:
        return _SITES.validate_json(home.sites.read_bytes())
    except ValidationError as error:
        raise ConfigError(f"{home.sites}: {first_problem(error)}; put it back from a backup") from None


def admitted_nodes(home: Home) -> dict[str, int]:
    """Site name -> node id of those that may take part now."""
    found = {name: site.node_id for name, site in load_sites(home).items() if site.state == "admitted"}
    return {name: node for name, node in found.items() if node is not None}


def invite(home: Home, name: str, folder: Path) -> Path:
    """Write ``NAME.invite`` into a folder; a site that was not admitted yet, or was revoked, may be invited again."""
    settings, sites = home.settings(), load_sites(home)
    _require_name(name)
    if name in sites and sites[name].state == "admitted":
        raise ConfigError(f"site {name} is admitted already; revoke it first if it is to make new keys")
    path = folder / f"{name}.invite"
    invitation = Invitation(
        site=name,
        coordinator=settings.address,
        ca=home.ca_certificate.read_text(encoding="ascii"),
        public_key=home.public_key.read_text(encoding="ascii"),
    )
    journal(home).append("site-invited", site=name)
    invitation.save(path)
    _store(home, name, Site(invited=_now()))
    return path


def admit(home: Home, key_file: Path) -> Site:
    """Let in the site whose public node key ``SITE.pub`` holds.

    Raises:
        ConfigError: no such key, not invited, or admitted with another key.
        FederationError: the SuperLink does not run.
    """
    from server.coordinator.link import connected

    name, sites = key_file.stem, load_sites(home)
    line = _read_key(key_file)
    mark = fingerprint(line)
    if name not in sites:
        known = ", ".join(sorted(sites)) or "none"
        raise ConfigError(f"{key_file.name}: site {name} was not invited; invited are: {known}. The file is SITE.pub")
    if sites[name].state == "revoked":
        raise ConfigError(f"site {name} was revoked; invite it again, and let it make a new key")
    if sites[name].state == "admitted" and sites[name].fingerprint != mark:
        raise ConfigError(f"site {name} is admitted with another key; revoke it first: modaltune-server revoke {name}")
    if twin := next((other for other, site in sites.items() if other != name and site.fingerprint == mark), None):
        raise ConfigError(f"{key_file.name}: site {twin} has this key; each hospital makes one of its own")
    with connected(home) as link:
        node = link.register(name, _pem(line, key_file))
    site = sites[name].model_copy(update={"fingerprint": mark, "node_id": node, "admitted": _now()})
    journal(home).append("site-admitted", site=name, fingerprint=mark, node=str(node))
    _store(home, name, site)  # last: nobody is in whom the log does not know
    return site


def revoke(home: Home, name: str) -> None:
    """Shut a site out, at once; its key cannot come back."""
    from server.coordinator.link import connected

    sites = load_sites(home)
    if name not in sites:
        raise ConfigError(f"no site {name}; known: {', '.join(sorted(sites)) or 'none'}")
    node = sites[name].node_id
    if node is None:
        journal(home).append("site-revoked", site=name)
    else:
        with connected(home) as link:
            link.nodes()  # it answers: what the log says now can be done
            journal(home).append("site-revoked", site=name)
            link.unregister(node)
    _store(home, name, sites[name].model_copy(update={"revoked": _now()}))


def _require_name(name: str) -> None:
    try:
        _NAME.validate_python(name)
    except ValidationError:
        raise ConfigError(
            f"site name {name!r}: expected letters, digits, '_' and '-', at most 64, beginning with a letter or digit"
        ) from None


def _read_key(path: Path) -> str:
    if not path.is_file():
        raise ConfigError(f"{path}: no such file; the site's modaltune-client init writes it")
    try:
        return path.read_text(encoding="ascii").strip()
    except UnicodeDecodeError:
        raise ConfigError(f"{path}: not a public key; expected one OpenSSH line") from None


def _pem(line: str, path: Path) -> bytes:
    try:
        key = load_ssh_public_key(line.encode())
    except (ValueError, UnsupportedAlgorithm):
        key = None
    if not isinstance(key, EllipticCurvePublicKey):
        raise ConfigError(f"{path}: not a node key; expected one OpenSSH line that begins with ecdsa-sha2-nistp384")
    return key.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)


def _store(home: Home, name: str, site: Site) -> None:
    """Change one entry; what another command has changed of others meanwhile stays."""
    with home.sites.with_suffix(".lock").open("w") as stream:
        fcntl.flock(stream, fcntl.LOCK_EX)
        sites = load_sites(home) | {name: site}
        write_bytes(home.sites, _SITES.dump_json(sites, indent=1, exclude_none=True) + b"\n")


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
