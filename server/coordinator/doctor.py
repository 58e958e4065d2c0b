"""The coordinator's own checks, in the table of ``modaltune doctor``."""

from __future__ import annotations

import os
import socket
import subprocess
from collections.abc import Callable, Iterator, Mapping
from datetime import UTC, datetime

from modaltune.doctor.finding import Finding, Found, error, ok, warning
from modaltune.doctor.installation import room
from modaltune.trust.audit import verify_log
from modaltune.trust.certificates import certificate_facts
from server.coordinator.health import grpc_serving, https_healthy, public_status
from server.coordinator.home import Home
from server.coordinator.services import nginx_command, service_states

DAYS_LEFT = 30
START = "modaltune-server start"
MUST_BE_REFUSED = ("/v1/control/list-runs", "/v1/runtime/", "/docs", "/openapi.json")


def account(_: Home) -> Iterator[Finding]:
    """The services need no rights of the administrator."""
    if os.geteuid() == 0:
        yield warning("the services run as root", "give the coordinator a user of its own")
    else:
        yield ok("the services run without rights of the administrator")


def secrets(home: Home) -> Iterator[Finding]:
    """Nobody but the owner reads keys and secrets."""
    folders = (home.ca, home.tls, home.signing_key.parent, home.superexec_secret.parent)
    files = (home.ca / "ca.key", home.certificate_key, home.signing_key, home.superexec_secret)
    for path in (*folders, *files):
        if not path.exists():
            yield error(f"{path} is missing", "put it back from a backup")
        elif path.stat().st_mode & 0o077:
            yield error(f"{path}: others can read it", f"chmod {700 if path.is_dir() else 600} {path}")
    if all(path.exists() and not path.stat().st_mode & 0o077 for path in (*folders, *files)):
        yield ok(f"{len(files)} secret files with mode 0600")


def certificates(home: Home) -> Iterator[Finding]:
    """Certificates stay valid for a while, and the server's is for the hosts that the settings name."""
    settings = home.settings()
    for what, path, fix in (
        ("server certificate", home.certificate, "modaltune-server renew"),
        ("authority", home.ca_certificate, "make a new authority and give its ca.crt to every site"),
    ):
        facts = certificate_facts(path)
        days = (facts.not_after - datetime.now(UTC)).days
        text = f"{what}: valid until {facts.not_after:%Y-%m-%d} ({days} days)"
        yield error(text, fix) if days < 0 else warning(text, fix) if days < DAYS_LEFT else ok(text)
    if absent := set(settings.hosts) - set(certificate_facts(home.certificate).names):
        yield error(f"the server certificate is not for {', '.join(sorted(absent))}", "modaltune-server renew")


def proxy(home: Home) -> Iterator[Finding]:
    """Nginx is installed and takes the configuration."""
    command = [nginx_command(), "-t", "-q", "-p", str(home.folder), "-c", str(home.nginx), "-e", "stderr"]
    tested = subprocess.run(command, capture_output=True, text=True, timeout=20)
    if tested.returncode:
        line = next((line for line in tested.stderr.splitlines() if "[emerg]" in line), "no reason given")
        yield error(f"nginx refuses its configuration: {line.partition('[emerg] ')[2] or line}", START)
    else:
        version = subprocess.run([nginx_command(), "-v"], capture_output=True, text=True, timeout=20).stderr.strip()
        yield ok(f"{version.partition(': ')[2]} takes {home.nginx}")


def processes(home: Home) -> Iterator[Finding]:
    """The services run, or their ports are free."""
    states = service_states(home)
    if not states:
        yield warning("the services are not started", START)
        settings = home.settings()
        for port in (settings.port, settings.superlink_port, settings.health_port):
            if _taken(port):
                yield error(f"port {port} is taken by another program", f"change it in {home.settings_file}")
    for state in states:
        if state.state == "RUNNING":
            yield ok(f"{state.name}: running")
        elif state.state == "STARTING":
            yield warning(f"{state.name}: starting", "ask again in some seconds")
        else:
            yield error(f"{state.name}: {state.state.lower()}", f"see {home.folder / 'logs'}, then: {START}")


def health(home: Home) -> Iterator[Finding]:
    """SuperLink and proxy answer, and the public port lets no control path through."""
    settings = home.settings()
    if not grpc_serving(settings):
        yield warning(f"the SuperLink's gRPC health service on {settings.health} does not answer", START)
        return
    yield ok("the SuperLink's gRPC health service says SERVING")
    if not https_healthy(home, settings):
        yield error(f"GET /health on port {settings.port} is not answered", f"see {home.folder / 'logs'}")
        return
    yield ok(f"GET /health on port {settings.port} is answered")
    open_paths = [path for path in MUST_BE_REFUSED if public_status(home, settings, "POST", path) != 403]
    if open_paths:
        yield error(f"reachable from outside: {', '.join(open_paths)}", f"{START} writes the proxy's settings anew")
    else:
        yield ok("the public port refuses every path but those of the sites")


def audit(home: Home) -> Iterator[Finding]:
    """The audit log is whole."""
    summary = verify_log(home.audit, home.public_key.read_text(encoding="ascii"))
    yield ok(f"audit log: {summary.lines} lines, unchanged")


def disk(home: Home) -> Iterator[Finding]:
    """Room for runs and logs."""
    yield from room("home folder", home.folder)


def _taken(port: int) -> bool:
    with socket.socket() as probe:
        probe.settimeout(1.0)
        return probe.connect_ex(("127.0.0.1", port)) == 0


CHECKS: Mapping[str, Callable[[Home], Found]] = {
    "account": account,
    "secrets": secrets,
    "certificates": certificates,
    "proxy": proxy,
    "services": processes,
    "health": health,
    "audit": audit,
    "disk": disk,
}
