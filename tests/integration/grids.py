"""Flower grids for tests: one that writes down what passes, one whose sites answer in this process."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any

from flwr.app import Context, Message, RecordDict
from flwr.common.serde import message_from_proto, message_to_proto
from flwr.proto.message_pb2 import Message as ProtoMessage
from flwr.serverapp import Grid
from flwr.supercore.task_identity import TaskIdentity

from client.app import make_app
from modaltune.federation.study import Study
from server.rounds import Federation, Result

Tamper = Callable[[str, Message], list[Message]]
"""(site, its honest reply) -> what arrives instead."""


@dataclass(frozen=True, kw_only=True)
class Passed:
    """One message as it passed the coordinator: where it went, its type, its bytes."""

    down: bool
    kind: str
    data: bytes

    @property
    def content(self) -> RecordDict:
        return unpack(self.data).content


def pack(message: Message) -> bytes:
    return message_to_proto(message).SerializeToString()


def unpack(data: bytes) -> Message:
    return message_from_proto(ProtoMessage.FromString(data))


class _Grid(Grid):
    """What no test needs of a grid."""

    def set_run(self, run: Any) -> None:
        raise NotImplementedError

    @property
    def run(self) -> Any:
        raise NotImplementedError

    def create_message(self, *args: Any, **options: Any) -> Message:
        raise NotImplementedError

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> Iterable[Message]:
        raise NotImplementedError


class RecordingGrid(_Grid):
    """Another grid, and the bytes of everything that passed it."""

    def __init__(self, grid: Grid, passed: list[Passed]) -> None:
        self.grid, self.passed = grid, passed

    def get_node_ids(self) -> Iterable[int]:
        return self.grid.get_node_ids()

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        messages = list(messages)
        self._write_down(messages, down=True)
        return self.grid.push_messages(messages)

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        replies = list(self.grid.pull_messages(message_ids))
        self._write_down(replies, down=False)
        return replies

    def _write_down(self, messages: Iterable[Message], *, down: bool) -> None:
        self.passed += [Passed(down=down, kind=m.metadata.message_type, data=pack(m)) for m in messages]


def honest(site: str, reply: Message) -> list[Message]:
    return [reply]


class LocalGrid(_Grid):
    """Sites that answer in this process through the real client handlers; ``tamper`` changes replies on their way.

    Messages and replies exist as bytes only between the two sides, as on a network.
    """

    def __init__(self, folders: Mapping[str, Path], tamper: Tamper = honest, first_node: int = 1001) -> None:
        TaskIdentity.task_id, TaskIdentity.run_id, TaskIdentity.node_id = 0, 0, 0  # who makes messages in this process
        self.sites = dict(zip(count(first_node), folders, strict=False))
        self.apps = {node: make_app(_At(folders[site])) for node, site in self.sites.items()}
        self.tamper = tamper
        self.numbers = count(1)
        self.replies: list[Message] = []

    def get_node_ids(self) -> Iterable[int]:
        return list(self.sites)

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        names = []
        for message in messages:
            names.append(f"message {next(self.numbers)}")
            message.metadata.__dict__["_message_id"] = names[-1]
            node = message.metadata.dst_node_id
            context = Context(run_id=0, node_id=node, node_config={}, state=RecordDict(), run_config={})
            reply = self.apps[node](unpack(pack(message)), context)
            self.replies += [unpack(pack(sent)) for sent in self.tamper(self.sites[node], reply)]
        return names

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        wanted = set(message_ids)
        found = [reply for reply in self.replies if reply.metadata.reply_to_message_id in wanted]
        self.replies = [reply for reply in self.replies if reply.metadata.reply_to_message_id not in wanted]
        return found


@dataclass(frozen=True)
class _At:
    folder: Path

    def __call__(self, context: Context) -> Path:
        return self.folder


def federate_here(study: Study, folders: Mapping[str, Path], out: Path, progress: Any = None) -> Result:
    """Stands for the simulation engine: the sites answer in this process, through the real handlers."""
    return Federation(LocalGrid({site: folders[site] for site in study.roster}), study, out, progress).run()
