"""The guard with Flower's real state, store and functions; only the network and the app's process are left out."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from flwr.app import ConfigRecord, Error, Message, RecordDict
from flwr.app.message.arraychunk import ArrayChunk
from flwr.common.constant import ErrorCode, SubStatus
from flwr.proto.message_pb2 import ObjectTree
from flwr.supercore.inflatable.inflatable_object import (
    get_all_nested_objects,
    get_object_id,
    get_object_tree,
)
from flwr.supercore.run import RunNotRunningException
from flwr.supernode import start_client_internal as flower

from client import daemon, gate, guard
from client.approvals import Approvals
from client.home import Home
from client.questions import largest_message
from modaltune.errors import FederationError
from server.coordinator.bundle import Bundle
from tests.client.conversation import (
    CAPABILITY,
    EVALUATE,
    STATISTICS,
    TRAIN,
    Conversation,
)
from tests.client.stack import probe_bundle
from tests.client.wire import RUN, Wire, failed, seen_by_the_app
from tests.integration.grids import unpack

PATIENT = "SYN-H1-0007"


@pytest.mark.parametrize("kind", [CAPABILITY, STATISTICS, TRAIN, EVALUATE])
def test_an_honest_exchange_passes_and_leaves_nothing_behind(wire: Wire, conversation: Conversation, kind: str) -> None:
    question = wire.ask(conversation.message(kind))
    assert wire.taken == RUN
    (seen,) = seen_by_the_app(wire)
    assert seen.metadata.message_id == question.metadata.message_id
    wire.store.delete(question.metadata.message_id)  # as the app does when it has read the question
    reply = wire.answer(Message(conversation.reply(kind), reply_to=question))
    assert reply.content == conversation.released(kind)
    assert reply.metadata.reply_to_message_id == question.metadata.message_id
    assert not wire.store.store
    *_, asked, replied = wire.log
    assert (asked["event"], replied["event"]) == ("question", "reply")
    assert asked["facts"]["study"] == replied["facts"]["study"] == conversation.study.digest
    assert replied["facts"]["sha256"] == wire.sent.metadata.message_id


@pytest.mark.parametrize("trouble", [RunNotRunningException(), ConnectionError("away")], ids=repr)
def test_a_reply_that_cannot_be_sent_is_noted_and_the_next_one_is(
    wire: Wire, conversation: Conversation, trouble: BaseException
) -> None:
    """A run that was stopped meanwhile is one reason; Flower's exception for it is not an Exception."""
    for attempt in (trouble, None):
        question = wire.ask(conversation.message(CAPABILITY))
        reply = Message(conversation.reply(CAPABILITY), reply_to=question)
        if attempt is not None:
            wire.lose(reply, attempt)
            assert (wire.log[-1]["event"], wire.log[-1]["facts"]["reason"]) == ("reply lost", type(trouble).__name__)
        else:
            assert wire.answer(reply).content == conversation.released(CAPABILITY)


def test_what_was_sent_is_kept_where_the_hospital_wants_it(
    home: Home, bundle: Bundle, conversation: Conversation
) -> None:
    settings = home.folder / "client.toml"
    settings.write_text(settings.read_text().replace("keep_sent = false", "keep_sent = true"))
    wire = Wire(home, bundle)
    reply = wire.answer(Message(conversation.reply(TRAIN), reply_to=wire.ask(conversation.message(TRAIN))))
    kept = home.sent / f"{wire.log[-1]['facts']['sha256']}.message"
    assert unpack(kept.read_bytes()).content == reply.content


def test_an_unknown_bundle_is_refused_and_nothing_of_it_is_kept(home: Home, conversation: Conversation) -> None:
    wire = Wire(home, probe_bundle("unknown"))
    wire.ask(conversation.message(CAPABILITY))
    assert wire.refused() == "BundleNotApproved"
    assert wire.state.get_run(RUN) is None
    assert wire.state.get_fab(wire.bundle.sha256) is None
    assert not wire.state.get_tasks()
    assert not seen_by_the_app(wire)


def test_a_bundle_must_have_the_hash_that_its_run_names(wire: Wire, conversation: Conversation) -> None:
    other = probe_bundle("unknown")
    wire.bundle = Bundle(other.content, wire.bundle.sha256)
    wire.ask(conversation.message(CAPABILITY))
    assert wire.refused() == "BundleNotApproved"


def test_a_study_needs_an_approval_of_its_own(wire: Wire, conversation: Conversation) -> None:
    stranger = conversation.study.model_copy(update={"seed": 99})
    wire.ask(conversation.message(CAPABILITY, study=stranger.to_json()))
    assert wire.refused() == "StudyNotApproved"
    assert not wire.state.get_tasks()


def test_a_withdrawal_counts_from_the_next_message_on(wire: Wire, conversation: Conversation) -> None:
    question = wire.ask(conversation.message(CAPABILITY))
    seen_by_the_app(wire)
    assert "capability" in wire.answer(Message(conversation.reply(CAPABILITY), reply_to=question)).content
    Approvals(wire.home.approvals).withdraw(conversation.study.digest)
    wire.ask(conversation.message(CAPABILITY, again=True))
    assert wire.refused() == "BundleNotApproved"


def test_a_message_without_a_study_is_refused(wire: Wire, conversation: Conversation) -> None:
    message = conversation.message(CAPABILITY)
    message.content = RecordDict({"other": ConfigRecord({"study": PATIENT})})
    wire.ask(message)
    assert wire.refused() == "QuestionUnreadable"


def test_content_that_differs_from_its_address_is_refused(wire: Wire, conversation: Conversation) -> None:
    honest = wire._receive

    def with_another_kind() -> Any:
        bare, tree = honest()
        bare.metadata.__dict__["_message_type"] = TRAIN
        return bare, tree

    wire._receive = with_another_kind  # type: ignore[method-assign]
    wire.ask(conversation.message(CAPABILITY))
    assert wire.refused() == "QuestionUnreadable"


@pytest.mark.parametrize("reason", [f"/data/{PATIENT}.h5 is damaged", "BundleNotApproved"])
def test_the_text_of_an_exception_does_not_leave(wire: Wire, conversation: Conversation, reason: str) -> None:
    question = wire.ask(conversation.message(TRAIN))
    seen_by_the_app(wire)
    assert failed(wire.answer(Message(Error(2, reason), reply_to=question))) == "ClientAppFailed"
    assert PATIENT.encode() not in b"".join(wire.arrived.values()) + wire.home.audit.read_bytes()


def test_a_crash_of_the_app_has_a_code_of_its_own(wire: Wire, conversation: Conversation) -> None:
    question = wire.ask(conversation.message(TRAIN))
    seen_by_the_app(wire)
    crashed = Error(ErrorCode.CLIENT_APP_CRASHED, "ClientApp stopped responding.")
    assert failed(wire.answer(Message(crashed, reply_to=question))) == "ClientAppCrashed"


def test_a_refused_reply_becomes_a_code_and_the_reason_stays(wire: Wire, conversation: Conversation) -> None:
    question = wire.ask(conversation.message(TRAIN))
    seen_by_the_app(wire)
    content = conversation.reply(TRAIN)
    content.metric_records["metrics"][PATIENT] = 1.0
    assert failed(wire.answer(Message(content, reply_to=question))) == "ReplyRefused"
    refusal = wire.log[-1]
    assert (refusal["event"], refusal["facts"]["reason"]) == ("reply refused", "1 metric(s) outside the manifest")
    assert PATIENT.encode() not in b"".join(wire.arrived.values()) + wire.home.audit.read_bytes()


def test_the_address_of_a_reply_is_written_by_the_daemon(wire: Wire, conversation: Conversation) -> None:
    question = wire.ask(conversation.message(CAPABILITY))
    seen_by_the_app(wire)
    reply = Message(conversation.reply(CAPABILITY), reply_to=question)
    reply.metadata.__dict__["_group_id"] = PATIENT
    reply.metadata.__dict__["_message_type"] = PATIENT
    wire.answer(reply)
    assert wire.sent.metadata.message_type == CAPABILITY
    assert PATIENT.encode() not in b"".join(wire.arrived.values())


def test_a_reply_to_another_question_is_dropped(wire: Wire, conversation: Conversation) -> None:
    question = wire.ask(conversation.message(CAPABILITY))
    seen_by_the_app(wire)
    stray = Message(conversation.reply(CAPABILITY), reply_to=question)
    stray.metadata.__dict__["_reply_to_message_id"] = "0" * 64
    flower._insert_message(stray, wire.state, wire.store)
    wire.answer(Message(conversation.reply(CAPABILITY), reply_to=question))
    assert len(wire.replies) == 1
    assert [entry["event"] for entry in wire.log[-2:]] == ["reply dropped", "reply"]


def test_a_second_reply_never_leaves(wire: Wire, conversation: Conversation) -> None:
    question = wire.ask(conversation.message(CAPABILITY))
    seen_by_the_app(wire)
    first = Message(conversation.reply(CAPABILITY), reply_to=question)
    wire.answer(first)
    second = Message(conversation.reply(CAPABILITY), reply_to=question, ttl=5)
    flower._insert_message(second, wire.state, wire.store)
    later = wire.ask(conversation.message(STATISTICS))
    wire.answer(Message(conversation.reply(STATISTICS), reply_to=later))
    assert [set(reply.content) for reply in wire.replies] == [{"capability"}, {"statistics"}]


def test_an_app_that_ends_without_a_word_is_answered_for(
    wire: Wire, conversation: Conversation, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(guard, "_GRACE", 0.1)
    wire.ask(conversation.message(TRAIN))
    seen_by_the_app(wire)
    (task,) = wire.state.get_tasks()
    assert wire.state.finish_task(task.task_id, SubStatus.FAILED, PATIENT)
    assert failed(wire.answer()) == "ClientAppCrashed"


def test_a_reply_whose_pieces_never_come_is_given_up(
    wire: Wire, conversation: Conversation, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(guard, "_PATIENCE", 0.2)
    question = wire.ask(conversation.message(CAPABILITY))
    seen_by_the_app(wire)
    reply = Message(conversation.reply(CAPABILITY), reply_to=question)
    reply.metadata.__dict__["_message_id"] = reply.object_id
    wire.state.store_message(reply)
    wire.store.preregister(RUN, get_object_tree(reply))
    assert failed(wire.answer()) == "ReplyRefused"


SECRET = PATIENT.encode() * 1000


def push(wire: Wire, reply: Message, tree: ObjectTree, pieces: dict[str, bytes]) -> None:
    """What Flower's Runtime API does with the messages and pieces that an app sends it."""
    reply.metadata.__dict__["_message_id"] = tree.object_id
    session = wire.state.start_session(RUN)
    _, missing = wire.state.store_message_and_object_tree(reply, tree, session)
    assert all(wire.state.store_object(RUN, session, name, pieces[name]) for name in missing)


def deflated(thing: Message | RecordDict) -> dict[str, bytes]:
    return {name: piece.deflate() for name, piece in get_all_nested_objects(thing).items()}


@pytest.mark.parametrize("refused", [False, True])
def test_a_piece_that_the_app_hangs_on_an_answer_to_come_stays(
    wire: Wire, conversation: Conversation, refused: bool
) -> None:
    """Names of pieces are hashes, so the app can register the daemon's answer first, with one more child."""
    question = wire.ask(conversation.message(CAPABILITY))
    seen_by_the_app(wire)
    wire.store.delete(question.metadata.message_id)
    awaited = gate.failure("ReplyRefused") if refused else conversation.released(CAPABILITY)
    hidden = ArrayChunk(memoryview(SECRET)).deflate()
    hook = get_object_tree(awaited)
    hook.children.append(ObjectTree(object_id=get_object_id(hidden)))
    reply = Message(RecordDict({"x": ConfigRecord({"y": 1})}) if refused else awaited, reply_to=question)
    tree = ObjectTree(
        object_id=reply.object_id, children=[hook] if not refused else [*get_object_tree(reply).children, hook]
    )
    push(wire, reply, tree, deflated(reply) | deflated(awaited) | {get_object_id(hidden): hidden})
    assert wire.answer().content == awaited
    assert len(wire.arrived) == 3, "message, record dict, record"
    assert PATIENT.encode() not in b"".join(wire.arrived.values())
    assert not wire.store.store


def test_of_several_replies_at_once_one_leaves(wire: Wire, conversation: Conversation) -> None:
    question = wire.ask(conversation.message(CAPABILITY))
    seen_by_the_app(wire)
    for seconds in (5, 6, 7):
        flower._insert_message(
            Message(conversation.reply(CAPABILITY), reply_to=question, ttl=seconds), wire.state, wire.store
        )
    wire.answer()
    assert len(wire.replies) == 1
    dropped = [entry["facts"] for entry in wire.log if entry["event"] == "reply dropped"]
    assert dropped == [{"reason": "the question is answered"}] * 2


def test_of_an_unknown_bundle_nothing_is_fetched_and_no_text_is_noted(home: Home, conversation: Conversation) -> None:
    wire = Wire(home, probe_bundle("unknown"))
    message = conversation.message(CAPABILITY)
    message.metadata.__dict__["_message_type"] = "query." + "SYN_H1_0007" * 1000
    wire.ask(message)
    assert wire.refused() == "BundleNotApproved"
    assert (wire.fetched, wire.guard.usage.counts.bytes) == ([], {})
    assert wire.log[-1]["facts"]["kind"] == "unknown"
    assert b"SYN_H1" not in home.audit.read_bytes()


def test_a_message_is_no_larger_than_the_study_makes_it(wire: Wire, conversation: Conversation) -> None:
    largest = largest_message(conversation.study)
    for kind in (STATISTICS, TRAIN, EVALUATE):
        wire.ask(conversation.message(kind))
        assert wire.guard.asked is not None
    wire.ask(conversation.message(CAPABILITY, padding="x" * largest))
    assert wire.refused() == "QuestionRefused"
    assert wire.log[-1]["facts"]["reason"] == "the message is larger than any of the study"
    assert wire.guard.usage.counts.bytes.popitem()[1] > largest, "what came in counts"


def test_a_piece_of_a_question_has_the_hash_that_names_it(wire: Wire, conversation: Conversation) -> None:
    message, other = conversation.message(CAPABILITY), conversation.message(CAPABILITY, other=True)
    wire.swapped = {message.content.object_id: other.content.deflate()}
    wire.ask(message)
    assert wire.refused() == "QuestionUnreadable"
    assert wire.log[-1]["facts"]["reason"].startswith("a piece of the message does not have the hash")


def test_bundles_are_unpacked_anew_for_each_question(wire: Wire, conversation: Conversation, tmp_path: Path) -> None:
    installed, elsewhere = wire.home.app / "apps", tmp_path / "elsewhere"
    for folder in (installed, elsewhere):
        (folder / "modaltune.0.1.0.01234567").mkdir(parents=True)
    wire.ask(conversation.message(CAPABILITY))
    assert not installed.exists()
    installed.symlink_to(elsewhere)
    wire.ask(conversation.message(CAPABILITY))
    assert not installed.is_symlink()
    assert list(elsewhere.iterdir())


def test_the_daemon_refuses_to_run_beside_another_flower(monkeypatch: pytest.MonkeyPatch) -> None:
    daemon.check_flower()
    with monkeypatch.context() as patch:
        patch.setattr(daemon, "version", lambda _: "1.42.0")
        with pytest.raises(FederationError, match=r"flwr 1\.42\.0 is installed but .* 1\.41\.0"):
            daemon.check_flower()
    changed: list[Callable[..., None]] = [lambda state, store: None, lambda: None]
    for function in changed:
        with monkeypatch.context() as patch:
            patch.setattr(flower, "_push_messages", function)
            with pytest.raises(FederationError, match="_push_messages is not the function"):
                daemon.check_flower()
