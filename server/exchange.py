"""Questions to the sites and their answers: who is asked, until when, which reply counts, what it cost."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from flwr.app import Message, RecordDict
from flwr.common.constant import ErrorCode
from flwr.serverapp import Grid

from modaltune.errors import ReplyRefused
from server.inbox import Inbox, Reply

logger = logging.getLogger(__name__)
_POLL_SECONDS, _SLOWEST_POLL_SECONDS = 0.05, 0.5
_ASK_AGAIN_SECONDS = 3.0
_SMALL = 16_000_000  # bytes of any reply but an update
_LONGEST_REASON = 300
_ON_THE_WAY = (  # a process or a connection died: the site itself has not answered yet
    ErrorCode.MESSAGE_UNAVAILABLE,
    ErrorCode.REPLY_MESSAGE_UNAVAILABLE,
    ErrorCode.NODE_UNAVAILABLE,
    ErrorCode.CLIENT_APP_CRASHED,
)
_CRASHED = "ClientAppCrashed"  # the same, as a hospital's daemon says it


@dataclass(kw_only=True)
class Round:
    """One exchange with the roster: who answered, who is missing, who was refused and why, and what it cost."""

    number: int
    phase: str
    attempt: int = 1
    started: float = field(default_factory=time.monotonic)
    missing: list[str] = field(default_factory=list)
    refused: dict[str, str] = field(default_factory=dict)
    digests: dict[str, list[str]] = field(default_factory=dict)
    repeated: bool = False
    bytes_down: int = 0
    bytes_up: int = 0

    @contextmanager
    def judging(self, site: str) -> Iterator[None]:
        """Whatever a site's reply provokes inside is a refusal of this site, never the end of the run."""
        try:
            yield
        except ReplyRefused as error:
            self.refuse(site, error.reason)
        except KeyError as error:
            self.refuse(site, f"record {error} is missing")
        except Exception as error:  # a site wrote the reply
            logger.warning("a reply of %s provoked an error", site, exc_info=True)
            self.refuse(site, f"unreadable reply ({type(error).__name__})")

    def refuse(self, site: str, reason: str) -> None:
        """Write down why a site's reply does not count; a site may have written parts of the reason."""
        self.refused[site] = "".join(filter(str.isprintable, reason))[:_LONGEST_REASON]
        logger.warning("round %s %s: reply of %s refused: %s", self.number, self.phase, site, self.refused[site])

    def as_row(self, accepted: Mapping[str, object], **more: Any) -> dict[str, Any]:
        """One object of ``rounds.jsonl``."""
        trouble = "DEGRADED" if self.missing or self.refused else "OK"
        return {
            "round": self.number,
            "phase": self.phase,
            "attempt": self.attempt,
            "status": "REPEATED" if self.repeated else trouble,
            "seconds": round(time.monotonic() - self.started, 3),
            "contributors": sorted(accepted),
            "missing": self.missing,
            "refused": self.refused,
            "bytes_down": self.bytes_down,
            "bytes_up": self.bytes_up,
            **({"replies": dict(sorted(self.digests.items()))} if self.digests else {}),
            **more,
        }

    def why_short(self) -> str:
        """Who did not contribute, and why."""
        return "; ".join([*(f"{k}: {v}" for k, v in self.refused.items()), *(f"{s}: no reply" for s in self.missing)])


class Exchange:
    """Sends one question to each name and yields the answers as they arrive, until a deadline.

    A site whose process or connection dies is asked again until the deadline. A reply that comes after it is dropped.
    """

    def __init__(self, grid: Grid, deadline_seconds: float) -> None:
        self.grid, self.deadline_seconds, self.inbox = grid, deadline_seconds, Inbox(grid)
        self._late: dict[str, str] = {}  # message id -> whom and what it asked

    def ask(
        self,
        this: Round,
        kind: str,
        nodes: Mapping[str, int],
        content: Callable[[str], RecordDict],
        *,
        seconds: float | None = None,
        most_bytes: int = _SMALL,
    ) -> Iterator[tuple[str, RecordDict]]:
        """Answers to one kind of question, once per name; names without one are in ``this.missing`` afterwards.

        Args:
            nodes: whom to ask.
            content: makes the question to a name.
            seconds: until the deadline, if not the study's.
            most_bytes: of one answer.
        """
        patience = self.deadline_seconds if seconds is None else seconds
        deadline, pause = time.monotonic() + patience, _POLL_SECONDS
        asked, due, answered = dict[str, str](), dict.fromkeys(sorted(nodes), 0.0), set[str]()
        while (asked or due) and time.monotonic() < deadline:
            for name in [name for name, when in due.items() if when <= time.monotonic()]:
                del due[name]
                asked[self._send(this, kind, nodes[name], content(name), patience)] = name
            pause = min(_SLOWEST_POLL_SECONDS, pause * 1.1)
            for reply in self.inbox.pull([*asked, *self._late], most_bytes):
                if (whose := self._whose(reply, asked, nodes)) is None:
                    continue
                name, pause = whose, _POLL_SECONDS
                if _broke_off(reply):
                    due[name] = time.monotonic() + _ASK_AGAIN_SECONDS
                    logger.warning("round %s %s: %s broke off and is asked again", this.number, this.phase, name)
                    continue
                answered.add(name)
                with this.judging(name):
                    records = _records(name, reply)
                    this.bytes_up += _size(records)
                if name not in this.refused:
                    if reply.digest:
                        this.digests.setdefault(name, []).append(reply.digest)
                    yield name, records
            if asked or due:
                time.sleep(pause)
        for message, name in asked.items():
            self.inbox.forget(message)
            self._late[message] = f"{name} ({this.phase}, round {this.number})"
        this.missing += sorted(set(nodes) - answered)

    def wait_for_nodes(self, count: int, seconds: float, wanted: Mapping[str, int] | None = None) -> set[int]:
        """Connected nodes, as soon as there are as many as asked for (of the wanted ones), or when time is up."""
        deadline = time.monotonic() + seconds
        while True:
            online = set(self.grid.get_node_ids())
            present = len(online if wanted is None else online & set(wanted.values()))
            if present >= count or time.monotonic() >= deadline:
                return online
            time.sleep(_POLL_SECONDS if wanted is None else 1.0)

    def _send(self, this: Round, kind: str, node: int, question: RecordDict, patience: float) -> str:
        this.bytes_down += _size(question)
        message = Message(question, dst_node_id=node, message_type=kind, group_id=str(this.number), ttl=patience + 60)
        return next(iter(self.grid.push_messages([message])))

    def _whose(self, reply: Reply, asked: dict[str, str], nodes: Mapping[str, int]) -> str | None:
        """The name that a reply answers for; None for late replies, second ones and those of other nodes."""
        if (late := self._late.pop(reply.question, None)) is not None:
            logger.warning("a late reply of %s was dropped", late)
            return None
        name = asked.get(reply.question)
        if name is None or reply.node not in (None, nodes[name]):
            logger.warning("a reply from an unknown node, or a second one, was dropped")
            return None
        del asked[reply.question]
        return name


def _records(site: str, reply: Reply) -> RecordDict:
    """What a site answers, when it is an answer."""
    if reply.unreadable:
        raise ReplyRefused(site, reply.unreadable)
    if reply.error is not None or reply.content is None:
        raise ReplyRefused(site, f"Flower error {reply.error}")
    if "failure" in reply.content:
        raise ReplyRefused(site, f"site reported {_code(reply.content)}")
    return reply.content


def _size(content: RecordDict) -> int:
    arrays = sum(record.count_bytes() for record in content.array_records.values())
    metrics = sum(record.count_bytes() for record in content.metric_records.values())
    return arrays + metrics + sum(record.count_bytes() for record in content.config_records.values())


def _broke_off(reply: Reply) -> bool:
    if reply.content is None:
        return reply.error in _ON_THE_WAY
    return "failure" in reply.content and _code(reply.content) == _CRASHED


def _code(content: RecordDict) -> str:
    code = str(content.config_records["failure"].get("code", "")) if "failure" in content.config_records else ""
    return code if code.isidentifier() and len(code) < 64 else "an unreadable failure"
