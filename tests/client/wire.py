"""A node as Flower keeps it, for tests of the guard."""

from __future__ import annotations

import json
from typing import Any

from flwr.app import Message
from flwr.app.message.message import remove_content_from_message
from flwr.supercore.fab import Fab
from flwr.supercore.inflatable.inflatable_object import (
    get_all_nested_objects,
    get_object_tree,
    iterate_object_tree,
)
from flwr.supercore.inflatable.inflatable_utils import inflate_object_from_contents
from flwr.supercore.object_store import ObjectStoreFactory
from flwr.supercore.run import Run
from flwr.supernode import start_client_internal as flower
from flwr.supernode.nodestate import NodeStateFactory

from client.guard import Guard
from client.home import Home
from server.coordinator.bundle import Bundle
from tests.client.conversation import Conversation

RUN = 11


def failed(reply: Message) -> str:
    """The code of a reply that says no."""
    assert set(reply.content) == {"failure"}
    return str(reply.content.config_records["failure"]["code"])


class Wire:
    """A node as Flower keeps it, and the SuperLink on the other side of the line."""

    def __init__(self, home: Home, bundle: Bundle) -> None:
        self.home, self.bundle = home, bundle
        stores = ObjectStoreFactory()
        self.state, self.store = NodeStateFactory(objectstore_factory=stores).state(), stores.store()
        self.state.set_node_id(7)
        self.guard = Guard(home, home.open_audit())
        self.waiting: list[Message] = []
        self.objects: dict[str, bytes] = {}
        self.arrived: dict[str, bytes] = {}
        self.replies: list[Message] = []
        self.fetched: list[str] = []
        self.swapped: dict[str, bytes] = {}
        self.named_hash = bundle.sha256
        self.trouble: BaseException | None = None

    def ask(self, message: Message) -> Message:
        """Send a question and let the daemon take it."""
        message.metadata.__dict__["_run_id"] = RUN
        message.metadata.__dict__["_message_id"] = message.object_id
        self.objects |= {name: thing.deflate() for name, thing in get_all_nested_objects(message).items()}
        self.waiting.append(message)
        self.taken = self.guard.pull(
            state=self.state,
            object_store=self.store,
            node_config={},
            receive=self._receive,
            get_run=self._run,
            get_fab=lambda *_: Fab(self.bundle.sha256, self.bundle.content, {}),
            pull_object=self._object,
            confirm_message_received=lambda *_: None,
            trusted_entities=None,
        )
        return message

    def answer(self, reply: Message | None = None) -> Message:
        """Let the app push a reply, if it has one, and the daemon send what it makes of it."""
        if reply is not None:
            flower._insert_message(reply, self.state, self.store)
        self.guard.push(state=self.state, object_store=self.store, send=self._send, push_object=self._push)
        return self.replies[-1]

    def lose(self, reply: Message, trouble: BaseException) -> None:
        """Let the app push a reply that cannot be sent."""
        flower._insert_message(reply, self.state, self.store)
        self.trouble = trouble
        self.guard.push(state=self.state, object_store=self.store, send=self._send, push_object=self._push)
        self.trouble = None

    def refused(self) -> str:
        """The code with which the daemon itself answers a question."""
        assert self.guard.answer is not None, "the question was passed on to the app"
        return failed(self.answer())

    def _object(self, _: int, name: str) -> bytes:
        self.fetched.append(name)
        return self.swapped.get(name, self.objects[name])

    def _receive(self) -> Any:
        if not self.waiting:
            return None
        message = self.waiting.pop()
        return remove_content_from_message(message), get_object_tree(message)

    def _run(self, run_id: int) -> Run:
        run = Run.create_empty(run_id)
        run.fab_hash = self.named_hash
        return run

    def _send(self, message: Message, tree: Any, _: float) -> tuple[set[str], str]:
        if self.trouble is not None:
            raise self.trouble
        self.sent, self.arrived = message, {}
        self.expected = {node.object_id for node in iterate_object_tree(tree)}
        return self.expected, "session"

    def _push(self, _: int, __: str, name: str, content: bytes) -> None:
        self.arrived[name] = content
        if set(self.arrived) == self.expected:
            inflated = inflate_object_from_contents(self.sent.metadata.message_id, dict(self.arrived))
            assert isinstance(inflated, Message)
            self.replies.append(inflated)

    @property
    def log(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.home.audit.read_text().splitlines()]


def seen_by_the_app(wire: Wire) -> list[Message]:
    return list(wire.state.get_messages_legacy(is_reply=False))


def answered(wire: Wire, conversation: Conversation, kind: str, message: Message) -> str:
    """The code of the answer to a question, or what it holds."""
    question = wire.ask(message)
    if wire.guard.answer is not None:
        return wire.refused()
    seen_by_the_app(wire)
    return ", ".join(wire.answer(Message(conversation.reply(kind), reply_to=question)).content)
