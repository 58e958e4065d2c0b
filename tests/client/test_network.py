"""The network checks against real local servers, each with one thing wrong."""

from __future__ import annotations

import importlib
import ipaddress
import json
import os
import ssl
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import httpx
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from client import daemon, network
from client.daemon import why_refused
from client.enrol import enrol
from client.home import Home
from client.network import Coordinator
from modaltune.doctor.finding import Finding, run_checks
from modaltune.errors import ConfigError
from modaltune.invitation import Invitation
from modaltune.trust.certificates import create_authority
from modaltune.trust.keys import SigningKey
from tests.client.conversation import Conversation

Key = ec.EllipticCurvePrivateKey
Start = Callable[..., str]


class Authority:
    """A certificate authority of a test, and the certificates that it signs."""

    def __init__(self, folder: Path, days: int = 365) -> None:
        self.folder, self.key = folder, ec.generate_private_key(ec.SECP256R1())
        self.name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "test root")])
        certificate = self._built(self.name, self.key, 0, days).add_extension(
            x509.BasicConstraints(ca=True, path_length=None), critical=True
        )
        self.roots = folder / "ca.crt"
        self.roots.write_bytes(self._pem(certificate.sign(self.key, hashes.SHA256())))

    def context(self, host: str = "localhost", *, start: int = 0, days: int = 365) -> ssl.SSLContext:
        """The server side of a connection with a fresh certificate."""
        key = ec.generate_private_key(ec.SECP256R1())
        names = [
            x509.DNSName(host),
            *([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))] if host == "localhost" else []),
        ]
        name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, host)])
        built = self._built(name, key, start, days).add_extension(x509.SubjectAlternativeName(names), critical=False)
        secret = key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
        file = self.folder / "server.pem"
        file.write_bytes(self._pem(built.sign(self.key, hashes.SHA256())) + secret)
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(file)
        return context

    def _built(self, name: x509.Name, key: Key, start: int, days: int) -> x509.CertificateBuilder:
        now = datetime.now(UTC)
        return (
            x509.CertificateBuilder()
            .subject_name(name)
            .issuer_name(self.name)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now + timedelta(days=start) - timedelta(hours=1))
            .not_valid_after(now + timedelta(days=days))
        )

    @staticmethod
    def _pem(certificate: x509.Certificate) -> bytes:
        return certificate.public_bytes(serialization.Encoding.PEM)


@contextmanager
def serving(context: ssl.SSLContext | None, status: int = 200, late: float = 0, dated: bool = True) -> Iterator[str]:
    """A server whose /health answers ``status`` and whose clock is ``late`` seconds behind; its ``HOST:PORT``."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response_only(status if self.path == "/health" else 404)
            if dated:
                moment = datetime.now(UTC) - timedelta(seconds=late)
                self.send_header("Date", format_datetime(moment, usegmt=True))
            self.send_header("Content-Length", "0")
            self.end_headers()

    class Quiet(ThreadingHTTPServer):
        def handle_error(self, *_: object) -> None:
            """A refused handshake is what some tests want."""

    server = Quiet(("127.0.0.1", 0), Handler)
    if context is not None:
        server.socket = context.wrap_socket(server.socket, server_side=True, do_handshake_on_connect=False)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield f"localhost:{server.server_address[1]}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    return Authority(tmp_path)


@pytest.fixture
def start() -> Iterator[Start]:
    with ExitStack() as stack:
        yield lambda *arguments, **options: stack.enter_context(serving(*arguments, **options))


def checked(address: str, roots: Path | None) -> dict[str, list[Finding]]:
    findings = run_checks(network.CHECKS, Coordinator(address, roots))
    return {name: [finding for finding in findings if finding.check == name] for name in network.CHECKS}


def test_a_healthy_coordinator_passes_every_check(authority: Authority, start: Start) -> None:
    found = checked(start(authority.context()), authority.roots)
    assert {finding.status for findings in found.values() for finding in findings} == {"ok"}
    assert [len(findings) for findings in found.values()] == [1, 1, 2, 1, 1]


def test_an_ip_address_works_when_the_certificate_names_it(authority: Authority, start: Start) -> None:
    found = checked(start(authority.context()).replace("localhost", "127.0.0.1"), authority.roots)
    assert found["tls"][0].status == "ok"


CERTIFICATES = {
    "expired": ({"start": -9, "days": -1}, "has expired", "renew"),
    "not valid yet": ({"start": 2}, "not yet valid", "clock of this machine"),
    "of another host": ({"host": "elsewhere.example"}, "mismatch", "name that the certificate was made for"),
}


@pytest.mark.parametrize("kind", CERTIFICATES)
def test_a_certificate_that_is_refused_says_why(kind: str, authority: Authority, start: Start) -> None:
    options, why, fix = CERTIFICATES[kind]
    found = checked(start(authority.context(**options)), authority.roots)  # type: ignore[arg-type]
    (tls,) = found["tls"]
    assert tls.status == "error"
    assert why in tls.finding
    assert fix in tls.fix
    assert found["tcp"][0].status == "ok"
    assert found["health"][0].finding == found["clock"][0].finding == "not checked: stopped by 'tls'"


def test_an_unknown_root_is_refused_and_the_option_named(authority: Authority, start: Start) -> None:
    (tls,) = checked(start(authority.context()), None)["tls"]
    assert tls.status == "error"
    assert "--root-certificates" in tls.fix


def test_the_daemon_tells_a_refused_certificate_from_other_trouble(authority: Authority, start: Start) -> None:
    with pytest.raises(httpx.ConnectError) as refused:
        httpx.get(f"https://{start(authority.context())}/health")
    assert why_refused(refused.value) == "unable to get local issuer certificate"
    assert why_refused(RuntimeError("something else")) is None


def test_a_refused_certificate_is_an_event_in_the_log(
    conversation: Conversation, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    create_authority(tmp_path / "ca", "test", 30)
    invitation = Invitation(
        site="H1",
        coordinator="localhost:8443",
        ca=(tmp_path / "ca" / "ca.crt").read_text(),
        public_key=SigningKey.create(tmp_path / "key").public_pem,
    )
    home = Home(tmp_path / "home")
    enrol(home, invitation, conversation.folder, tmp_path)

    def refuse() -> None:
        error = ssl.SSLCertVerificationError()
        error.verify_message = "certificate has expired"
        raise httpx.ConnectError("refused") from error

    monkeypatch.setattr(importlib.import_module("flwr.supernode.cli.flower_supernode"), "flower_supernode", refuse)
    monkeypatch.setattr(daemon, "install", lambda *_: None)
    monkeypatch.setattr(daemon.os, "_exit", lambda _: None)
    monkeypatch.setattr(sys, "argv", [])
    monkeypatch.setattr(os, "environ", dict(os.environ))
    daemon.run(home.folder)
    said = [json.loads(line) for line in home.audit.read_text().splitlines()]
    assert [line["event"] for line in said][-2:] == ["coordinator certificate refused", "daemon failed"]
    assert said[-2]["facts"] == {"coordinator": "localhost:8443", "reason": "certificate has expired"}


def test_certificates_that_end_soon_are_a_warning_each(tmp_path: Path, start: Start) -> None:
    authority = Authority(tmp_path, days=20)
    found = checked(start(authority.context(days=10)), authority.roots)["tls"]
    assert [finding.status for finding in found] == ["warning", "warning"]
    assert "(9 days)" in found[0].finding
    assert "(19 days)" in found[1].finding


def test_a_port_without_tls_is_told_from_one_that_is_closed(authority: Authority, start: Start) -> None:
    with serving(None) as address:
        found = checked(address, authority.roots)
        assert "does not speak TLS" in found["tls"][0].finding
        assert found["tcp"][0].status == "ok"
    closed = checked(address, authority.roots)
    assert "cannot be reached" in closed["tcp"][0].finding
    assert {closed[name][0].finding for name in ("tls", "health", "clock")} == {"not checked: stopped by 'tcp'"}


def test_an_unknown_name_stops_everything_once(authority: Authority) -> None:
    found = checked("nowhere.invalid:8000", authority.roots)
    assert found["dns"][0].status == "error"
    assert [findings[0].status for findings in found.values()] == ["error", *["warning"] * 4]


CLOCKS = {0: "ok", 4: "warning", 60: "error", -200: "warning", -400: "error"}


@pytest.mark.parametrize("late", CLOCKS)
def test_clocks_may_differ_as_far_as_flower_accepts(late: int, authority: Authority, start: Start) -> None:
    (clock,) = checked(start(authority.context(), late=late), authority.roots)["clock"]
    assert clock.status == CLOCKS[late]
    assert late == 0 or ("ahead of" if late > 0 else "behind") in clock.finding


def test_the_window_is_flowers_own() -> None:
    constant = pytest.importorskip("flwr.common.constant")
    assert network.AHEAD == constant.SYSTEM_TIME_TOLERANCE
    assert network.BEHIND <= constant.TIMESTAMP_TOLERANCE


def test_an_answer_without_a_date_is_said(authority: Authority, start: Start) -> None:
    (clock,) = checked(start(authority.context(), dated=False), authority.roots)["clock"]
    assert clock.status == "warning"


def test_an_unwell_coordinator_is_an_error(authority: Authority, start: Start) -> None:
    (health,) = checked(start(authority.context(), status=503), authority.roots)["health"]
    assert (health.status, health.finding) == ("error", "GET /health answers 503")


@pytest.mark.parametrize("address", ["localhost", ":8000", "localhost:", "localhost:http", "localhost:70000", "a:0"])
def test_an_address_has_a_host_and_a_port(address: str) -> None:
    with pytest.raises(ConfigError, match="expected HOST:PORT"):
        Coordinator(address)


def test_roots_must_be_there_and_be_certificates(tmp_path: Path, authority: Authority, start: Start) -> None:
    with pytest.raises(ConfigError, match="no such file"):
        Coordinator("localhost:1", tmp_path / "absent.pem")
    wrong = tmp_path / "wrong.pem"
    wrong.write_text("not a certificate")
    assert "not a PEM file" in checked(start(authority.context()), wrong)["tls"][0].finding
