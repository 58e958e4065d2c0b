"""Label queries at a hospital: read, held to the budget of the approval, answered, checked before they leave."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from flwr.app import Message

from modaltune.errors import ConfigError, MessageRefused, ReplyRefused
from modaltune.federation.label_query import (
    DECIMALS,
    LONGEST,
    WIDEST,
    Answer,
    LabelQuery,
    answer_manifest,
    problem_with,
)
from modaltune.federation.manifest import Manifest
from modaltune.federation.study import Study
from modaltune.federation.wire import unseal

if TYPE_CHECKING:
    from client.approvals import Approval
    from client.questions import Question
    from client.usage import Usage

LABEL = "query.label"
VECTORS, ANSWER = "vectors", "label-query"
_TEXT = 4 * (LONGEST + 1)  # bytes


def read_label_query(message: Message, study: Study) -> LabelQuery:
    """The query in a message.

    Raises:
        MessageRefused: the study does not allow it.
        ReplyRefused, KeyError, TypeError, ValueError: it is no query.
    """
    config, record = message.content.config_records["study"], message.content.array_records[VECTORS]
    found, texts = unseal(record, "the server", label_query_bytes(study)), config["texts"]
    if set(found) != {VECTORS} or not isinstance(texts, list):
        raise ValueError
    vectors = np.ascontiguousarray(found[VECTORS], dtype=np.float32)
    try:
        query = LabelQuery(name=str(config["name"]), texts=tuple(map(str, texts)), vectors=vectors)
        query.check(study)
    except ConfigError as problem:
        raise MessageRefused("QuestionRefused", str(problem)) from None
    return query


def label_query_bytes(study: Study) -> int:
    """Bytes that no query of a study adds to a message."""
    spec = study.label_queries
    return (spec.max_candidates * (4 * WIDEST + _TEXT) + _TEXT) if spec.budget else 0


def count_label_query(usage: Usage, approval: Approval, query: LabelQuery) -> None:
    """Take a query from the budget of an approval; one that was counted before is free.

    Raises:
        MessageRefused: it is one too many.
    """
    if "evaluate" not in usage.counts.agreed.get(approval.digest, {}):
        raise MessageRefused("QuestionRefused", "a query comes after the evaluation, and none was answered")
    budget = approval.study.label_queries.budget
    asked = usage.counts.label_queries.get(approval.digest, [])
    if query.digest in asked:
        return
    if len(asked) >= budget:
        raise MessageRefused("LimitReached", f"label_queries.budget = {budget}; approve again to allow more")
    usage.counts.label_queries[approval.digest] = [*asked, query.digest]
    usage.write()


def manifest_of(question: Question) -> Manifest:
    """Arrays of the answer to a label query."""
    if question.query is None:
        raise ValueError
    return answer_manifest(question.study, question.query)


def released_answer(approval: Approval, answer: Answer) -> Answer:
    """The numbers of an answer as they may leave.

    Raises:
        ReplyRefused: they tell of few cases, or are none of cases.
    """
    cases = approval.cases.train + approval.cases.val + approval.cases.test
    if problem := problem_with(answer, approval.minimum, cases):
        raise ReplyRefused(approval.site, problem)
    return answer | {"probability": answer["probability"].round(DECIMALS)}


def disclosed(study: Study) -> str:
    """What label queries would make leave, for who approves."""
    spec = study.label_queries
    if not spec.budget:
        return "none"
    by_label = ", and by the labels of its tasks" if spec.by_label else ""
    return (
        f"exploratory: {spec.budget} queries of at most {spec.max_candidates} texts; each answered with the number of"
        f" test cases, how many are nearest to each text{by_label} (a table with a small count is held back whole), and"
        " the mean probability of each text"
    )
