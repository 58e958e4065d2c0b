"""Label queries at the hospital: the real client app answers, the daemon's gate and budget decide."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, Message, RecordDict

from client import gate
from client.disclosure import disclosure
from client.home import Limits
from client.label_queries import ANSWER, LABEL, count_label_query
from client.questions import read_question
from client.usage import Usage
from modaltune.errors import MessageRefused
from modaltune.federation.label_query import HELD_BACK, LabelQuery
from modaltune.federation.settings import LabelQuerySpec
from modaltune.federation.study import Study
from modaltune.federation.wire import seal, unseal
from tests.client.conversation import EVALUATE, Conversation, vectors_record


def numbers(content: RecordDict) -> dict[str, Any]:
    return dict(unseal(content.array_records[ANSWER], "H1"))


def test_the_app_answers_with_counts_that_the_gate_lets_out(conversation: Conversation) -> None:
    content = gate.released(conversation.question(LABEL), conversation.approval, conversation.reply(LABEL))
    answer = numbers(content)
    assert set(answer) == {"cases", "counts", "probability", "by.diagnosis", "by.stage"}
    assert answer["cases"][0] == (conversation.site.cohort.cases["split"] == "test").sum()
    for name in ("counts", "by.diagnosis", "by.stage"):
        held = (answer[name] == HELD_BACK).all()
        small = (answer[name] > 0) & (answer[name] < conversation.site.minimum)
        assert held or (answer[name].sum() == answer["cases"][0] and not small.any())


@pytest.mark.parametrize(
    ("name", "value", "reason"),
    [
        ("counts", [1.0, 25.0], "fewer than 5"),
        ("counts", [6.0, 7.0], "do not add up"),
        ("cases", [1.0], "too small"),
        ("cases", [10.0**6], "above the approved"),
        ("probability", [0.123456789, 0.5], "do not add up to 1"),
    ],
)
def test_an_app_that_tells_more_is_stopped(
    conversation: Conversation, name: str, value: list[float], reason: str
) -> None:
    content = conversation.reply(LABEL)
    answer = numbers(content) | {name: np.array(value)}
    content[ANSWER] = ArrayRecord({key: Array(sealed) for key, sealed in seal(answer).items()})
    with pytest.raises(MessageRefused, match=reason):
        gate.released(conversation.question(LABEL), conversation.approval, content)


def test_a_query_that_is_asked_again_has_the_same_answer_or_none(conversation: Conversation) -> None:
    question, content = conversation.question(LABEL), conversation.reply(LABEL)
    first = gate.settled(question, content)
    assert first == gate.settled(question, conversation.reply(LABEL))
    assert question.query is not None
    assert [name for name in first if question.query.digest in name]
    other = numbers(content) | {"counts": np.array([6.0, 7.0])}
    content[ANSWER] = ArrayRecord({key: Array(sealed) for key, sealed in seal(other).items()})
    assert gate.settled(question, content).keys() == first.keys()
    assert gate.settled(question, content) != first


def test_a_record_beside_the_answer_is_stopped(conversation: Conversation) -> None:
    content = conversation.reply(LABEL)
    content["more"] = ArrayRecord({"rows": Array(np.zeros(3))})
    with pytest.raises(MessageRefused, match="its records are not label-query"):
        gate.released(conversation.question(LABEL), conversation.approval, content)


def with_queries(study: Study, **changes: Any) -> Study:
    return study.model_copy(update={"label_queries": LabelQuerySpec(**changes)})


def read(conversation: Conversation, message: Message) -> LabelQuery:
    query = read_question(message, conversation.study).query
    assert query is not None
    return query


def test_a_study_without_a_budget_answers_none(conversation: Conversation) -> None:
    other = Conversation(conversation.folder, with_queries(conversation.study))
    with pytest.raises(MessageRefused, match=r"label_queries\.budget is 0"):
        other.question(LABEL)


@pytest.mark.parametrize("texts", [["one"], ["a", "b", "c"], ["same", "same"], "no list", ["a", "b" * 501]])
def test_a_query_outside_the_approval_is_refused(conversation: Conversation, texts: Any) -> None:
    with pytest.raises(MessageRefused, match=r"QuestionRefused|QuestionUnreadable"):
        conversation.question(LABEL, texts=texts)


@pytest.mark.parametrize("vectors", [np.eye(3, 12), np.ones((2, 12)), np.zeros((2, 10**6)), None])
def test_vectors_that_are_none_are_refused(conversation: Conversation, vectors: Any) -> None:
    message = conversation.message(LABEL)
    if vectors is None:
        message.content["vectors"] = ArrayRecord({"vectors": Array(np.zeros(2))})
    else:
        message.content["vectors"] = vectors_record(vectors.astype(np.float32))
    with pytest.raises(MessageRefused, match=r"QuestionRefused|QuestionUnreadable"):
        read_question(message, conversation.study)


def test_a_query_is_about_the_model_that_was_evaluated(conversation: Conversation, tmp_path: Path) -> None:
    usage = Usage(tmp_path / "usage.json", Limits())
    usage.agree("approval", conversation.question(EVALUATE).agreed)
    usage.check_agreed("approval", conversation.question(LABEL).agreed)
    other = {name: value + np.float32(0.5) for name, value in conversation.start.items()}
    message = conversation.message(LABEL, weights=other)
    with pytest.raises(MessageRefused, match="another evaluate went before"):
        usage.check_agreed("approval", read_question(message, conversation.study).agreed)


def test_the_budget_counts_different_queries_and_outlives_the_daemon(
    conversation: Conversation, tmp_path: Path
) -> None:
    approval, path = conversation.approval, tmp_path / "usage.json"
    evaluated = conversation.question(EVALUATE).agreed
    early = read(conversation, conversation.message(LABEL))
    with pytest.raises(MessageRefused, match="a query comes after the evaluation"):
        count_label_query(Usage(path, Limits()), approval, early)
    Usage(path, Limits()).agree(approval.digest, evaluated)
    for texts in (["a", "b"], ["a", "c"], ["a", "b"]):
        query = read(conversation, conversation.message(LABEL, texts=texts))
        count_label_query(Usage(path, Limits()), approval, query)
    third = read(conversation, conversation.message(LABEL, texts=["b", "c"]))
    with pytest.raises(MessageRefused, match=r"LimitReached: label_queries\.budget = 2"):
        count_label_query(Usage(path, Limits()), approval, third)
    renewed = approval.model_copy(update={"when": "2030-01-01T00:00:00+00:00"})
    Usage(path, Limits()).agree(renewed.digest, evaluated)
    count_label_query(Usage(path, Limits()), renewed, third)


def test_who_approves_is_told_what_queries_would_make_leave(conversation: Conversation) -> None:
    said = disclosure(conversation.site).as_document()["label queries"]
    assert str(said).startswith("exploratory: 2 queries of at most 3 texts")
    none = Conversation(conversation.folder, with_queries(conversation.study))
    assert disclosure(none.site).as_document()["label queries"] == "none"
