"""What the guard lets a coordinator ask once, or so often, in an approval."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from flwr.app import Error, Message

from client.approvals import Approvals
from client.probes import TALLIES
from modaltune.federation.wire import unseal
from tests.client.conversation import (
    CAPABILITY,
    EVALUATE,
    PROBE,
    PROBED,
    STATISTICS,
    TALLY,
    TRAIN,
    Conversation,
    sealed,
)
from tests.client.wire import RUN, Wire, answered, failed, seen_by_the_app


def test_statistics_and_evaluation_are_answered_once_in_an_approval(wire: Wire, conversation: Conversation) -> None:
    approvals = Approvals(wire.home.approvals)
    scaled = {name: np.asarray(value * 1.5, np.float32) for name, value in conversation.start.items()}
    other = {
        STATISTICS: lambda: conversation.message(STATISTICS, genes=conversation.genes[1:]),
        EVALUATE: lambda: conversation.message(EVALUATE, weights=scaled),
    }
    for kind, another in other.items():
        assert answered(wire, conversation, kind, conversation.message(kind)) != "QuestionRefused"
        assert answered(wire, conversation, kind, another()) == "QuestionRefused"
        restarted = Wire(wire.home, wire.bundle)
        assert answered(restarted, conversation, kind, another()) == "QuestionRefused"
        assert answered(restarted, conversation, kind, conversation.message(kind)) != "QuestionRefused", "asked again"
    (approval,) = approvals.all()
    approvals.add(approval.model_copy(update={"when": "2030-01-01T00:00:00+00:00"}))
    again = wire.ask(other[STATISTICS]())
    assert wire.guard.asked is not None, again


@pytest.mark.parametrize(
    ("kind", "record", "name"),
    [
        (STATISTICS, "statistics", "expression.squares"),
        (EVALUATE, "metrics", "diagnosis.auc.value"),
        (TALLY, TALLIES, f"{PROBED}.squares"),
    ],
)
def test_an_answer_with_other_numbers_does_not_leave(
    kind: str, record: str, name: str, wire: Wire, conversation: Conversation
) -> None:
    """The difference of two would be the patient who came or left in between."""
    assert record in answered(wire, conversation, kind, conversation.message(kind))
    question = wire.ask(conversation.message(kind))
    seen_by_the_app(wire)
    content = conversation.reply(kind)
    if kind == EVALUATE:
        content.metric_records[record][name] = 0.5
    else:
        arrays: dict[str, Any] = dict(unseal(content.array_records[record], "H1"))
        arrays[name] = arrays[name] + 1
        content[record] = sealed(arrays)
    assert failed(wire.answer(Message(content, reply_to=question))) == "QuestionRefused"
    assert f"another {kind.rpartition('.')[2]} answer went before" in wire.log[-1]["facts"]["reason"]
    assert answered(Wire(wire.home, wire.bundle), conversation, kind, conversation.message(kind)).startswith(record)


def test_a_question_that_was_not_answered_settles_nothing(wire: Wire, conversation: Conversation) -> None:
    question = wire.ask(conversation.message(STATISTICS, genes=conversation.genes[1:]))
    seen_by_the_app(wire)
    failed(wire.answer(Message(Error(2, "out of memory"), reply_to=question)))
    assert answered(wire, conversation, STATISTICS, conversation.message(STATISTICS)) == "statistics"


def test_a_first_round_brings_no_second_preprocessing(wire: Wire, conversation: Conversation) -> None:
    assert "arrays" in answered(wire, conversation, TRAIN, conversation.message(TRAIN))
    clinical = {
        name: scale.model_copy(update={"mean": (50.0,)}) for name, scale in conversation.preprocessing.clinical.items()
    }
    other = conversation.preprocessing.model_copy(update={"clinical": clinical})
    for kind in (TRAIN, EVALUATE):
        wire.ask(conversation.message(kind, preprocessing=other.to_json()))
        assert wire.refused() == "QuestionRefused"
    assert wire.log[-1]["facts"]["reason"].startswith("another preprocessing went before")


def limited(wire: Wire, **limits: int) -> Wire:
    settings = wire.home.folder / "client.toml"
    text = settings.read_text()
    for name, value in limits.items():
        line = next(line for line in text.splitlines() if line.startswith(f"{name} = "))
        text = text.replace(line, f"{name} = {value}")
    settings.write_text(text)
    return Wire(wire.home, wire.bundle)


def test_rounds_are_limited_also_over_restarts(wire: Wire, conversation: Conversation) -> None:
    limited(wire, rounds=2)
    for _ in range(2):
        restarted = Wire(wire.home, wire.bundle)
        question = restarted.ask(conversation.message(TRAIN))
        seen_by_the_app(restarted)
        assert "arrays" in restarted.answer(Message(conversation.reply(TRAIN), reply_to=question)).content
    again = Wire(wire.home, wire.bundle)
    again.ask(conversation.message(TRAIN))
    assert again.refused() == "LimitReached"
    again.ask(conversation.message(EVALUATE))
    assert again.state.get_tasks(), "evaluation is no training round"


def test_bytes_are_limited_both_ways(wire: Wire, conversation: Conversation) -> None:
    small = limited(wire, bytes_per_day=10_000)
    small.ask(conversation.message(TRAIN))
    assert small.refused() == "LimitReached", "what comes in"
    other = limited(wire, bytes_per_day=300_000)
    question = other.ask(conversation.message(TRAIN))
    seen_by_the_app(other)
    reply = other.answer(Message(conversation.reply(TRAIN), reply_to=question))
    assert failed(reply) == "LimitReached", "what goes out"


def test_a_paused_hospital_takes_nothing(wire: Wire, conversation: Conversation) -> None:
    wire.home.paused_file.touch()
    wire.ask(conversation.message(CAPABILITY))
    assert (wire.taken, len(wire.waiting)) == (None, 1)
    wire.home.paused_file.unlink()
    wire.ask(wire.waiting.pop())
    assert wire.taken == RUN


def test_probe_questions_come_after_the_tally_are_counted_and_noted(wire: Wire, conversation: Conversation) -> None:
    wire.ask(conversation.message(PROBE))
    assert wire.refused() == "QuestionRefused", "no tally was answered"
    for kind in (TALLY, PROBE, PROBE, EVALUATE):
        assert answered(wire, conversation, kind, conversation.message(kind)) != "QuestionRefused"
    question = next(entry["facts"] for entry in reversed(wire.log) if entry["facts"].get("kind") == PROBE)
    assert question["task"] == PROBED
    assert question["probe"] == conversation.question(PROBE).probe.digest  # type: ignore[union-attr]
    losses = [conversation.message(PROBE, derivatives=False), conversation.message(PROBE, task="survival")]
    wire.ask(losses[0])
    assert wire.guard.asked is not None, "the second of two"
    wire.ask(losses[1])
    assert wire.refused() == "QuestionRefused", "the arrays are those of another task"
    (usage,) = wire.guard.usage.counts.probes.values()
    assert {task: len(asked) for task, asked in usage.items()} == {PROBED: 2}
