"""The coordinator's home folder: where everything lies, and its settings."""

from __future__ import annotations

import ipaddress
import os
import re
import sys
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import tomlkit
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from modaltune.errors import ConfigError
from modaltune.federation.study import first_problem
from modaltune.storage import write_text

Port = Annotated[int, Field(gt=0, lt=2**16)]
_HOST = re.compile(r"(?=.{1,253}$)[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?(\.[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?)*", re.I)
_COMMENTS = {
    "hosts": "names and addresses by which hospitals reach this machine; the first goes into invitations",
    "port": "the only port that the firewall lets in",
    "listen": "address of the network card to listen on",
    "superlink_port": "loopback only",
    "health_port": "loopback only",
}


class Settings(BaseModel):
    """``coordinator.toml``."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    hosts: Annotated[tuple[str, ...], Field(min_length=1)]
    port: Port = 8443
    listen: str = "0.0.0.0"
    superlink_port: Port = 18000
    health_port: Port = 18001

    @field_validator("hosts")
    @classmethod
    def _host_names(cls, hosts: tuple[str, ...]) -> tuple[str, ...]:
        for host in hosts:
            if not _HOST.fullmatch(host) and not _is_address(host):
                raise ValueError("a host must be a DNS name or an IP address, without a scheme or a port")
        return tuple(str(ipaddress.ip_address(host)) if _is_address(host) else host for host in hosts)

    @field_validator("listen")
    @classmethod
    def _listens(cls, address: str) -> str:
        if not _is_address(address):
            raise ValueError("must be an IP address of this machine, or 0.0.0.0")
        return address

    @property
    def address(self) -> str:
        """``HOST:PORT`` that hospitals connect to."""
        return f"{_bracketed(self.hosts[0])}:{self.port}"

    @property
    def superlink(self) -> str:
        """Where the SuperLink listens."""
        return f"127.0.0.1:{self.superlink_port}"

    @property
    def health(self) -> str:
        """Where the SuperLink answers gRPC health checks."""
        return f"127.0.0.1:{self.health_port}"


def _is_address(text: str) -> bool:
    try:
        ipaddress.ip_address(text)
    except ValueError:
        return False
    return True


def _bracketed(host: str) -> str:
    return f"[{host}]" if ":" in host else host


def make_settings(values: Mapping[str, Any], where: str) -> Settings:
    """Validated settings.

    Raises:
        ConfigError: an unknown field, or a value that cannot be.
    """
    try:
        return Settings.model_validate(values)
    except ValidationError as error:
        raise ConfigError(f"{where}: {first_problem(error)}") from None


@dataclass(frozen=True)
class Home:
    """Paths in the home folder."""

    folder: Path

    @property
    def settings_file(self) -> Path:
        return self.folder / "coordinator.toml"

    @property
    def ca(self) -> Path:
        return self.folder / "ca"

    @property
    def tls(self) -> Path:
        return self.folder / "tls"

    @property
    def ca_certificate(self) -> Path:
        return self.ca / "ca.crt"

    @property
    def certificate(self) -> Path:
        return self.tls / "server.crt"

    @property
    def certificate_key(self) -> Path:
        return self.tls / "server.key"

    @property
    def signing_key(self) -> Path:
        """Signs the audit log and releases."""
        return self.folder / "keys" / "signing.key"

    @property
    def public_key(self) -> Path:
        return self.folder / "audit.pub"

    @property
    def audit(self) -> Path:
        return self.folder / "audit.jsonl"

    @property
    def superexec_secret(self) -> Path:
        return self.folder / "secrets" / "superexec"

    @property
    def sites(self) -> Path:
        return self.folder / "sites.json"

    @property
    def nginx(self) -> Path:
        return self.folder / "nginx.conf"

    @property
    def nginx_pid(self) -> Path:
        return self.folder / "run" / "nginx.pid"

    @property
    def supervisor(self) -> Path:
        """Written by :func:`modaltune.processes.write_config`."""
        return self.folder / "supervisor.conf"

    @property
    def flower(self) -> Path:
        return self.folder / "flower"

    @property
    def database(self) -> Path:
        return self.folder / "superlink.db"

    @property
    def runs(self) -> Path:
        return self.folder / "runs"

    @property
    def releases(self) -> Path:
        return self.folder / "releases"

    def settings(self) -> Settings:
        """What ``coordinator.toml`` says.

        Raises:
            ConfigError: there is none, or it is wrong.
        """
        path = self.settings_file
        if not path.is_file():
            raise ConfigError(f"{self.folder}: no coordinator here; make one with: modaltune-server init --host NAME")
        try:
            return make_settings(tomllib.loads(path.read_text(encoding="utf-8")), str(path))
        except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
            raise ConfigError(f"{path}: not valid TOML: {error}") from None


def write_settings(home: Home, settings: Settings) -> None:
    """Write ``coordinator.toml`` with a comment to each field."""
    document = tomlkit.document()
    for name, value in settings.model_dump(mode="json").items():
        document.add(name, tomlkit.item(value).comment(_COMMENTS[name]))
    write_text(home.settings_file, tomlkit.dumps(document))


def make_private(folder: Path) -> None:
    """A folder that only its owner may enter."""
    folder.mkdir(parents=True, exist_ok=True)
    os.chmod(folder, 0o700)


def installed_command(name: str) -> Path:
    """A command of this installation, whatever else is on the path."""
    return Path(sys.executable).parent / name
