"""The systemd unit that keeps a coordinator running."""

from __future__ import annotations

from modaltune.storage import cache_folder
from server.coordinator.home import Home, installed_command

_UNIT = """\
# Copy to /etc/systemd/system, then: systemctl enable --now modaltune-coordinator
[Unit]
Description=ModalTune Federated coordinator
Wants=network-online.target
After=network-online.target

[Service]
User={user}
ExecStart="{command}" start --foreground --home "{home}"
Restart=always
RestartSec=10
KillMode=mixed
TimeoutStopSec=60
LimitNOFILE=65536
UMask=0077
NoNewPrivileges=yes
ProtectSystem=strict
ReadWritePaths={home} {cache}
PrivateTmp=yes
ProtectKernelTunables=yes
ProtectControlGroups=yes
RestrictSUIDSGID=yes
{capability}
[Install]
WantedBy=multi-user.target
"""


def systemd_unit(home: Home, user: str, port: int) -> str:
    """A unit for one home folder, run by ``user``."""
    return _UNIT.format(
        user=user,
        command=installed_command("modaltune-server"),
        home=home.folder,
        cache=cache_folder(),
        capability="AmbientCapabilities=CAP_NET_BIND_SERVICE\n" if port < 1024 else "",
    )
