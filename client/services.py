"""The hospital's two programs: the daemon, and the starter of client apps, which may be another account's."""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path

from client.daemon import QUIET
from client.home import CACHE_VARIABLE, Home, Settings
from modaltune.errors import ConfigError
from modaltune.processes import Program, State, foreground, start, states, stop, write_config

SUPERNODE, APP = "supernode", "app"
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
{extra}
[Install]
WantedBy=multi-user.target
"""


def programs(home: Home, settings: Settings) -> list[Program]:
    """What runs; secrets are named by their files."""
    return [
        Program(
            name=SUPERNODE,
            command=[sys.executable, "-m", "client.daemon", "--home", str(home.folder)],
            environment=_environment(home.flower),
            folder=home.folder,
        ),
        Program(
            name=APP,
            command=_superexec(home, settings),
            environment=_environment(home.app) | {CACHE_VARIABLE: str(home.cache)},
            folder=home.app,
            user=settings.app_user or None,
        ),
    ]


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
    """Give the app's account its part of the home, and the place in the site folder where it keeps its state.

    Raises:
        ConfigError: an account is named, but only root can start programs as another one.
    """
    memory = settings.site_folder / ".state"
    memory.mkdir(exist_ok=True)
    if not settings.app_user:
        return
    if os.geteuid() != 0:
        raise ConfigError(
            f"{home.folder}: app_user is {settings.app_user}, and only root can start it; start as root, or use the two"
            f" units in {home.folder / 'systemd'}"
        )
    account = home.account(settings.app_user)
    for folder in (home.app, memory):
        for path in (folder, *folder.rglob("*")):
            os.chown(path, account.pw_uid, account.pw_gid, follow_symlinks=False)


def systemd_units(home: Home, settings: Settings, user: str) -> dict[str, str]:
    """One unit for each program: systemd keeps the app from the network and from everything but its own folder."""
    supernode, app = programs(home, settings)
    app_user = settings.app_user or user
    hidden = " ".join(str(path) for path in (home.keys, home.approvals, home.state, home.flower))
    return {
        "modaltune-client.service": _unit(
            supernode, "modaltune-client", "daemon of a hospital", user, f"ReadWritePaths={home.folder}"
        ),
        "modaltune-client-app.service": _unit(
            app,
            "modaltune-client-app",
            "client app of a hospital",
            app_user,
            f"IPAddressDeny=any\nIPAddressAllow=localhost\nRestrictAddressFamilies=AF_INET AF_INET6 AF_UNIX\n"
            f"InaccessiblePaths={hidden}\nReadWritePaths={home.app} {settings.site_folder / '.state'}",
        ),
    }


def _unit(program: Program, name: str, what: str, user: str, extra: str) -> str:
    environment = "\n".join(f'Environment="{key}={value}"' for key, value in program.environment.items())
    command = " ".join(f'"{part}"' if " " in part else part for part in program.command)
    return _UNIT.format(name=name, what=what, user=user, environment=environment, command=command, extra=extra)


def _superexec(home: Home, settings: Settings) -> list[str]:
    command = shutil.which("flower-superexec", path=_path())
    if command is None:
        raise ConfigError("flower-superexec is not installed; install the whole distribution modaltune-federated")
    return [
        *(command, "--insecure", "--runtime-api-address", f"127.0.0.1:{settings.runtime_port}"),
        *("--superexec-auth-secret-file", str(home.secret)),
    ]


def _environment(flower: Path) -> dict[str, str]:
    return QUIET | {"FLWR_HOME": str(flower), "PATH": _path(), "HF_HUB_OFFLINE": "1"}


def _path() -> str:
    return os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)])
