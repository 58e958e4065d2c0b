"""Replies over HTTP, one by one, with a SuperLink that holds whatever a site sent."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, Error, Message, MetricRecord, RecordDict
from flwr.app.message import remove_content_from_message
from flwr.common.serde import message_to_proto
from flwr.proto.message_pb2 import ConfirmMessageReceivedRequest, PullObjectRequest, PullObjectResponse
from flwr.proto.runtime_pb2 import PullAppMessagesRequest, PullAppMessagesResponse
from flwr.supercore.inflatable.inflatable_object import (
    get_all_nested_objects,
    get_object_tree,
    iterate_object_tree,
    no_object_id_recompute,
)
from flwr.supercore.task_identity import TaskIdentity
from flwr.superlink.grid.http_grid import HttpGrid

from server.inbox import Inbox, Reply

SITE, LIMIT = 42, 1_000_000


class SuperLink:
    """Messages and their parts, as a SuperLink holds them."""

    def __init__(self) -> None:
        self.messages: list[Any] = []
        self.parts: dict[str, bytes] = {}
        self.confirmed: list[str] = []

    def hold(self, reply: Message, question: str | None = None) -> str:
        with no_object_id_recompute():
            reply.metadata.__dict__["_message_id"] = reply.object_id
            tree, objects = get_object_tree(reply), get_all_nested_objects(reply)
        envelope = message_to_proto(remove_content_from_message(reply))
        envelope.metadata.src_node_id = SITE
        if question is not None:
            envelope.metadata.reply_to_message_id = question
        self.messages.append((envelope, tree))
        self.parts |= {name: part.deflate() for name, part in objects.items()}
        return str(envelope.metadata.reply_to_message_id)

    def PullMessages(self, request: PullAppMessagesRequest) -> PullAppMessagesResponse:  # noqa: N802
        found = [held for held in self.messages if held[0].metadata.reply_to_message_id in request.message_ids]
        self.messages = [held for held in self.messages if held not in found]
        return PullAppMessagesResponse(
            messages_list=[envelope for envelope, _ in found], message_object_trees=[tree for _, tree in found]
        )

    def PullObject(self, request: PullObjectRequest) -> PullObjectResponse:  # noqa: N802
        content = self.parts.get(request.object_id, b"")
        return PullObjectResponse(object_found=True, object_available=bool(content), object_content=content)

    def ConfirmMessageReceived(self, request: ConfirmMessageReceivedRequest) -> None:  # noqa: N802
        self.confirmed.append(request.message_object_id)


@pytest.fixture
def link() -> SuperLink:
    return SuperLink()


@pytest.fixture
def inbox(link: SuperLink) -> Iterator[Inbox]:
    grid = HttpGrid(token="token")
    grid.__dict__["_client"] = link
    return Inbox(grid)


def a_question(name: str = "first") -> Message:
    TaskIdentity.task_id, TaskIdentity.run_id, TaskIdentity.node_id = 0, 7, 0
    message = Message(RecordDict({"study": ConfigRecord({"name": name})}), dst_node_id=SITE, message_type="train")
    message.metadata.__dict__["_message_id"] = message.object_id
    return message


def an_update(size: int = 10) -> RecordDict:
    arrays = ArrayRecord({"weight": Array(np.arange(size, dtype=np.float32))})
    return RecordDict({"arrays": arrays, "metrics": MetricRecord({"loss": 1.0})})


def pull(inbox: Inbox, *questions: str) -> list[Reply]:
    return list(inbox.pull(questions, LIMIT))


def test_a_reply_is_read_and_confirmed(link: SuperLink, inbox: Inbox) -> None:
    question = link.hold(Message(an_update(), reply_to=a_question()))
    (reply,) = pull(inbox, question)
    assert (reply.question, reply.node, reply.unreadable) == (question, SITE, "")
    assert reply.content is not None
    assert np.array_equal(reply.content.array_records["arrays"]["weight"].numpy(), np.arange(10))
    assert link.confirmed == [reply.digest]
    assert pull(inbox, question) == []


def test_an_error_has_its_code_and_no_text(link: SuperLink, inbox: Inbox) -> None:
    question = link.hold(Message(Error(code=8, reason="/home/patient"), reply_to=a_question()))
    (reply,) = pull(inbox, question)
    assert (reply.error, reply.content) == (8, None)
    assert "patient" not in repr(reply)


def test_a_malformed_message_is_unreadable_and_the_next_one_is_read(link: SuperLink, inbox: Inbox) -> None:
    bad = link.hold(Message(an_update(3), reply_to=a_question("bad")))
    broken = next(part.object_id for part in iterate_object_tree(link.messages[0][1]))
    link.parts[broken] = b"RecordDict\x00rubbish"
    good = link.hold(Message(an_update(4), reply_to=a_question("good")))
    replies = {reply.question: reply for reply in pull(inbox, bad, good)}
    assert replies[bad].unreadable.startswith("unreadable message (")
    assert replies[bad].content is None
    assert replies[good].content is not None


def test_a_message_beyond_the_limit_is_not_kept(link: SuperLink, inbox: Inbox) -> None:
    question = link.hold(Message(an_update(LIMIT), reply_to=a_question()))
    (reply,) = pull(inbox, question)
    assert reply.unreadable == "it is larger than 1 MB or has more than 50000 parts"


def test_a_slow_upload_does_not_hold_up_others(link: SuperLink, inbox: Inbox, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("server.inbox._RETRY_SECONDS", 0.0)
    slow = link.hold(Message(an_update(3), reply_to=a_question("slow")))
    last = [part.object_id for part in iterate_object_tree(link.messages[0][1])][-1]
    content = link.parts.pop(last)
    quick = link.hold(Message(an_update(4), reply_to=a_question("quick")))
    assert [reply.question for reply in pull(inbox, slow, quick)] == [quick]
    link.parts[last] = content
    inbox._held[slow].next_try = 0.0
    assert [reply.question for reply in pull(inbox, slow)] == [slow]


def test_an_answer_in_the_name_of_another_question_is_unreadable(link: SuperLink, inbox: Inbox) -> None:
    link.hold(Message(an_update(), reply_to=a_question("mine")), question="somebody else's")
    (reply,) = pull(inbox, "somebody else's")
    assert reply.unreadable == "its envelope and its content disagree"
