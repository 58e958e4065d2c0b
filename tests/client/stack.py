"""A real SuperLink with TLS and node keys on the loopback, a hospital's daemon, and a bundle that can misbehave."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat, load_ssh_public_key
from flwr.app import Message
from flwr.cli.build import build_fab_from_files
from flwr.cli.cli_client_interceptor import CliClientHttpInterceptor
from flwr.supercore.control import ControlHttpClient
from flwr.supercore.interceptors import RuntimeVersionHttpInterceptor

from client.daemon import QUIET
from client.home import Home
from client.services import programs
from modaltune.storage import digest_text
from modaltune.trust.certificates import create_authority, issue_server
from server.coordinator.bundle import Bundle
from server.coordinator.link import Link
from tests.conftest import REPOSITORY
from tests.integration.grids import pack, unpack

PROBE = Path(__file__).parent / "probe"
SECONDS = 400.0


class Stack:
    """Processes of a test; every one ends with it."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.port = folder, free_port()
        self.running: dict[str, subprocess.Popen[bytes]] = {}
        create_authority(folder / "ca", "test", 30)
        issue_server(folder / "ca", folder / "tls", ["localhost", "127.0.0.1"], 20)
        self.authority = folder / "ca" / "ca.crt"
        self.secret = folder / "secret"
        self.secret.write_text("s" * 64)
        self.address = f"127.0.0.1:{self.port}"

    def start(self, name: str, command: list[str], environment: Mapping[str, str] | None = None) -> None:
        paths = {"PYTHONPATH": str(REPOSITORY), "FLWR_HOME": str(self.folder / "flower"), "OMP_NUM_THREADS": "1"}
        with (self.folder / f"{name}.log").open("ab") as log:
            self.running[name] = subprocess.Popen(
                command,
                stdout=log,
                stderr=log,
                env={**os.environ, **QUIET, **paths, **(environment or {})},
                start_new_session=True,
            )

    def start_superlink(self) -> None:
        tls = self.folder / "tls"
        self.start(
            "superlink",
            [
                *(script("flower-superlink"), "--ssl-ca-certfile", str(self.authority)),
                *("--ssl-certfile", str(tls / "server.crt"), "--ssl-keyfile", str(tls / "server.key")),
                *("--enable-supernode-auth", "--isolation", "process", "--host", "127.0.0.1"),
                *("--port", str(self.port), "--superexec-auth-secret-file", str(self.secret)),
                *("--database", str(self.folder / "superlink.db"), "--disable-runtime-dependency-installation"),
            ],
        )
        until(lambda: listening(self.port), "the SuperLink does not listen", self)
        self.start(
            "serverapps",
            [
                *(script("flower-superexec"), "--root-certificates", str(self.authority)),
                *("--runtime-api-address", self.address, "--superexec-auth-secret-file", str(self.secret)),
            ],
        )

    def start_hospital(self, home: Home) -> None:
        for program in programs(home, home.settings()):
            self.start(program.name, list(program.command), program.environment)

    def log(self, name: str) -> str:
        return (self.folder / f"{name}.log").read_text(errors="replace")

    def end(self, name: str, number: signal.Signals = signal.SIGTERM) -> None:
        process = self.running.pop(name)
        os.killpg(process.pid, number)
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()

    @contextmanager
    def link(self) -> Iterator[Link]:
        client = ControlHttpClient.from_server_address(
            self.address,
            insecure=False,
            root_certificates=self.authority.read_bytes(),
            interceptors=[CliClientHttpInterceptor(), RuntimeVersionHttpInterceptor(component_name="flwr CLI")],
        )
        try:
            yield Link(client)
        finally:
            client.close()

    def register(self, key: Path) -> int:
        public = load_ssh_public_key(key.read_bytes()).public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
        with self.link() as link:
            return link.register(key.stem, public)

    def ask(self, bundle: Bundle, node: int, questions: list[Message]) -> list[Message]:
        """Send questions one after another from a ServerApp; the replies, as the coordinator sees them."""
        folder = self.folder / f"ask-{time.monotonic_ns()}"
        folder.mkdir()
        for number, question in enumerate(questions):
            (folder / f"{number:02d}.question").write_bytes(pack(question))
        with self.link() as link:
            run = link.start(bundle, {"folder": str(folder), "node": str(node)})
            until(lambda: link.run(run).finished, "the run does not end", self)
            ended = link.run(run)
        assert ended.outcome == "completed", (ended, self.log("serverapps")[-3000:])
        return [unpack(path.read_bytes()) for path in sorted(folder.glob("*.reply"))]


def probe_bundle(variant: str = "one") -> Bundle:
    """The probing bundle; another variant has another hash."""
    files: dict[str, Any] = {
        path.relative_to(PROBE).as_posix(): path for path in PROBE.rglob("*") if path.suffix in (".py", ".toml")
    }
    files["probe/tampers.py"] = PROBE.parents[1] / "chaos" / "tampers.py"
    files["probe/variant.py"] = f'NAME = "{variant}"\n'.encode()
    content, _ = build_fab_from_files(files)
    return Bundle(content, _sha256(content))


def _sha256(content: bytes) -> str:
    from hashlib import sha256

    return sha256(content).hexdigest()


def script(name: str) -> str:
    return str(Path(sys.executable).with_name(name))


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def listening(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def until(condition: Any, otherwise: str, stack: Stack | None = None, seconds: float = SECONDS) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            logs = "" if stack is None else "\n".join(f"{name}: {stack.log(name)[-2000:]}" for name in stack.running)
            raise AssertionError(f"{otherwise}\n{logs}")
        time.sleep(0.2)


__all__ = ["Stack", "digest_text", "listening", "probe_bundle", "until"]
