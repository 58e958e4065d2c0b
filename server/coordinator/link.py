"""Flower's control API on loopback: sites' keys, nodes and runs.

The open-source SuperLink asks nobody who calls it here for a password: whoever may open the port controls it. It
therefore listens on loopback only, and the proxy lets no control path through.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import httpx
from flwr.cli.cli_client_interceptor import CliClientHttpInterceptor
from flwr.common.constant import HEARTBEAT_PATIENCE
from flwr.common.serde import fab_to_proto, user_config_to_proto
from flwr.proto.control_pb2 import (
    ListNodesRequest,
    ListRunsRequest,
    RegisterNodeRequest,
    StartRunRequest,
    StopRunRequest,
    StreamLogsRequest,
    UnregisterNodeRequest,
)
from flwr.proto.node_pb2 import NodeInfo
from flwr.supercore.control import ControlHttpClient
from flwr.supercore.fab import Fab
from flwr.supercore.interceptors import RuntimeVersionHttpInterceptor

from modaltune.errors import FederationError
from server.coordinator.bundle import Bundle
from server.coordinator.home import Home


@dataclass(frozen=True)
class Node:
    """A site's SuperNode as the SuperLink knows it; ``last_seen`` is the last heartbeat (UTC)."""

    node_id: int
    public_key: bytes
    online: bool
    unregistered: bool
    last_seen: datetime | None


@dataclass(frozen=True)
class FlowerRun:
    """A run as the SuperLink knows it; ``outcome`` is completed, failed or stopped once it is finished."""

    finished: bool
    known: bool
    outcome: str


class Link:
    """An open connection to the control API of the SuperLink."""

    def __init__(self, client: ControlHttpClient) -> None:
        self._client = client

    def register(self, site: str, public_pem: bytes) -> int:
        """Let a site's key in and return its node id; a key that is in already keeps its node."""
        for node in self.nodes():
            if node.public_key.strip() == public_pem.strip():
                if node.unregistered:
                    raise FederationError(
                        f"{site}: this key was revoked and cannot come back; let the site make a new one"
                    )
                return node.node_id
        return int(self._client.RegisterNode(RegisterNodeRequest(public_key=public_pem, name=site)).node_id)

    def unregister(self, node_id: int) -> None:
        """Shut a node out, at once and for good."""
        if any(node.node_id == node_id and not node.unregistered for node in self.nodes()):
            self._client.UnregisterNode(UnregisterNodeRequest(node_id=node_id))

    def nodes(self) -> list[Node]:
        """All nodes that were ever registered."""
        return [_node(entry) for entry in self._client.ListNodes(ListNodesRequest()).nodes_info]

    def start(self, bundle: Bundle, config: Mapping[str, str]) -> int:
        """Submit a run and return Flower's number for it."""
        fab = fab_to_proto(Fab(bundle.sha256, bundle.content, {}))
        request = StartRunRequest(fab=fab, override_config=user_config_to_proto(dict(config)))
        run_id = int(self._client.StartRun(request).run_id)
        if not run_id:
            raise FederationError("the SuperLink took no run; its log says why: modaltune-server status names it")
        return run_id

    def runs_into(self, folder: Path) -> list[int]:
        """Numbers of the runs that write into a folder."""
        runs = self._client.ListRuns(ListRunsRequest()).run_dict.values()
        return [run.run_id for run in runs if run.override_config["out"].string == str(folder)]

    def run(self, run_id: int) -> FlowerRun:
        """What has become of a run; one that the SuperLink does not know, after its database was lost, has ended."""
        try:
            status = self._client.ListRuns(ListRunsRequest(run_id=run_id)).run_dict[run_id].status
        except httpx.HTTPStatusError as error:
            if error.response.status_code != httpx.codes.NOT_FOUND:
                raise
            return FlowerRun(finished=True, known=False, outcome="unknown run")
        return FlowerRun(finished=status.status == "finished", known=True, outcome=status.sub_status)

    def stop(self, run_id: int) -> None:
        """End a run; its ServerApp learns of it with the next heartbeat."""
        self._client.StopRun(StopRunRequest(run_id=run_id))

    def log(self, run_id: int) -> str:
        """What the ServerApp of a finished run printed."""
        return "".join(part.log_output for part in self._client.StreamLogs(StreamLogsRequest(run_id=run_id)))


@contextmanager
def connected(home: Home) -> Iterator[Link]:
    """The control API of this coordinator.

    Raises:
        FederationError: the SuperLink does not run, or refused.
    """
    settings = home.settings()
    client = ControlHttpClient.from_server_address(
        settings.superlink,
        insecure=False,
        root_certificates=home.ca_certificate.read_bytes(),
        interceptors=[CliClientHttpInterceptor(), RuntimeVersionHttpInterceptor(component_name="flwr CLI")],
    )
    try:
        yield Link(client)
    except httpx.HTTPStatusError as error:
        raise FederationError(f"the SuperLink refused: {_detail(error.response)}") from None
    except httpx.TransportError as error:
        raise FederationError(
            f"the SuperLink does not answer on {settings.superlink} ({type(error).__name__}); start it with:"
            " modaltune-server start"
        ) from None
    finally:
        client.close()


def _detail(response: httpx.Response) -> str:
    try:
        content: Any = response.json()
        return str(content["detail"])
    except (ValueError, KeyError, TypeError):
        return f"HTTP {response.status_code}"


def _node(entry: NodeInfo) -> Node:
    seen = None
    if entry.HasField("online_until"):
        last = entry.online_until - (HEARTBEAT_PATIENCE * entry.heartbeat_interval if entry.status == "online" else 0)
        seen = datetime.fromtimestamp(last, UTC)
    return Node(
        node_id=entry.node_id,
        public_key=bytes(entry.public_key),
        online=entry.status == "online",
        unregistered=entry.status == "unregistered",
        last_seen=seen,
    )
