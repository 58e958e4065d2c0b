"""The coordinator's services as they really run: supervised SuperLink and nginx with TLS, on loopback."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import ssl
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from modaltune.errors import FederationError, ModalTuneError
from modaltune.processes import State
from modaltune.trust.audit import verify_log
from modaltune.trust.certificates import certificate_facts
from modaltune.trust.keys import create_node_key
from server.coordinator import doctor, sites
from server.coordinator.health import grpc_serving, https_healthy, public_status
from server.coordinator.home import Home, Settings
from server.coordinator.link import connected
from server.coordinator.services import reload_certificate, service_states, start_services, stop_services
from server.coordinator.setup import init, renew
from tests.waiting import wait_for

pytestmark = [
    pytest.mark.integration,
    pytest.mark.skipif(
        shutil.which("nginx", path="/usr/sbin:/usr/local/sbin:/usr/bin") is None, reason="nginx is not installed"
    ),
]


def free_ports(number: int) -> list[int]:
    probes = [socket.create_server(("127.0.0.1", 0)) for _ in range(number)]
    ports = [int(probe.getsockname()[1]) for probe in probes]
    for probe in probes:
        probe.close()
    return ports


@pytest.fixture(scope="module")
def home() -> Iterator[Home]:
    """A running coordinator; its folder is short, as the name of a Unix socket has to be."""
    folder = Path(tempfile.mkdtemp(prefix="modaltune-", dir="/tmp"))
    port, superlink, health = free_ports(3)
    home = Home(folder / "home")
    settings = Settings(
        hosts=("localhost",), listen="127.0.0.1", port=port, superlink_port=superlink, health_port=health
    )
    init(home, settings)
    try:
        start_services(home, in_foreground=False)
        yield home
    finally:
        stop_services(home)
        shutil.rmtree(folder)


@pytest.fixture
def healthy(home: Home) -> Callable[[], bool]:
    settings = home.settings()
    return lambda: grpc_serving(settings) and https_healthy(home, settings)


def command(home: Home, *arguments: str) -> subprocess.CompletedProcess[str]:
    """``modaltune-server`` as a process."""
    call = [sys.executable, "-c", "from server.cli import main; main()", *arguments]
    environment = os.environ | {"MODALTUNE_SERVER_HOME": str(home.folder)}
    return subprocess.run(call, env=environment, capture_output=True, text=True)


def pid_of(home: Home, name: str) -> int:
    pid = next(state.pid for state in service_states(home) if state.name == name)
    assert pid is not None
    return pid


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("POST", "/v1/control/list-runs"),
        ("POST", "/v1/control/start-run"),
        ("POST", "/v1/fleet/../control/list-runs"),
        ("POST", "/v1/fleet/%2e%2e/control/list-runs"),
        ("POST", "//v1/control/list-runs"),
        ("POST", "/v1/runtime/pull-task"),
        ("GET", "/v1/fleet/pull-messages"),
        ("POST", "/health"),
        ("GET", "/health/"),
        ("GET", "/docs"),
        ("GET", "/openapi.json"),
        ("GET", "/"),
    ],
)
def test_the_public_port_refuses_all_but_the_paths_of_sites(home: Home, method: str, path: str) -> None:
    assert public_status(home, home.settings(), method, path) == 403


def test_a_fleet_path_reaches_the_superlink(home: Home) -> None:
    assert public_status(home, home.settings(), "POST", "/v1/fleet/pull-messages") == 415  # it wants protobuf


def test_plain_http_is_refused(home: Home) -> None:
    with socket.create_connection(("127.0.0.1", home.settings().port), timeout=5) as plain:
        plain.sendall(b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n")
        assert plain.recv(64).startswith(b"HTTP/1.1 400")


def test_the_superlink_listens_on_loopback_only(home: Home) -> None:
    import psutil

    ports = {home.settings().superlink_port, home.settings().health_port}
    listening = [entry.laddr for entry in psutil.net_connections("tcp") if entry.status == "LISTEN"]
    assert {entry.ip.removeprefix("::ffff:") for entry in listening if entry.port in ports} == {"127.0.0.1"}


def test_a_client_that_sends_its_header_byte_by_byte_holds_nobody_up(home: Home, healthy: Callable[[], bool]) -> None:
    context = ssl.create_default_context(cafile=str(home.ca_certificate))
    slow = [socket.create_connection(("127.0.0.1", home.settings().port)) for _ in range(200)]
    wrapped = context.wrap_socket(slow[0], server_hostname="localhost")
    wrapped.sendall(b"GET /health HTTP/1.1\r\nX: ")
    started = time.monotonic()
    assert healthy()
    wrapped.settimeout(20)
    assert wrapped.recv(1) == b""  # the proxy has hung up
    assert time.monotonic() - started < 15
    for connection in (wrapped, *slow[1:]):
        connection.close()


def test_a_site_is_admitted_once_and_its_revoked_key_cannot_come_back(home: Home, tmp_path: Path) -> None:
    sites.invite(home, "H1", tmp_path)
    create_node_key(tmp_path / "H1")
    admitted = sites.admit(home, tmp_path / "H1.pub")
    assert sites.admit(home, tmp_path / "H1.pub").node_id == admitted.node_id
    assert sites.admitted_nodes(home) == {"H1": admitted.node_id}
    with connected(home) as link:
        assert [node.node_id for node in link.nodes()] == [admitted.node_id]
    with pytest.raises(ModalTuneError, match="admitted already"):
        sites.invite(home, "H1", tmp_path)
    sites.revoke(home, "H1")
    assert sites.admitted_nodes(home) == {}
    with pytest.raises(ModalTuneError, match="was revoked"):
        sites.admit(home, tmp_path / "H1.pub")
    sites.invite(home, "H1", tmp_path)
    with pytest.raises(FederationError, match="make a new one"):
        sites.admit(home, tmp_path / "H1.pub")


def test_a_run_that_no_hospital_answers_fails_with_a_line_that_says_how_to_go_on(home: Home, tmp_path: Path) -> None:
    from server.coordinator.draft import write_study

    for name in ("A1", "A2"):
        sites.invite(home, name, tmp_path)
        create_node_key(tmp_path / name)
        sites.admit(home, tmp_path / f"{name}.pub")
    study = tmp_path / "study.toml"
    write_study(study, "blank", ["A1", "A2"], "small", 32, None)
    study.write_text(study.read_text().replace("deadline_seconds = 3600", "deadline_seconds = 1"))
    ran = command(home, "run", str(study), "--name", "lonely", "--json")
    assert ran.returncode == 4
    assert ran.stdout == ""
    assert ran.stderr.splitlines()[-1].startswith("error: run lonely: ")
    assert ran.stderr.rstrip().endswith("modaltune-server resume lonely")
    assert "Traceback" not in ran.stderr
    shown: dict[str, Any] = json.loads(command(home, "status", "--json").stdout)
    assert shown["run"]["run"] == "lonely"
    assert shown["run"]["status"] in ("STOPPED", "FAILED")
    assert shown["run"]["missing"] == ["A1", "A2"]
    assert {row["site"]: row["online"] for row in shown["sites"]}["A1"] is False


def test_a_run_that_the_superlink_does_not_know_has_ended(home: Home) -> None:
    with connected(home) as link:
        found = link.run(12345)
    assert (found.finished, found.known) == (True, False)


@pytest.mark.parametrize("name", ["nginx", "superlink", "superexec"])
def test_a_service_that_is_killed_comes_back(home: Home, healthy: Callable[[], bool], name: str) -> None:
    before = pid_of(home, name)
    os.kill(before, signal.SIGKILL)

    def back() -> bool:
        state = next(state for state in service_states(home) if state.name == name)
        return state.state == "RUNNING" and state.pid not in (None, before)

    wait_for(back)
    wait_for(healthy)
    assert pid_of(home, name) != before


def test_a_renewed_certificate_is_shown_without_restarting_the_proxy(home: Home, healthy: Callable[[], bool]) -> None:
    proxy = pid_of(home, "nginx")
    renew(home, days=60)
    assert reload_certificate(home) == ["superlink", "nginx"]
    expected = certificate_facts(home.certificate).sha256

    def shown() -> bool:
        context = ssl.create_default_context(cafile=str(home.ca_certificate))
        with (
            socket.create_connection(("127.0.0.1", home.settings().port)) as plain,
            context.wrap_socket(plain, server_hostname="localhost") as secured,
        ):
            found = ssl.DER_cert_to_PEM_cert(secured.getpeercert(binary_form=True) or b"")
        path = home.folder / "shown.crt"
        path.write_text(found)
        return certificate_facts(path).sha256 == expected

    wait_for(shown)
    wait_for(healthy)
    assert pid_of(home, "nginx") == proxy


@pytest.mark.parametrize(("state", "status"), [("RUNNING", "ok"), ("STARTING", "warning"), ("FATAL", "error")])
def test_a_program_that_has_just_been_started_is_no_error(
    state: str, status: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = State(name="superlink", state=state, pid=1, uptime=0.0)
    monkeypatch.setattr(doctor, "service_states", lambda home: [one])
    assert [finding.status for finding in doctor.processes(Home(tmp_path))] == [status]


def test_the_doctor_finds_nothing_wrong_and_the_audit_log_is_whole(home: Home, healthy: Callable[[], bool]) -> None:
    wait_for(healthy)
    found = json.loads(command(home, "doctor", "--json").stdout)
    assert [row for row in found["checks"] if row["status"] == "error"] == []
    events = verify_log(home.audit, home.public_key.read_text(encoding="ascii")).events
    assert {"coordinator-made", "services-started"} <= set(events)
