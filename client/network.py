"""Checks of the way to the coordinator: name, port, certificate, clock, health."""

from __future__ import annotations

import socket
import ssl
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from functools import cached_property
from http.client import HTTPException, HTTPMessage, HTTPSConnection
from pathlib import Path

from cryptography import x509

from modaltune.doctor.finding import Finding, Found, error, ok, warning
from modaltune.errors import ConfigError, FederationError

SECONDS = 5.0
"""Patience with each answer."""
DAYS_LEFT = 30
AHEAD, BEHIND = 5.0, 300.0
"""Seconds by which a node's clock may differ: Flower refuses signatures from outside this window."""
NOTICEABLE = 2.0


@dataclass(frozen=True)
class Answer:
    """What the coordinator answered to ``GET /health``; ``received`` is this machine's clock, half-way."""

    status: int
    headers: HTTPMessage
    received: float


class Coordinator:
    """The coordinator as seen from this machine; every question opens a connection of its own.

    Args:
        address: ``HOST:PORT``.
        roots: PEM file with the certificates that are trusted; None = those of the system.
    """

    def __init__(self, address: str, roots: Path | None = None) -> None:
        host, colon, port = address.rpartition(":")
        if not colon or not host or not port.isdigit() or not 0 < int(port) < 2**16:
            raise ConfigError(f"--coordinator {address!r}: expected HOST:PORT, e.g. federation.example.org:8000")
        if roots is not None and not roots.is_file():
            raise ConfigError(f"--root-certificates {roots}: no such file; expected PEM, as the coordinator sent it")
        self.host, self.port, self.roots = host.strip("[]"), int(port), roots

    def resolve(self) -> list[str]:
        """What the name stands for."""
        try:
            found = socket.getaddrinfo(self.host, self.port, type=socket.SOCK_STREAM)
        except (socket.gaierror, UnicodeError):
            raise FederationError(
                f"the name {self.host} is not known here; check its spelling, the DNS server and the VPN"
            ) from None
        return sorted({str(entry[4][0]) for entry in found})

    def connect(self) -> socket.socket:
        """A plain connection."""
        self.resolve()
        try:
            return socket.create_connection((self.host, self.port), SECONDS)
        except OSError as problem:
            reason = "no answer" if isinstance(problem, TimeoutError) else problem.strerror
            raise FederationError(
                f"port {self.port} of {self.host} cannot be reached ({reason}); ask for outgoing TCP to it in the"
                " firewall, or whether the coordinator is running"
            ) from None

    @cached_property
    def context(self) -> ssl.SSLContext:
        """Whom this machine trusts."""
        try:
            return ssl.create_default_context(cafile=None if self.roots is None else str(self.roots))
        except ssl.SSLError:
            raise FederationError(
                f"{self.roots}: not a PEM file of certificates; ask the coordinator for it again"
            ) from None

    def handshake(self) -> x509.Certificate:
        """The coordinator's certificate, verified against the roots and the host name."""
        with self.connect() as plain:
            try:
                with self.context.wrap_socket(plain, server_hostname=self.host) as secured:
                    return x509.load_der_x509_certificate(secured.getpeercert(binary_form=True) or b"")
            except ssl.SSLCertVerificationError as problem:
                raise FederationError(
                    f"the certificate is refused: {problem.verify_message.rstrip('.')}; {_remedy(problem)}"
                ) from None
            except OSError as problem:
                raise FederationError(
                    f"port {self.port} does not speak TLS ({type(problem).__name__}); check the port, and that no proxy"
                    " is in between"
                ) from None

    @cached_property
    def health(self) -> Answer:
        """The answer to ``GET /health``."""
        self.handshake()  # a problem there is not one of this answer
        connection = HTTPSConnection(self.host, self.port, timeout=SECONDS, context=self.context)
        asked = time.time()
        try:
            connection.request("GET", "/health")
            answer = connection.getresponse()
            answer.read()
        except (OSError, HTTPException) as problem:
            raise FederationError(
                f"no HTTP answer to GET /health ({type(problem).__name__}); check the port and the coordinator's log"
            ) from None
        finally:
            connection.close()
        return Answer(answer.status, answer.headers, (asked + time.time()) / 2)


def _remedy(problem: ssl.SSLCertVerificationError) -> str:
    if problem.verify_code == 10:  # X509_V_ERR_CERT_HAS_EXPIRED
        return "ask the coordinator to renew it, or correct this machine's clock"
    if problem.verify_code == 9:  # X509_V_ERR_CERT_NOT_YET_VALID
        return "check the clock of this machine"
    if problem.verify_code in (62, 64):  # host name, IP address
        return "use the name that the certificate was made for"
    return "pass the coordinator's root certificate with --root-certificates, and check that no proxy reads along"


def dns(coordinator: Coordinator) -> Iterator[Finding]:
    """The host name is known."""
    yield ok(f"{coordinator.host}: {', '.join(coordinator.resolve())}")


def tcp(coordinator: Coordinator) -> Iterator[Finding]:
    """The port can be reached."""
    coordinator.connect().close()
    yield ok(f"port {coordinator.port} answers")


def tls(coordinator: Coordinator) -> Iterator[Finding]:
    """The certificate is trusted, is for this host, and stays valid for a while; so do the roots."""
    yield from _expiry("the coordinator's certificate", coordinator.handshake())
    if coordinator.roots is not None:
        for number, root in enumerate(x509.load_pem_x509_certificates(coordinator.roots.read_bytes()), start=1):
            yield from _expiry(f"root certificate {number}", root)


def _expiry(what: str, certificate: x509.Certificate) -> Iterator[Finding]:
    ends = certificate.not_valid_after_utc
    days = (ends - datetime.now(UTC)).days
    text = f"{what} is valid until {ends:%Y-%m-%d} ({days} days)"
    yield ok(text) if days >= DAYS_LEFT else warning(text, "ask the coordinator to renew it before the study ends")


def health(coordinator: Coordinator) -> Iterator[Finding]:
    """The coordinator says that it is well."""
    status = coordinator.health.status
    if status == 200:
        yield ok("GET /health answers 200")
    else:
        yield error(f"GET /health answers {status}", "tell the coordinator: its proxy has to let /health through")


def clock(coordinator: Coordinator) -> Iterator[Finding]:
    """The two clocks agree."""
    answer = coordinator.health
    try:
        theirs = parsedate_to_datetime(answer.headers["Date"]).timestamp()
    except (TypeError, ValueError):
        yield warning("the coordinator's answer has no Date: the clocks are not compared", "compare them by hand")
        return
    ahead = answer.received - theirs - 0.5  # a Date is cut to whole seconds
    text = f"this clock is {abs(ahead):.0f} s {'ahead of' if ahead > 0 else 'behind'} the coordinator's"
    if ahead > AHEAD or ahead < -BEHIND:
        yield error(text, "set it by NTP: messages signed outside the coordinator's window are refused")
    elif abs(ahead) > NOTICEABLE:
        yield warning(text, "set it by NTP")
    else:
        yield ok("the clocks agree")


CHECKS: Mapping[str, Callable[[Coordinator], Found]] = {
    "dns": dns,
    "tcp": tcp,
    "tls": tls,
    "health": health,
    "clock": clock,
}
