"""The coordinator's services: SuperLink, the starter of ServerApps, and the proxy; supervised, restarted, logged."""

from __future__ import annotations

import os
import shutil
import sys
import time
from datetime import UTC, datetime

from modaltune.errors import CertificateError, ConfigError, FederationError
from modaltune.processes import Program, State, foreground, restart, send_signal, start, states, stop, write_config
from modaltune.trust.certificates import check_server
from server.coordinator.health import grpc_serving, https_healthy
from server.coordinator.home import Home, installed_command
from server.coordinator.journal import journal
from server.coordinator.setup import write_services

SUPERLINK, SUPEREXEC, NGINX = "superlink", "superexec", "nginx"
_START_SECONDS = 180.0
_QUIET = {
    "FLWR_TELEMETRY_ENABLED": "0",
    "FLWR_DISABLE_UPDATE_CHECK": "1",
    "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1",
    "HF_HUB_OFFLINE": "1",
}


def programs(home: Home) -> list[Program]:
    """What runs; secrets are named by their files."""
    settings = home.settings()
    scripts = installed_command("").as_posix()
    environment = _QUIET | {
        "FLWR_HOME": str(home.flower),
        "PATH": os.pathsep.join([scripts, os.environ.get("PATH", os.defpath)]),
    }
    link = [str(installed_command("flower-superlink"))]
    link += ["--ssl-ca-certfile", str(home.ca_certificate), "--ssl-certfile", str(home.certificate)]
    link += ["--ssl-keyfile", str(home.certificate_key), "--enable-supernode-auth", "--isolation", "process"]
    link += ["--superexec-auth-secret-file", str(home.superexec_secret), "--disable-runtime-dependency-installation"]
    link += ["--database", str(home.database), "--host", "127.0.0.1", "--port", str(settings.superlink_port)]
    link += ["--health-server-address", settings.health]
    starter = [str(installed_command("flower-superexec")), "--root-certificates", str(home.ca_certificate)]
    starter += ["--runtime-api-address", settings.superlink, "--superexec-auth-secret-file", str(home.superexec_secret)]
    proxy = [sys.executable, "-m", "server.coordinator.proxy", str(home.folder)]
    proxy += [nginx_command(), "-p", str(home.folder), "-c", str(home.nginx), "-e", "stderr"]
    return [
        Program(name=SUPERLINK, command=link, environment=environment, folder=home.folder),
        Program(name=SUPEREXEC, command=starter, environment=environment, folder=home.folder),
        Program(name=NGINX, command=proxy, folder=home.folder),
    ]


def start_services(home: Home, *, in_foreground: bool) -> None:
    """Start everything and wait until it answers; in the foreground, stay until told to stop.

    Raises:
        CertificateError: certificates or keys are damaged, or over; nothing is started.
        FederationError: a service did not come up; what was started is stopped again.
    """
    write_services(home, home.settings())
    _check_certificate(home)
    config = write_config(home.folder, programs(home))
    if in_foreground:
        journal(home).append("services-started")
        foreground(config)
    start(config)
    try:
        journal(home).append("services-started")
        _await(home)
    except BaseException:
        stop(home.supervisor)
        raise


def stop_services(home: Home) -> bool:
    """Stop everything, and return whether anything ran; a run that was going on can be resumed."""
    ran = stop(home.supervisor)
    if ran:
        journal(home).append("services-stopped")
    return ran


def service_states(home: Home) -> list[State]:
    """The supervised processes; none when nothing was started."""
    return states(home.supervisor)


def reload_certificate(home: Home) -> list[str]:
    """Let running services read a new certificate, and return which did.

    The proxy takes it up without dropping a connection. The SuperLink comes back within seconds; sites and ServerApp
    ask again meanwhile, so a run goes on.
    """
    if not service_states(home):
        return []
    restart(home.supervisor, SUPERLINK)
    send_signal(home.supervisor, NGINX, "HUP")
    return [SUPERLINK, NGINX]


def _check_certificate(home: Home) -> None:
    ends = check_server(home.ca, home.tls).not_after
    if ends < datetime.now(UTC):
        raise CertificateError(
            f"{home.certificate}: ended on {ends:%Y-%m-%d}, so no hospital would connect; issue it anew:"
            " modaltune-server renew"
        )


def _await(home: Home) -> None:
    settings, deadline = home.settings(), time.monotonic() + _START_SECONDS
    while not (grpc_serving(settings) and https_healthy(home, settings)):
        if time.monotonic() > deadline:
            down = [state.name for state in service_states(home) if state.state != "RUNNING"] or [NGINX]
            raise FederationError(
                f"{down[0]} did not come up in {_START_SECONDS:.0f} s; see {home.folder / 'logs'}, or run:"
                " modaltune-server doctor"
            )
        time.sleep(0.2)


def nginx_command() -> str:
    """Where nginx is; it lies outside the path of ordinary users on some systems.

    Raises:
        ConfigError: it is not installed.
    """
    places = [os.environ.get("PATH", os.defpath), "/usr/sbin", "/usr/local/sbin"]
    found = shutil.which("nginx", path=os.pathsep.join(places))
    if found is None:
        raise ConfigError("nginx is not installed; install it from your distribution: apt install nginx")
    return found
