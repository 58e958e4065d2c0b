"""Between Flower's SuperNode and the client app: what comes in, what goes out, and a line in the audit log for each."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256
from typing import Any

from flwr.app import Message, RecordDict
from flwr.common.constant import ErrorCode, Status
from flwr.supercore.constant import TaskType
from flwr.supercore.inflatable.inflatable_object import iterate_object_tree
from flwr.supercore.inflatable.inflatable_utils import ObjectPullError, inflate_object_from_contents, pull_objects
from flwr.supercore.run import RunNotRunningException
from flwr.supernode import start_client_internal as flower

from client import gate
from client.approvals import Approval, Approvals
from client.home import Home
from client.questions import TRAIN, Question, read_question, study_of
from client.usage import Usage
from modaltune.errors import MessageRefused
from modaltune.storage import write_json
from modaltune.trust.audit import AuditLog

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
    """Stands in for two functions of Flower's SuperNode and calls them with what it has checked."""

    def __init__(self, home: Home, audit: AuditLog) -> None:
        self.home, self.audit = home, audit
        self.approvals = Approvals(home.approvals)
        self.usage = Usage(home.usage, home.settings().limits)
        self.asked: Asked | None = None
        self.written: set[str] = set()
        self._told, self._ended = 0.0, math.inf
        self._pull, self._push = flower._pull_and_store_message, flower._push_messages

    def pull(self, **given: Any) -> int | None:
        """Stands in for ``_pull_and_store_message``: the whole message is here and checked before anything is kept."""
        self.written.clear()
        if self.home.paused:
            self._tell("paused")
            return None
        try:
            received = given["receive"]()
            self._tell("waiting")
            if received is None:
                return None
            message, tree = received
            run_id = message.metadata.run_id
            try:
                run, fab = _run_of(given, run_id)
                contents = self._download(given["pull_object"], run_id, tree)
                self._open(message, dict(contents), run.fab_hash)
            except MessageRefused as refusal:
                given["confirm_message_received"](run_id, message.metadata.message_id)
                self._refuse("question refused", message, refusal, given["state"], given["object_store"])
                return int(run_id)
        except (RunNotRunningException, ObjectPullError) as problem:
            self.audit.append("question lost", reason=type(problem).__name__)
            return None
        checked = {
            "receive": lambda: received,
            "get_run": lambda _: run,
            "get_fab": lambda *_: fab,
            "pull_object": lambda _, name: contents[name],
        }
        return self._pull(**given | checked)

    def push(self, **given: Any) -> None:
        """Stands in for ``_push_messages``: it sees only replies that were written here."""
        self._push(**given | {"state": _Checked(given["state"], self, given["object_store"])})
        self.asked = None

    def check_reply(self, reply: Message, state: Any, store: Any) -> None:
        """Replace a reply of the client app by what may leave of it."""
        asked, name = self.asked, reply.metadata.message_id
        if asked is None or reply.metadata.reply_to_message_id != asked.message.metadata.message_id:
            self.audit.append("reply dropped", message=name, reason="it answers nothing that is open")
        else:
            try:
                content = self._released(asked, reply, store)
                self.usage.count_bytes(_size(content))
                answer = self._write(content, asked.message, state, store)
                self.audit.append("reply", **_facts(asked), bytes=_size(content), sha256=answer)
            except MessageRefused as refusal:
                self._refuse("reply refused", asked.message, refusal, state, store)
        state.delete_messages(message_ids=[name])
        store.delete(name)

    def check_app(self, state: Any, store: Any) -> None:
        """Answer for a client app that has ended without a word."""
        asked = self.asked
        tasks = state.get_tasks(run_ids=[asked.message.metadata.run_id]) if asked is not None else []
        if asked is None or not tasks or any(task.status.status != Status.FINISHED for task in tasks):
            self._ended = math.inf
            return
        self._ended = min(self._ended, time.monotonic())
        if time.monotonic() - self._ended > _GRACE:
            refusal = MessageRefused(_CRASHED, "the client app ended without a reply")
            self._refuse("reply refused", asked.message, refusal, state, store)
            self.asked = None

    def _download(self, pull_object: Callable[[int, str], bytes], run_id: int, tree: Any) -> dict[str, bytes]:
        left = self.usage.bytes_left

        def pull(name: str) -> bytes:
            nonlocal left
            content = pull_object(run_id, name)
            left -= len(content)
            if left < 0:
                raise self.usage.too_many_bytes()
            return content

        names = list(dict.fromkeys(node.object_id for node in iterate_object_tree(tree)))
        contents = pull_objects(names, pull)
        self.usage.count_bytes(sum(map(len, contents.values())))
        return contents

    def _open(self, outer: Message, contents: dict[str, bytes], bundle: str) -> None:
        """Read a message as the app will read it; it becomes the open question."""
        size = sum(map(len, contents.values()))
        message = _inflated(outer.metadata.message_id, contents, "QuestionUnreadable")
        if not message.has_content() or message.metadata.message_type != outer.metadata.message_type:
            raise MessageRefused("QuestionUnreadable", "content and address of the message differ")
        study = study_of(message)
        approval = self.approvals.of(study.digest, bundle)
        question = read_question(message, study)
        if question.kind == TRAIN:
            self.usage.count_round(study.digest)
        self.asked = Asked(message=outer, question=question, approval=approval)
        self.audit.append("question", **_facts(self.asked), bytes=size)
        self._tell(f"{question.kind} round {question.round}" if question.round else question.kind, now=True)

    def _released(self, asked: Asked, reply: Message, store: Any) -> RecordDict:
        if reply.has_error():  # its text may be anything, a path or a row of a table
            self.audit.append("error replaced", **_facts(asked), flower_code=reply.error.code)
            return gate.failure(_CRASHED if reply.error.code == ErrorCode.CLIENT_APP_CRASHED else _FLOWER_FAILED)
        message = _inflated(reply.metadata.message_id, _contents(store, reply.metadata.message_id), "ReplyRefused")
        if not message.has_content():
            return gate.failure(_FLOWER_FAILED)
        return gate.released(asked.question, asked.approval, message.content)

    def _refuse(self, event: str, message: Message, refusal: MessageRefused, state: Any, store: Any) -> None:
        facts = {"kind": message.metadata.message_type, "run": str(message.metadata.run_id)}
        self.audit.append(event, **facts, message=message.metadata.message_id, code=refusal.code, reason=refusal.reason)
        self._write(gate.failure(refusal.code), message, state, store)

    def _write(self, content: RecordDict, question: Message, state: Any, store: Any) -> str:
        reply = Message(content, reply_to=question)
        flower._insert_message(reply, state, store)
        self.written.add(reply.metadata.message_id)
        return str(reply.metadata.message_id)

    def _tell(self, doing: str, *, now: bool = False) -> None:
        """Leave word for ``modaltune-client status``."""
        if now or time.monotonic() - self._told > _NEWS_SECONDS:
            self._told = time.monotonic()
            write_json(self.home.status, {"doing": doing, "contact": time.time()})


class _Checked:
    """Flower's state of a node, whose replies have passed the guard."""

    def __init__(self, state: Any, guard: Guard, store: Any) -> None:
        self._state, self._guard, self._store = state, guard, store

    def __getattr__(self, name: str) -> Any:
        return getattr(self._state, name)

    def get_messages_legacy(self, **given: Any) -> Sequence[Message]:
        """Replies written by the guard; those of the app are checked, and seen in their new form the next time."""
        found = self._state.get_messages_legacy(**given)
        ready = [reply for reply in found if reply.metadata.message_id in self._guard.written]
        for reply in found:
            if reply.metadata.message_id not in self._guard.written:
                self._guard.check_reply(reply, self._state, self._store)
        if not found:
            self._guard.check_app(self._state, self._store)
        return ready


def _run_of(given: Mapping[str, Any], run_id: int) -> tuple[Any, Any]:
    """The run of a message, and its bundle where it is new; the bundle's bytes have the hash that the run names."""
    if (known := given["state"].get_run(run_id)) is not None:
        return known, None
    run = given["get_run"](run_id)
    fab = given["get_fab"](run.fab_hash, run_id)
    if run.primary_task_type == TaskType.AGENT_APP:
        raise MessageRefused("BundleNotApproved", "the run is not one of a server app")
    if not run.fab_hash == fab.hash_str == sha256(fab.content).hexdigest():
        raise MessageRefused("BundleNotApproved", "the bundle does not have the hash that its run names")
    return run, fab


def _contents(store: Any, name: str) -> dict[str, bytes]:
    """All pieces of a message in the object store; the app may still be pushing them."""
    names = [node.object_id for node in iterate_object_tree(store.get_object_tree(name))]
    out: dict[str, bytes] = {}
    news = time.monotonic()
    while len(out) < len(set(names)):
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
    }


def _size(content: RecordDict) -> int:
    return sum(record.count_bytes() for record in content.values())
