"""Attacks on the coordinator's doors: keys, certificates, paths, slow clients."""

from __future__ import annotations

import socket
import ssl
import subprocess
import sys
import threading
import time
from base64 import b64encode
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path
from unittest import mock

import httpx
from cryptography.hazmat.primitives.serialization import load_ssh_private_key
from flwr.common.constant import TIMESTAMP_HEADER
from flwr.proto.fleet_pb2 import PullMessagesRequest
from flwr.proto.node_pb2 import Node
from flwr.supercore.constant import FLEET_HTTP_PUBLIC_KEY_HEADER, FLEET_HTTP_SIGNATURE_HEADER
from flwr.supercore.primitives.asymmetric import public_key_to_bytes, sign_message
from flwr.supercore.protobuf.constants import PROTOBUF_MEDIA_TYPE

from modaltune.trust import certificates
from modaltune.trust.certificates import create_authority, issue_server
from server.coordinator.health import https_healthy
from server.coordinator.sites import load_sites, revoke
from tests.chaos.case import Case, Seen, require
from tests.chaos.stack import Stack
from tests.client.stack import free_port

CONTROL = ("/v1/control/list-runs", "/v1/control/start-run", "/v1/runtime/pull-task", "/v1/fleet/../control/list-runs")
TRICKS = ("/v1/fleet/%2e%2e/control/list-runs", "//v1/control/list-runs", "/v1/fleet/..%2fcontrol/list-runs")
LORIS, LORIS_SECONDS = 400, 40.0


def connect(stack: Stack, key: Path, authority: Path | None = None, address: str = "") -> str:
    """What a hospital with this key sees: ``connected``, or Flower's refusal in one line."""
    command = [sys.executable, "-m", "tests.chaos.hostile", address or stack.address, str(key)]
    command.append(str(authority or stack.server.ca_certificate))
    ran = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    if ran.stdout.startswith("connected"):
        return "connected"
    return " ".join(ran.stderr.split())


def unregistered_key(stack: Stack) -> Seen:
    said = connect(stack, stack.key("unknown", admitted=False))
    require(said != "connected" and "CERTIFICATE" not in said, said)
    return Seen("connection refused")


def revoked_key(stack: Stack) -> Seen:
    key = stack.key("R1")
    require((said := connect(stack, key)) == "connected", f"an admitted key was refused: {said}")
    revoke(stack.server, "R1")
    require(connect(stack, key) != "connected", "a revoked key connected")
    return Seen("connected before it was revoked, refused after")


def wrong_authority(stack: Stack) -> Seen:
    other = create_authority(stack.folder / "other", "another study", 30)
    said = connect(stack, stack.key("R2"), other)
    require("CERTIFICATE_VERIFY_FAILED" in said, said)
    return Seen("the site closes the connection: certificate not of its authority")


def expired_certificate(stack: Stack) -> Seen:
    past = mock.Mock(wraps=datetime, now=lambda zone=UTC: datetime.now(UTC) - timedelta(days=400))
    with mock.patch.object(certificates, "datetime", past):
        issued = issue_server(stack.server.ca, stack.folder / "expired", ["localhost"], 30)
    with _listening(issued, issued.with_suffix(".key")) as port:
        said = connect(stack, stack.key("R2"), address=f"localhost:{port}")
    require("certificate has expired" in said, said)
    return Seen("the site closes the connection: certificate has expired")


def plain_http(stack: Stack) -> Seen:
    status = httpx.post(f"http://{stack.address}/v1/fleet/pull-messages", content=b"").status_code
    require(status == 400, f"HTTP {status}")
    return Seen("HTTP 400")


def control_api(stack: Stack) -> Seen:
    found = {path: _status(stack, "POST", path) for path in (*CONTROL, *TRICKS)}
    require(set(found.values()) <= {400, 403, 404}, f"{found}")
    require(all(found[path] == 403 for path in CONTROL), f"{found}")
    return Seen(f"{len(found)} paths refused")


def documentation(stack: Stack) -> Seen:
    found = {path: _status(stack, "GET", path) for path in ("/docs", "/openapi.json", "/redoc", "/v1/fleet/docs")}
    require(set(found.values()) == {403}, f"{found}")
    return Seen(f"{len(found)} paths answered with 403")


def replayed_request(stack: Stack) -> Seen:
    """A signed request as somebody may have recorded it ten minutes ago."""
    key = load_ssh_private_key(stack.key("R2").read_bytes(), None)
    pull = PullMessagesRequest(node=Node(node_id=load_sites(stack.server)["R2"].node_id))
    answers = {}
    for minutes in (0, 10):
        when = (datetime.now(UTC) - timedelta(minutes=minutes)).isoformat()
        headers = {
            "Content-Type": PROTOBUF_MEDIA_TYPE,
            FLEET_HTTP_PUBLIC_KEY_HEADER: b64encode(public_key_to_bytes(key.public_key())).decode(),
            TIMESTAMP_HEADER: when,
            FLEET_HTTP_SIGNATURE_HEADER: b64encode(sign_message(key, when.encode())).decode(),
        }
        answers[minutes] = _status(stack, "POST", "/v1/fleet/pull-messages", headers, pull)
    require(answers[10] == 401 and answers[0] != 401, f"{answers}")
    return Seen("HTTP 401")


def oversize_request(stack: Stack) -> Seen:
    status = _status(stack, "POST", "/v1/fleet/push-object", {"content-length": str(65 << 20)})
    require(status == 413, f"HTTP {status}")
    return Seen("HTTP 413 before the body is read")


def slow_loris(stack: Stack) -> Seen:
    """Many connections that never finish their first line; half of them do not even shake hands."""
    settings = stack.server.settings()
    context = ssl.create_default_context(cafile=str(stack.server.ca_certificate))
    held, slowest = [], 0.0
    for number in range(LORIS):
        line = socket.create_connection(("127.0.0.1", settings.port), 10)
        if number % 2:
            line = context.wrap_socket(line, server_hostname="localhost")
            line.send(b"POST /v1/fleet/pull-messages HTTP/1.1\r\nHost: localhost\r\nX-A: ")
        line.settimeout(0.01)
        held.append(line)
    end = time.monotonic() + LORIS_SECONDS
    while held and time.monotonic() < end:
        asked = time.monotonic()
        require(https_healthy(stack.server, settings), f"no service beside {len(held)} slow clients")
        slowest = max(slowest, time.monotonic() - asked)
        held = [line for line in held if not _closed(line)]
    require(not held, f"{len(held)} of {LORIS} are still open after {LORIS_SECONDS:.0f} s")
    return Seen(f"all {LORIS} closed; meanwhile every health check was answered, the slowest in {slowest:.1f} s")


def _closed(line: socket.socket) -> bool:
    try:
        return line.recv(1) == b""
    except TimeoutError:
        return False
    except OSError:
        return True


def _status(stack: Stack, method: str, path: str, headers: dict[str, str] | None = None, body: object = None) -> int:
    """Status of a request whose path and headers go out as they are."""
    settings = stack.server.settings()
    content = b"" if body is None else body.SerializeToString()  # type: ignore[attr-defined]
    lines = {"Host": "localhost", "Connection": "close", "content-length": str(len(content)), **(headers or {})}
    head = "".join(f"{name}: {value}\r\n" for name, value in lines.items())
    context = ssl.create_default_context(cafile=str(stack.server.ca_certificate))
    with (
        socket.create_connection(("127.0.0.1", settings.port), 10) as plain,
        context.wrap_socket(plain, server_hostname="localhost") as line,
    ):
        line.sendall(f"{method} {path} HTTP/1.1\r\n{head}\r\n".encode() + content)
        return int(line.recv(64).split()[1])


@contextmanager
def _listening(certificate: Path, key: Path) -> Iterator[int]:
    """A TLS server that has nothing to say."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    port = free_port()
    with socket.create_server(("127.0.0.1", port)) as server:

        def serve() -> None:
            with suppress(OSError):
                while True:
                    plain, _ = server.accept()
                    with suppress(OSError), context.wrap_socket(plain, server_side=True) as line:
                        line.recv(1)

        threading.Thread(target=serve, daemon=True).start()
        yield port
        server.shutdown(socket.SHUT_RDWR)


def cases() -> Iterator[Case]:
    """Attacks that need no run."""
    for name, expected, run in (
        ("unregistered-key", "the connection is refused", unregistered_key),
        ("revoked-key", "the connection is refused from the revocation on", revoked_key),
        ("wrong-authority", "the site refuses a coordinator of another authority", wrong_authority),
        ("expired-certificate", "the site refuses an expired certificate", expired_certificate),
        ("plain-http", "nothing is answered without TLS", plain_http),
        ("control-api", "the public port refuses the control API, also by tricks with the path", control_api),
        ("documentation", "the public port refuses /docs and /openapi.json", documentation),
        ("replayed-request", "a recorded request is refused ten minutes later", replayed_request),
        ("oversize-request", "a body above 64 MB is refused", oversize_request),
        ("slow-loris", "slow clients are cut off and others are served meanwhile", slow_loris),
    ):
        yield Case(name=name, kind="attack", expected=expected, run=run)
