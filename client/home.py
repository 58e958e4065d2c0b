"""The daemon's home folder: settings, keys, approvals and logs of one hospital.

``HOME/app`` belongs to the account that runs the client app. Of the rest this account can read ``HOME/cache`` and, by
its group, ``HOME/runtime.secret``; nobody else ever writes into ``HOME/app``, where the app could have laid a link.
"""

from __future__ import annotations

import os
import pwd
import shutil
import tomllib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from client.network import Coordinator
from modaltune.errors import ConfigError
from modaltune.federation.settings import Name
from modaltune.federation.study import first_problem
from modaltune.trust.audit import AuditLog
from modaltune.trust.keys import SigningKey

VARIABLE = "MODALTUNE_CLIENT_HOME"
SETTINGS = "client.toml"
CACHE_VARIABLE, READ_CACHE_VARIABLE = "MODALTUNE_CACHE", "MODALTUNE_READ_CACHE"
STATE_VARIABLE = "MODALTUNE_STATE"
Port = Annotated[int, Field(gt=0, lt=2**16)]


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Limits(_Section):
    """What the hospital allows besides the study.

    Attributes:
        rounds: training rounds answered in one study, repeated ones included.
        bytes_per_day: received and sent together, by UTC days.
    """

    rounds: Annotated[int, Field(gt=0)] = 1000
    bytes_per_day: Annotated[int, Field(gt=0)] = 10_000_000_000


class Settings(_Section):
    """The content of ``client.toml``.

    Attributes:
        site: name in the roster.
        site_folder: folder with ``site.toml``.
        coordinator: ``HOST:PORT``.
        runtime_host, runtime_port: where the daemon listens for the client app; loopback, unless a container's network
            is shared by the two alone.
        app_user: account that runs the client app when the daemon is started by root; empty = the daemon's own.
        keep_sent: keep every message that is sent, byte for byte, in ``HOME/sent``, to be looked at.
    """

    site: Name
    site_folder: Path
    coordinator: str
    runtime_host: str = "127.0.0.1"
    runtime_port: Port
    app_user: str = ""
    keep_sent: bool = False
    limits: Limits = Limits()


class Home:
    """Paths of a home folder, and its settings."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.keys, self.approvals, self.state = folder / "keys", folder / "approvals", folder / "state"
        self.flower, self.app = folder / "flower", folder / "app"
        self.authority, self.coordinator_key = folder / "ca.crt", folder / "coordinator.pub"
        self.node_key, self.audit_key = self.keys / "node", self.keys / "audit.key"
        self.node_public = self.keys / "node.pub"
        self.audit, self.audit_public = folder / "audit.jsonl", folder / "audit.pub"
        self.secret, self.cache = folder / "runtime.secret", folder / "cache"
        self.paused_file, self.status = self.state / "paused", self.state / "status.json"
        self.usage = self.state / "usage.json"
        self.splits, self.split_key = self.state / "splits", self.keys / "splits.key"
        self.sent = folder / "sent"

    @classmethod
    def find(cls, given: Path | None) -> Home:
        """The folder of ``--home``, of ``$MODALTUNE_CLIENT_HOME``, or ``~/.modaltune/client``."""
        return cls((given or Path(os.environ.get(VARIABLE) or "~/.modaltune/client")).expanduser().absolute())

    @property
    def enrolled(self) -> bool:
        """Whether ``modaltune-client init`` has made this home."""
        return (self.folder / SETTINGS).exists()

    @property
    def paused(self) -> bool:
        """Whether the coordinator's messages are left where they are."""
        return self.paused_file.exists()

    def splits_of(self, study: str) -> Path:
        """Where the splits of a study are kept, given its digest; one that an older release approved has no file."""
        return self.splits / f"{study}.json"

    def settings(self) -> Settings:
        """Read ``client.toml``."""
        path = self.folder / SETTINGS
        if not path.is_file():
            raise ConfigError(f"{path}: no such file; run modaltune-client init, or name the folder with --home")
        try:
            settings = Settings.model_validate(tomllib.loads(path.read_text(encoding="utf-8")))
        except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
            raise ConfigError(f"{path}: not valid TOML: {error}") from None
        except ValidationError as error:
            raise ConfigError(f"{path}: {first_problem(error)}") from None
        Coordinator(settings.coordinator)
        if settings.app_user:
            self.account(settings.app_user)
        return settings

    def open_audit(self) -> AuditLog:
        """This hospital's log."""
        return AuditLog(self.audit, SigningKey.load(self.audit_key))

    def own(self, *paths: Path) -> None:
        """Give what root has made to the account of this home, which the daemon may run as."""
        if os.geteuid() == 0:
            owner = self.state.stat()
            for path in paths:
                os.chown(path, owner.st_uid, owner.st_gid, follow_symlinks=False)

    def share_secret(self, account: pwd.struct_passwd) -> None:
        """Let an account read the secret with which client apps are started, by its group."""
        os.chown(self.secret, -1, account.pw_gid, follow_symlinks=False)
        self.secret.chmod(0o640)

    def forget_bundles(self) -> None:
        """Remove unpacked bundles: Flower takes a folder with the first digits of the right hash for the bundle."""
        installed = self.app / "apps"
        if installed.is_symlink():
            installed.unlink()
        shutil.rmtree(installed, ignore_errors=True)

    @contextmanager
    def app_cache(self) -> Iterator[None]:
        """While it lasts, what can be made again is kept where the client app reads it."""
        before = os.environ.get(CACHE_VARIABLE)
        os.environ[CACHE_VARIABLE] = str(self.cache)
        try:
            yield
        finally:
            if before is None:
                del os.environ[CACHE_VARIABLE]
            else:
                os.environ[CACHE_VARIABLE] = before

    def account(self, name: str) -> pwd.struct_passwd:
        """An account of this machine."""
        try:
            return pwd.getpwnam(name)
        except KeyError:
            raise ConfigError(
                f"{self.folder / SETTINGS}: app_user {name!r} is no account of this machine; create it, e.g. useradd"
                f" --system {name}"
            ) from None

    def make(self) -> None:
        """Create the folders; of those only ``cache`` can be read by other accounts."""
        closed = (self.keys, self.approvals, self.state, self.splits, self.flower, self.app, self.sent)
        private = dict.fromkeys(closed, 0o700)
        for folder, mode in {self.folder: 0o711, **private, self.cache: 0o755, self.cache / "text": 0o755}.items():
            folder.mkdir(parents=True, exist_ok=True)
            folder.chmod(mode)
