"""Replies as the SuperLink holds them, each taken apart from the others: no reply may block, flood or end a run."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import httpx
from flwr.app import Message, RecordDict
from flwr.proto.message_pb2 import ConfirmMessageReceivedRequest, ObjectTree
from flwr.proto.runtime_pb2 import PullAppMessagesRequest
from flwr.serverapp import Grid
from flwr.supercore.inflatable.inflatable_object import iterate_object_tree
from flwr.supercore.inflatable.inflatable_protobuf_utils import make_pull_object_fn_protobuf
from flwr.supercore.inflatable.inflatable_utils import ObjectPullError, inflate_object_from_contents, pull_objects
from flwr.superlink.grid.http_grid import HttpGrid

logger = logging.getLogger(__name__)
_AT_ONCE = 100
_MOST_PARTS = 50_000
_RETRY_SECONDS, _SLOWEST_RETRY_SECONDS = 0.5, 8.0


@dataclass(frozen=True)
class Reply:
    """One reply.

    Attributes:
        question: id of the message that it answers.
        node: who sent it, as the SuperLink authenticated it; None for errors that Flower made itself.
        content: its records; None with an error.
        error: Flower's error code.
        unreadable: why its content cannot be used.
        digest: its id, the hash of its content; empty in a simulation.
    """

    question: str
    node: int | None
    content: RecordDict | None = None
    error: int | None = None
    unreadable: str = ""
    digest: str = ""


@dataclass
class _Held:
    """A reply whose parts may still be on their way."""

    node: int
    digest: str
    tree: ObjectTree
    run: int
    next_try: float = 0.0
    pause: float = field(default=_RETRY_SECONDS)


class _TooLargeError(Exception):
    pass


class Inbox:
    """Pulls replies from a grid.

    Flower's own pull waits up to two hours for a reply whose parts do not arrive, keeps whatever it is sent in memory
    and raises on a malformed one, so over HTTP this takes the steps itself: envelopes first, then one content at a time
    with a limit, and what is incomplete later.
    """

    def __init__(self, grid: Grid) -> None:
        self.grid = grid
        self._held: dict[str, _Held] = {}

    def pull(self, questions: Sequence[str], most_bytes: int) -> Iterator[Reply]:
        """Replies that are there, at most one a question and ``most_bytes`` each."""
        if not isinstance(self.grid, HttpGrid):
            for message in self.grid.pull_messages(list(questions)):
                yield _plain(message)
            return
        self._look(self.grid, [question for question in questions if question not in self._held])
        for question in [question for question in questions if question in self._held]:
            held = self._held[question]
            if held.next_try <= time.monotonic() and (reply := self._open(self.grid, question, held, most_bytes)):
                del self._held[question]
                yield reply

    def forget(self, question: str) -> None:
        """Nothing more is expected of a question."""
        self._held.pop(question, None)

    def _look(self, grid: HttpGrid, questions: Sequence[str]) -> None:
        for start in range(0, len(questions), _AT_ONCE):
            request = PullAppMessagesRequest(message_ids=questions[start : start + _AT_ONCE])
            found = grid._runtime_client.PullMessages(request)
            for envelope, tree in zip(found.messages_list, found.message_object_trees, strict=True):
                facts = envelope.metadata
                self._held.setdefault(
                    facts.reply_to_message_id, _Held(facts.src_node_id, facts.message_id, tree, facts.run_id)
                )

    def _open(self, grid: HttpGrid, question: str, held: _Held, most_bytes: int) -> Reply | None:
        """The reply, or None while parts of it are missing."""
        parts = list(dict.fromkeys(part.object_id for part in iterate_object_tree(held.tree)))
        unreadable, message = "", None
        try:
            contents = _contents(grid, held.run, parts, most_bytes)
            message = inflate_object_from_contents(held.digest, contents)
        except ObjectPullError:
            held.next_try = time.monotonic() + held.pause
            held.pause = min(_SLOWEST_RETRY_SECONDS, 2 * held.pause)
            return None
        except _TooLargeError:
            unreadable = f"it is larger than {most_bytes / 1e6:.0f} MB or has more than {_MOST_PARTS} parts"
        except httpx.HTTPError:  # the SuperLink's trouble, not the site's
            raise
        except Exception as error:  # a site wrote it: whatever it provokes must not end the run
            logger.warning("a message could not be read", exc_info=True)
            unreadable = f"unreadable message ({type(error).__name__})"
        request = ConfirmMessageReceivedRequest(node=grid.node, run_id=held.run, message_object_id=held.digest)
        grid._runtime_client.ConfirmMessageReceived(request)
        if not unreadable and (not isinstance(message, Message) or message.metadata.reply_to_message_id != question):
            unreadable = "its envelope and its content disagree"
        if unreadable or not isinstance(message, Message):
            return Reply(question, held.node, unreadable=unreadable, digest=held.digest)
        if message.has_error():
            return Reply(question, None, error=message.error.code, digest=held.digest)
        return Reply(question, held.node, content=message.content, digest=held.digest)


def _contents(grid: HttpGrid, run: int, parts: list[str], most_bytes: int) -> dict[str, bytes]:
    if len(parts) > _MOST_PARTS:
        raise _TooLargeError
    pull, total = make_pull_object_fn_protobuf(grid._runtime_client.PullObject, grid.node, run), 0

    def bounded(part: str) -> bytes:
        nonlocal total
        content = pull(part)
        total += len(content)
        if total > most_bytes:
            raise _TooLargeError
        return content

    return pull_objects(parts, pull_object_fn=bounded, max_tries_per_object=1)


def _plain(message: Message) -> Reply:
    question = message.metadata.reply_to_message_id
    if message.has_error():
        return Reply(question, None, error=message.error.code)
    return Reply(question, message.metadata.src_node_id, content=message.content)
