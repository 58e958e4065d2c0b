"""Between Flower's SuperNode and the client app: what comes in, what goes out, and a line in the audit log for each.

The app writes into Flower's object store, and can compute the name of a piece before the piece exists. So nothing is
sent from that store: an answer is made here, from memory, and only its own pieces are sent.
"""

from __future__ import annotations

import math
import re
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from hashlib import sha256
from typing import Any

from flwr.app import Message, RecordDict
from flwr.common.constant import ErrorCode, Status
from flwr.common.serde import message_to_proto
from flwr.supercore.constant import TaskType
from flwr.supercore.inflatable.inflatable_object import (
    get_all_nested_objects,
    get_object_children_ids_from_object_content,
    get_object_tree,
    no_object_id_recompute,
)
from flwr.supercore.inflatable.inflatable_utils import (
    ObjectPullError,
    inflate_object_from_contents,
    pull_objects,
    push_objects,
)
from flwr.supercore.run import RunNotRunningException
from flwr.supernode import start_client_internal as flower

from client import gate
from client.approvals import Approval, Approvals
from client.home import Home
from client.label_queries import count_label_query
from client.probes import count_probe
from client.questions import KINDS, TRAIN, Question, largest_message, read_question, study_of
from client.splits import SplitJournal
from client.usage import Usage
from modaltune.errors import MessageRefused
from modaltune.storage import write_bytes, write_json
from modaltune.trust.audit import AuditLog

Fetch = Callable[[list[str]], dict[str, bytes]]
_POLL = 0.5
_PATIENCE = 300.0
"""Seconds without a further piece of a reply after which it is given up."""
_GRACE = 10.0
"""Seconds that a client app which has ended may still need to be heard."""
_NEWS_SECONDS = 15.0
_FLOWER_FAILED, _CRASHED = "ClientAppFailed", "ClientAppCrashed"


@dataclass(frozen=True, kw_only=True)
class Asked:
    """The one question that is open: Flower's loop takes the next message after it has pushed a reply."""

    message: Message
    question: Question
    approval: Approval


class Guard:
    """Stands in for two functions of Flower's node: the one that takes a message, and the one that sends a reply."""

    def __init__(self, home: Home, audit: AuditLog) -> None:
        self.home, self.audit = home, audit
        self.approvals = Approvals(home.approvals)
        settings = home.settings()
        self.splits, self.site_folder = SplitJournal(home), settings.site_folder
        self.usage, self.keep_sent = Usage(home.usage, settings.limits), settings.keep_sent
        self.asked: Asked | None = None
        self.answer: Message | None = None
        self._told, self._ended = 0.0, math.inf
        self._pull = flower._pull_and_store_message

    def pull(self, **given: Any) -> int | None:
        """Stands in for ``_pull_and_store_message``: the whole message is here and checked before anything is kept."""
        self.asked = self.answer = None
        if self.home.paused:
            self._tell("paused")
            return None
        try:
            received = given["receive"]()
            self._tell("waiting")
            if received is None:
                return None
            outer, _ = received
            run_id = outer.metadata.run_id
            try:
                run, fab = self._run(given, run_id)
                contents = self._download(given["pull_object"], outer, run.fab_hash)
                tree = self._open(outer, dict(contents), run.fab_hash)
            except MessageRefused as refusal:
                given["confirm_message_received"](run_id, outer.metadata.message_id)
                self._refuse("question refused", outer, refusal)
                return int(run_id)
        except (RunNotRunningException, ObjectPullError) as problem:
            self.audit.append("question lost", reason=type(problem).__name__)
            return None
        checked = {
            "receive": lambda: (outer, tree),
            "get_run": lambda _: run,
            "get_fab": lambda *_: fab,
            "pull_object": lambda _, name: contents[name],
        }
        self.home.forget_bundles()
        return self._pull(**given | checked)

    def push(self, *, state: Any, object_store: Any, send: Callable[..., Any], push_object: Callable[..., Any]) -> None:
        """Stands in for ``_push_messages``: one answer to the open question, made here."""
        while self.answer is None:
            replies = state.get_messages_legacy(is_reply=True)
            for reply in replies:
                self._check_reply(reply, object_store)
                state.delete_messages(message_ids=[reply.metadata.message_id])
            if not replies:
                self._check_app(state)
                time.sleep(_POLL)
        answer, self.asked, self.answer = self.answer, None, None
        question, run_id = answer.metadata.reply_to_message_id, answer.metadata.run_id
        try:
            with no_object_id_recompute():
                tree, pieces = get_object_tree(answer), get_all_nested_objects(answer)
            seconds = round(state.get_message_processing_duration(message_id=question))
            if self.keep_sent:
                sent = self.home.sent / f"{answer.object_id}.message"
                write_bytes(sent, message_to_proto(answer).SerializeToString())
            wanted, session = send(answer, tree, seconds)
            push_objects(pieces, partial(push_object, run_id, session), object_ids_to_push=wanted)
        except (Exception, RunNotRunningException) as problem:  # noqa: BLE001 - the coordinator asks again; we go on
            self.audit.append("reply lost", reason=type(problem).__name__)
        finally:
            state.delete_messages(message_ids=[question])
            object_store.delete_objects_in_run(run_id)

    def _check_reply(self, reply: Message, store: Any) -> None:
        """Make of a reply of the client app what may leave of it; the first reply to the open question counts."""
        asked = self.asked
        if asked is None or reply.metadata.reply_to_message_id != asked.message.metadata.message_id:
            self.audit.append("reply dropped", reason="it answers nothing that is open")
        elif self.answer is not None:
            self.audit.append("reply dropped", reason="the question is answered")
        else:
            try:
                content = self._released(asked, reply, store)
                self.usage.count_bytes(_size(content))
                if set(content) != {"failure"}:
                    settled = gate.settled(asked.question, content)
                    self.usage.agree(asked.approval.digest, {**asked.question.agreed, **settled})
                name = self._say(content, asked.message)
                self.audit.append("reply", **_facts(asked), bytes=_size(content), sha256=name)
            except MessageRefused as refusal:
                self._refuse("reply refused", asked.message, refusal)

    def _check_app(self, state: Any) -> None:
        """Answer for a client app that has ended without a word."""
        asked = self.asked
        tasks = state.get_tasks(run_ids=[asked.message.metadata.run_id]) if asked is not None else []
        if asked is None or not tasks or any(task.status.status != Status.FINISHED for task in tasks):
            self._ended = math.inf
            return
        self._ended = min(self._ended, time.monotonic())
        if time.monotonic() - self._ended > _GRACE:
            refusal = MessageRefused(_CRASHED, "the client app ended without a reply")
            self._refuse("reply refused", asked.message, refusal)

    def _run(self, given: Mapping[str, Any], run_id: int) -> tuple[Any, Any]:
        """The run of a message, and its bundle where it is new: an approved one, with the hash that the run names."""
        known = given["state"].get_run(run_id)
        run = given["get_run"](run_id) if known is None else known
        self.approvals.of_bundle(run.fab_hash)
        if known is not None:
            return known, None
        if run.primary_task_type == TaskType.AGENT_APP:
            raise MessageRefused("BundleNotApproved", "the run is not one of a server app")
        fab = given["get_fab"](run.fab_hash, run_id)
        if not run.fab_hash == fab.hash_str == sha256(fab.content).hexdigest():
            raise MessageRefused("BundleNotApproved", "the bundle does not have the hash that its run names")
        return run, fab

    def _download(self, pull_object: Callable[[int, str], bytes], outer: Message, bundle: str) -> dict[str, bytes]:
        largest = max(largest_message(approval.study) for approval in self.approvals.of_bundle(bundle))
        allowed, taken = self.usage.bytes_left, 0

        def pull(name: str) -> bytes:
            nonlocal taken
            content = pull_object(outer.metadata.run_id, name)
            taken += len(content)
            if taken > allowed:
                raise self.usage.too_many_bytes()
            if taken > largest:
                raise MessageRefused("QuestionRefused", "the message is larger than any of the study")
            return content

        try:
            return _pieces(outer.metadata.message_id, lambda names: pull_objects(names, pull), "QuestionUnreadable")
        finally:
            self.usage.count_bytes(min(taken, allowed))

    def _open(self, outer: Message, contents: dict[str, bytes], bundle: str) -> Any:
        """Read a message as the app will read it; it becomes the open question. Returns the tree of its pieces."""
        size = sum(map(len, contents.values()))
        message = _inflated(outer.metadata.message_id, contents, "QuestionUnreadable")
        if not message.has_content() or message.metadata.message_type != outer.metadata.message_type:
            raise MessageRefused("QuestionUnreadable", "content and address of the message differ")
        study = study_of(message)
        approval = self.approvals.of(study.digest, bundle)
        question = read_question(message, study)
        self.usage.check_agreed(approval.digest, question.agreed)
        self.splits.check(study.digest, self.site_folder)
        if question.kind == TRAIN:
            self.usage.count_round(study.digest)
        if question.query is not None:
            count_label_query(self.usage, approval, question.query)
        if question.probe is not None:
            count_probe(self.usage, approval, question.probe)
        self.asked = Asked(message=outer, question=question, approval=approval)
        self.audit.append("question", **_facts(self.asked), bytes=size)
        self._tell(f"{question.kind} round {question.round}" if question.round else question.kind, now=True)
        return get_object_tree(message)

    def _released(self, asked: Asked, reply: Message, store: Any) -> RecordDict:
        if reply.has_error():  # its text may be anything, a path or a row of a table
            self.audit.append("error replaced", **_facts(asked), flower_code=reply.error.code)
            return gate.failure(_CRASHED if reply.error.code == ErrorCode.CLIENT_APP_CRASHED else _FLOWER_FAILED)
        name = reply.metadata.message_id
        message = _inflated(name, _pieces(name, lambda names: _stored(store, names), "ReplyRefused"), "ReplyRefused")
        if not message.has_content():
            return gate.failure(_FLOWER_FAILED)
        content = gate.released(asked.question, asked.approval, message.content)
        self.usage.check_agreed(asked.approval.digest, gate.settled(asked.question, content))
        return content

    def _refuse(self, event: str, question: Message, refusal: MessageRefused) -> None:
        address = question.metadata  # the coordinator's text: only what has the form of a kind, or of a hash, is noted
        facts = {
            "kind": address.message_type if address.message_type in KINDS else "unknown",
            "run": str(address.run_id),
            "message": address.message_id if re.fullmatch("[0-9a-f]{64}", address.message_id) else "unknown",
        }
        self.audit.append(event, **facts, code=refusal.code, reason=refusal.reason)
        self._say(gate.failure(refusal.code), question)

    def _say(self, content: RecordDict, question: Message) -> str:
        """Make the answer to a question; its name."""
        answer = Message(content, reply_to=question)
        answer.metadata.__dict__["_message_id"] = name = str(answer.object_id)
        self.answer = answer
        return name

    def _tell(self, doing: str, *, now: bool = False) -> None:
        """Leave word for ``modaltune-client status``."""
        if now or time.monotonic() - self._told > _NEWS_SECONDS:
            self._told = time.monotonic()
            write_json(self.home.status, {"doing": doing, "contact": time.time()})


def _pieces(name: str, fetch: Fetch, code: str) -> dict[str, bytes]:
    """A message and all that it is made of: each piece names others and is itself named by the hash of its content."""
    out: dict[str, bytes] = {}
    wanted = {name}
    while wanted:
        found = fetch(sorted(wanted))
        if any(sha256(content).hexdigest() != key for key, content in found.items()):
            raise MessageRefused(code, "a piece of the message does not have the hash that names it")
        out |= found
        try:
            named = [get_object_children_ids_from_object_content(content) for content in found.values()]
        except ValueError:
            raise MessageRefused(code, "the message cannot be read") from None
        wanted = {key for keys in named for key in keys} - set(out)
    return out


def _stored(store: Any, names: list[str]) -> dict[str, bytes]:
    """Pieces of a reply in the object store; the app may still be pushing them."""
    out: dict[str, bytes] = {}
    news = time.monotonic()
    while len(out) < len(names):
        more = {key: content for key in names if key not in out and (content := store.get(key))}
        out, news = out | more, time.monotonic() if more else news
        if time.monotonic() - news > _PATIENCE:
            raise MessageRefused("ReplyRefused", "a piece of the reply never came")
        if not more:
            time.sleep(0.1)
    return out


def _inflated(name: str, contents: dict[str, bytes], code: str) -> Message:
    try:
        message = inflate_object_from_contents(name, contents)
    except Exception:  # noqa: BLE001 - whatever Flower's parsers make of hostile bytes
        raise MessageRefused(code, "the message cannot be read") from None
    if not isinstance(message, Message):
        raise MessageRefused(code, "it is not a message")
    return message


def _facts(asked: Asked) -> dict[str, Any]:
    return {
        "kind": asked.question.kind,
        "run": str(asked.message.metadata.run_id),
        "message": asked.message.metadata.message_id,
        "study": asked.question.study.digest,
        "bundle": asked.approval.bundle,
        "round": asked.question.round,
        **({} if asked.question.query is None else {"label_query": asked.question.query.digest}),
        **({} if (probe := asked.question.probe) is None else {"task": probe.task, "probe": probe.digest}),
    }


def _size(content: RecordDict) -> int:
    return sum(record.count_bytes() for record in content.values())
