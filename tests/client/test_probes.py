"""Questions about probes at the hospital: the real client app answers, the daemon's gate and budget decide."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, Message, RecordDict

from client import gate
from client.disclosure import disclosure
from client.home import Limits
from client.memory import ProbeMemory
from client.probes import SUMS, TALLIES, count_probe
from client.questions import read_question
from client.usage import Usage
from modaltune.errors import MessageRefused
from modaltune.evaluation.probes.sums import SiteCases
from modaltune.federation.probe_query import ProbeQuery, question_arrays
from modaltune.federation.settings import ProbesSpec
from modaltune.federation.study import Study
from modaltune.federation.wire import unseal
from tests.client.conversation import EVALUATE, PROBE, PROBED, TALLY, Conversation, sealed

RECORDS = {TALLY: TALLIES, PROBE: SUMS}


def numbers(content: RecordDict, kind: str) -> dict[str, Any]:
    return dict(unseal(content.array_records[RECORDS[kind]], "H1"))


def released(conversation: Conversation, kind: str, **changes: Any) -> RecordDict:
    """What leaves of the honest answer with some of its arrays replaced."""
    content = conversation.reply(kind)
    content[RECORDS[kind]] = sealed(numbers(content, kind) | {name.replace("_", "."): v for name, v in changes.items()})
    return gate.released(conversation.question(kind), conversation.approval, content)


def test_the_app_answers_with_sums_that_the_gate_lets_out(conversation: Conversation) -> None:
    tally = numbers(released(conversation, TALLY), TALLY)
    counts = tally[f"{PROBED}.counts"]
    train = conversation.site.cohort.cases.query("split == 'train'")
    assert counts.sum() == train[PROBED].notna().sum()
    sums = numbers(released(conversation, PROBE), PROBE)
    size = conversation.first_question.coefficients.size
    assert {name: value.shape for name, value in sums.items()} == {
        "loss": (1,),
        "gradient": (size,),
        "hessian": (size * (size + 1) // 2,),
    }
    assert sums["loss"][0] == pytest.approx(counts.sum() * np.log(np.count_nonzero(counts)))


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"diagnosis_counts": [1.0, 25.0]}, "fewer than 5"),
        ({"diagnosis_counts": [5.5, 25.0]}, "fewer than 5"),
        ({"diagnosis_counts": [10.0**6, 25.0]}, "than were approved"),
        ({"diagnosis_counts": [0.0, 0.0]}, "one of no cases"),
        ({"diagnosis_counts": [np.nan, 25.0]}, "is not finite"),
        ({"diagnosis_counts": [25.0]}, "not float64"),
        ({"diagnosis_squares": -np.ones(32)}, "one of no cases"),
        ({"diagnosis_mean": np.full(32, 1e200)}, "out of range"),
        ({"more": np.zeros(3)}, "outside the manifest"),
    ],
)
def test_a_tally_that_tells_more_is_stopped(conversation: Conversation, change: dict[str, Any], reason: str) -> None:
    arrays = {name: np.array(value) for name, value in change.items()}
    with pytest.raises(MessageRefused, match=reason):
        released(conversation, TALLY, **arrays)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"loss": [np.nan]}, "is not finite"),
        ({"loss": [-0.5]}, "loss is negative"),
        ({"loss": [-1.0]}, "holds back"),
        ({"loss": [1e308]}, "out of range"),
        ({"gradient": np.zeros(3)}, "not float64"),
        ({"hessian": None}, "not float64"),
        ({"rows": np.zeros((4, 32))}, "outside the manifest"),
    ],
)
def test_sums_that_no_likelihood_has_are_stopped(
    conversation: Conversation, change: dict[str, Any], reason: str
) -> None:
    size = conversation.first_question.coefficients.size
    arrays = {name: np.zeros((size, size)) if v is None else np.array(v) for name, v in change.items()}
    with pytest.raises(MessageRefused, match=reason):
        released(conversation, PROBE, **arrays)


@pytest.mark.parametrize(("place", "reason"), [(0, "curvature is negative"), (1, "curvature is that of no cases")])
def test_a_curvature_that_no_cases_have_is_stopped(conversation: Conversation, place: int, reason: str) -> None:
    hessian = numbers(conversation.reply(PROBE), PROBE)["hessian"].copy()
    hessian[place] = -1e6
    with pytest.raises(MessageRefused, match=reason):
        released(conversation, PROBE, hessian=hessian)


@pytest.mark.parametrize("kind", [TALLY, PROBE])
def test_a_record_beside_the_answer_is_stopped(conversation: Conversation, kind: str) -> None:
    content = conversation.reply(kind)
    content["more"] = ArrayRecord({"rows": Array(np.zeros(3))})
    with pytest.raises(MessageRefused, match="its records are not"):
        gate.released(conversation.question(kind), conversation.approval, content)


def with_probes(study: Study, **changes: Any) -> Study:
    return study.model_copy(update={"probes": ProbesSpec(**changes)})


def asked(conversation: Conversation, arrays: dict[str, Any] | None = None, **config: Any) -> Message:
    """A probe question with other arrays."""
    message = conversation.message(PROBE, **config)
    message.content["question"] = sealed(question_arrays(conversation.first_question) | (arrays or {}))
    return message


def read(conversation: Conversation, message: Message) -> ProbeQuery:
    query = read_question(message, conversation.study).probe
    assert query is not None
    return query


def test_a_study_without_probes_answers_none(conversation: Conversation) -> None:
    none = with_probes(conversation.study)
    for kind in (TALLY, PROBE):
        with pytest.raises(MessageRefused, match=r"probes\.questions is 0"):
            read_question(conversation.message(kind, study=none.to_json()), none)


@pytest.mark.parametrize(
    ("arrays", "reason"),
    [
        ({"coefficients": np.full((1, 33), 5.1)}, "beyond probes.largest"),
        ({"coefficients": np.full((1, 33), np.nan)}, "is not finite"),
        ({"coefficients": np.zeros((1, 32))}, "other shapes"),
        ({"coefficients": np.zeros((3, 33))}, "other shapes"),
        ({"mean": np.zeros(31)}, "other shapes"),
        ({"deviation": np.full(32, 1e-300)}, "a deviation that is none"),
        ({"deviation": np.full(32, -1.0)}, "a deviation that is none"),
        ({"deviation": np.full(32, np.inf)}, "is not finite"),
        ({"classes": np.array([0.0, 7.0])}, "classes that it has not"),
        ({"classes": np.array([1.0, 0.0])}, "classes that it has not"),
        ({"classes": np.array([0.5, 1.0])}, "classes that it has not"),
        ({"classes": np.array([1.0])}, "classes that it has not"),
        ({"coefficients": np.zeros((1, 33), np.float32)}, "lacks what it needs"),
        ({"coefficients": np.zeros((10**4, 33))}, "larger than"),
        ({"more": np.zeros(2)}, "lacks what it needs"),
    ],
)
def test_a_question_outside_the_approval_is_refused(
    conversation: Conversation, arrays: dict[str, Any], reason: str
) -> None:
    with pytest.raises(MessageRefused, match=reason):
        read_question(asked(conversation, arrays), conversation.study)


@pytest.mark.parametrize("config", [{"task": "grading"}, {"derivatives": 1}])
def test_a_question_about_nothing_of_the_study_is_refused(conversation: Conversation, config: dict[str, Any]) -> None:
    with pytest.raises(MessageRefused, match=r"QuestionRefused|QuestionUnreadable"):
        read_question(asked(conversation, **config), conversation.study)


def test_probes_are_about_one_model_and_the_evaluated_one(conversation: Conversation, tmp_path: Path) -> None:
    usage = Usage(tmp_path / "usage.json", Limits())
    usage.agree("approval", conversation.question(TALLY).agreed)
    for kind in (PROBE, EVALUATE):
        usage.check_agreed("approval", conversation.question(kind).agreed)
    other = {name: value + np.float32(0.5) for name, value in conversation.start.items()}
    others = [
        conversation.message(TALLY, weights=other),
        conversation.message(EVALUATE, weights=other),
        asked(conversation, model="0" * 64),
    ]
    for message in others:
        with pytest.raises(MessageRefused, match="another probed model went before"):
            usage.check_agreed("approval", read_question(message, conversation.study).agreed)


def test_an_evaluation_scores_one_set_of_probes(conversation: Conversation, tmp_path: Path) -> None:
    usage = Usage(tmp_path / "usage.json", Limits())
    usage.agree("approval", conversation.question(EVALUATE).agreed)
    message = conversation.message(EVALUATE)
    message.content["probes"] = sealed({})
    with pytest.raises(MessageRefused, match="another set of probes went before"):
        usage.check_agreed("approval", read_question(message, conversation.study).agreed)
    message.content["probes"] = sealed({"diagnosis.mean": np.zeros(32)})
    with pytest.raises(MessageRefused, match="QuestionUnreadable"):
        read_question(message, conversation.study)
    del message.content["probes"]
    with pytest.raises(MessageRefused, match="QuestionUnreadable"):
        read_question(message, conversation.study)


def test_the_budget_counts_different_questions_and_outlives_the_daemon(
    conversation: Conversation, tmp_path: Path
) -> None:
    approval, path = conversation.approval, tmp_path / "usage.json"
    size = conversation.first_question.coefficients.shape
    steps = [read(conversation, asked(conversation, {"coefficients": np.full(size, 0.1 * n)})) for n in range(3)]
    with pytest.raises(MessageRefused, match="come after the tally"):
        count_probe(Usage(path, Limits()), approval, steps[0])
    Usage(path, Limits()).agree(approval.digest, conversation.question(TALLY).agreed)
    for step in (steps[0], steps[1], steps[0]):
        count_probe(Usage(path, Limits()), approval, step)
    with pytest.raises(MessageRefused, match=r"LimitReached: probes\.questions = 2"):
        count_probe(Usage(path, Limits()), approval, steps[2])
    count_probe(Usage(path, Limits()), approval, replace(steps[2], task="survival"))
    renewed = approval.model_copy(update={"when": "2030-01-01T00:00:00+00:00"})
    Usage(path, Limits()).agree(renewed.digest, conversation.question(TALLY).agreed)
    count_probe(Usage(path, Limits()), renewed, steps[2])


def test_embeddings_outlive_a_process_and_belong_to_one_model(tmp_path: Path) -> None:
    cases = SiteCases(features=np.eye(3), group=np.array([0, 1, 1]), months=np.array([1.0, 2.0, 3.0]))
    ProbeMemory(tmp_path).keep("a", {"survival": cases, "diagnosis": replace(cases, months=None)})
    found = ProbeMemory(tmp_path).read("a")
    assert found is not None
    assert set(found) == {"survival", "diagnosis"}
    assert found["diagnosis"].months is None
    np.testing.assert_array_equal(found["survival"].features, cases.features)
    ProbeMemory(tmp_path).keep("b", {"survival": cases})
    assert ProbeMemory(tmp_path).read("a") is None


def test_who_approves_is_told_what_probes_would_make_leave(conversation: Conversation) -> None:
    document = disclosure(conversation.site).as_document()
    assert "at most 2 sets of coefficients a task (none beyond 5)" in str(document["probes"])
    assert "diagnosis.auc_probe.value" in str(document["evaluation metrics"])
    none = Conversation(conversation.folder, with_probes(conversation.study))
    document = disclosure(none.site).as_document()
    assert document["probes"] == "none"
    assert "_probe" not in str(document["evaluation metrics"])
