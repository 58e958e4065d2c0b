"""The hospital's two programs: the daemon, and the starter of client apps, which may be another account's."""

from __future__ import annotations

import os
import sys
from pathlib import Path

from client.daemon import QUIET
from client.home import CACHE_VARIABLE, READ_CACHE_VARIABLE, STATE_VARIABLE, Home, Settings
from modaltune.errors import ConfigError
from modaltune.processes import Program, State, foreground, start, states, stop, write_config

SUPERNODE, APP = "supernode", "app"
_POLL = {"FLWR_SUPEREXEC_TASK_POLL_INTERVAL": "0.2"}  # seconds
UNIT, UNIT_APP = "modaltune-client", "modaltune-client-app"
DEFAULT_APP_USER = "modaltune-app"
_UNIT = """\
# Copy to /etc/systemd/system, then: systemctl enable --now {name}
[Unit]
Description=ModalTune Federated, {what}
Wants=network-online.target
After=network-online.target

[Service]
User={user}
{environment}
ExecStart={command}
Restart=always
RestartSec=10
TimeoutStopSec=60
UMask=0077
NoNewPrivileges=yes
ProtectSystem=strict
PrivateTmp=yes
ProtectKernelTunables=yes
ProtectControlGroups=yes
RestrictSUIDSGID=yes
RestrictNamespaces=yes
ProtectProc=invisible
CapabilityBoundingSet=
{extra}
[Install]
WantedBy=multi-user.target
"""
_CAGE = """\
# An account of its own: useradd --system modaltune-app. It has to be able to read the site folder.
StateDirectory={unit}
StateDirectoryMode=0700
ExecStartPre=rm -rf {place}/apps
LoadCredential=secret:{secret}
InaccessiblePaths={hidden}
# The daemon's address. What else listens there, a proxy or a DNS server, is a way out: see docs/hospital.md.
IPAddressDeny=any
IPAddressAllow=127.0.0.1
RestrictAddressFamilies=AF_INET AF_INET6
"""


def programs(home: Home, settings: Settings) -> list[Program]:
    """What runs; secrets are named by their files."""
    return [_daemon(home), _app(settings, home, home.app, str(home.secret))]


def _daemon(home: Home) -> Program:
    return Program(
        name=SUPERNODE,
        command=[sys.executable, "-m", "client.daemon", "--home", str(home.folder)],
        environment=_environment(home.flower),
        folder=home.folder,
    )


def _app(settings: Settings, home: Home, place: Path, secret: str) -> Program:
    """The starter of client apps, which keep what they write in a place of their own."""
    folders = {CACHE_VARIABLE: place / "cache", READ_CACHE_VARIABLE: home.cache, STATE_VARIABLE: place / "state"}
    return Program(
        name=APP,
        command=[
            *(sys.executable, "-P", "-m", "client.starter"),
            *("--address", f"{settings.runtime_host}:{settings.runtime_port}", "--secret", secret),
        ],
        environment=_environment(place) | _POLL | {name: str(folder) for name, folder in folders.items()},
        folder=place,
        user=settings.app_user or None,
    )


def start_services(home: Home, *, in_foreground: bool) -> None:
    """Start both programs; in the foreground, stay until told to stop."""
    settings = home.settings()
    hand_over(home, settings)
    config = write_config(home.folder, programs(home, settings))
    if in_foreground:
        foreground(config)
    start(config)


def stop_services(home: Home) -> bool:
    """Stop both programs; whether anything ran."""
    return stop(write_config(home.folder, programs(home, home.settings())))


def service_states(home: Home) -> list[State]:
    """How both programs do; empty when nothing was started."""
    config = home.folder / "supervisor.conf"
    return states(config) if config.is_file() else []


def hand_over(home: Home, settings: Settings) -> None:
    """Give the app's account its folder, and the secret to its group.

    Raises:
        ConfigError: an account is named, but only root can start programs as another one.
    """
    if not settings.app_user:
        return
    if os.geteuid() != 0:
        raise ConfigError(
            f"{home.folder}: app_user is {settings.app_user}, and only root can start it; start as root, or use the two"
            f" units in {home.folder / 'systemd'}"
        )
    account = home.account(settings.app_user)
    home.share_secret(account)
    os.chown(home.app, account.pw_uid, account.pw_gid, follow_symlinks=False)


def systemd_units(home: Home, settings: Settings, user: str) -> dict[str, str]:
    """One unit for each program, under two accounts; systemd keeps the app in a folder and off the network."""
    place = Path("/var/lib") / UNIT_APP
    app = _app(settings, home, place, "${CREDENTIALS_DIRECTORY}/secret")
    hidden = " ".join(str(path) for path in (home.keys, home.approvals, home.state, home.flower, home.app, home.sent))
    cage = _CAGE.format(secret=home.secret, hidden=hidden, unit=UNIT_APP, place=place)
    rights = f"ReadWritePaths={home.folder}\n"
    return {
        f"{UNIT}.service": _unit(_daemon(home), UNIT, "daemon of a hospital", user, rights),
        f"{UNIT_APP}.service": _unit(
            app, UNIT_APP, "client app of a hospital", settings.app_user or DEFAULT_APP_USER, cage
        ),
    }


def _unit(program: Program, name: str, what: str, user: str, extra: str) -> str:
    environment = "\n".join(f'Environment="{key}={value}"' for key, value in program.environment.items())
    command = " ".join(f'"{part}"' if " " in part else part for part in program.command)
    return _UNIT.format(name=name, what=what, user=user, environment=environment, command=command, extra=extra)


def _environment(flower: Path) -> dict[str, str]:
    return QUIET | {"FLWR_HOME": str(flower), "PATH": _path(), "HF_HUB_OFFLINE": "1"}


def _path() -> str:
    return os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)])
