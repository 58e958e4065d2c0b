"""The gate on real replies of the real client app, honest ones and tampered ones."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import pytest
from flwr.app import Array, ConfigRecord, MetricRecord, RecordDict
from safetensors.numpy import save

from client import gate
from client.questions import KINDS, trained_weights
from modaltune.errors import MessageRefused
from modaltune.federation.study import Study
from modaltune.models.learner import build_learner
from modaltune.models.modaltune import trainable_state
from tests.chaos.tampers import SEALED, Arrays
from tests.client.bad_updates import PATIENT, UPDATES, Change
from tests.client.conversation import CAPABILITY, EVALUATE, STATISTICS, TRAIN, Conversation
from tests.integration.grids import pack, unpack


def released(conversation: Conversation, kind: str, content: RecordDict) -> RecordDict:
    return gate.released(conversation.question(kind), conversation.approval, content)


@pytest.mark.parametrize("kind", KINDS)
def test_an_honest_reply_leaves_as_it_is(conversation: Conversation, kind: str) -> None:
    assert released(conversation, kind, conversation.reply(kind)) == conversation.released(kind)


@pytest.mark.parametrize("form", ["fp16", "int8"])
def test_an_honest_update_leaves_in_every_form(conversation: Conversation, form: str) -> None:
    training = conversation.study.training.model_copy(update={"wire": form})
    other = Conversation(conversation.folder, conversation.study.model_copy(update={"training": training}))
    assert released(other, TRAIN, other.reply(TRAIN)) == other.released(TRAIN)


def test_the_daemon_derives_the_same_manifest_and_start_as_the_app(conversation: Conversation) -> None:
    study, preprocessing = conversation.study, conversation.preprocessing
    manifest, start = trained_weights(study, preprocessing)
    learner = build_learner(study, preprocessing)
    assert manifest.shapes == {name: tuple(value.shape) for name, value in trainable_state(learner).items()}
    assert all(np.array_equal(start[name], value) for name, value in trainable_state(learner).items())


@pytest.mark.parametrize("change", UPDATES, ids=lambda change: change.__name__)
def test_a_tampered_update_stays_and_the_reason_names_no_patient(conversation: Conversation, change: Change) -> None:
    content = conversation.reply(TRAIN)
    change(content)
    with pytest.raises(MessageRefused, match=UPDATES[change]) as refusal:
        released(conversation, TRAIN, content)
    assert refusal.value.code == "ReplyRefused"
    assert PATIENT not in refusal.value.reason


def test_an_update_is_no_answer_to_another_question(conversation: Conversation) -> None:
    for asked in KINDS:
        for answered in {*KINDS} - {asked}:
            with pytest.raises(MessageRefused):
                released(conversation, asked, conversation.reply(answered))


def test_numbers_leave_and_the_bytes_around_them_do_not(conversation: Conversation) -> None:
    """Text in the header of an array's file, or in its description, is no part of what leaves."""
    content = conversation.reply(TRAIN)
    arrays, record = dict(Arrays(content)), content.array_records["arrays"]
    described = save(arrays, metadata={"note": PATIENT})
    data = Array(np.frombuffer(described, np.uint8)).data + PATIENT.encode()
    record[SEALED] = Array(dtype=PATIENT, shape=(1, 2, 3), stype="numpy.ndarray", data=data)
    message = conversation.message(TRAIN)
    message.content = released(conversation, TRAIN, content)
    assert PATIENT.encode() not in pack(message)
    left = Arrays(unpack(pack(message)).content)
    assert all(np.array_equal(left[name], value) for name, value in arrays.items())


def capability(**changes: Any) -> Change:
    def change(content: RecordDict) -> None:
        content.config_records["capability"].update(changes)

    return change


CAPABILITIES = {
    "another site": (capability(site="H2"), "roster|another site"),
    "an unknown field": (capability(note=PATIENT), "a field is unknown"),
    "a patient among the genes": (capability(genes=[PATIENT]), "a gene outside the study"),
    "a patient among the tasks": (capability(tasks=[PATIENT]), "a task outside the study"),
    "a patient among the modalities": (capability(modalities=[PATIENT]), "an unknown modality"),
    "a patient as version": (capability(**{"version-torch": PATIENT}), "a version is not this one's"),
    "a patient as patch encoder": (capability(**{"patch-encoder": PATIENT}), "its patch-encoder cannot be right"),
    "patches that nobody approved": (capability(**{"patch-size": 333}), "not those that were approved"),
    "a small count": (capability(**{"cases-val": 2}), "cases-val is below 5"),
    "an invented count": (capability(**{"cases-train": 10**6}), "cases-train is above the approved number"),
}


@pytest.mark.parametrize("name", CAPABILITIES)
def test_a_site_says_about_itself_what_is_on_the_list(conversation: Conversation, name: str) -> None:
    change, reason = CAPABILITIES[name]
    content = conversation.reply(CAPABILITY)
    change(content)
    with pytest.raises(MessageRefused, match=reason):
        released(conversation, CAPABILITY, content)


@pytest.mark.parametrize("count", [1.0, -3.0, 7.5])
@pytest.mark.parametrize("name", ["labels.diagnosis", "cases", "expression.count", "clinical.age.count"])
def test_sums_count_no_small_group(conversation: Conversation, name: str, count: float) -> None:
    content = conversation.reply(STATISTICS)
    record = Arrays(content, "statistics")
    value = record[name].copy()
    value[0] = count
    record[name] = value
    with pytest.raises(MessageRefused, match=rf"{re.escape(name)} (counts fewer than|is below|is not a whole)"):
        released(conversation, STATISTICS, content)


def nothing_counted(name: str) -> bool:
    return name == "cases" or name.endswith(".count") or name.startswith("labels.")


def sums_of_nobody(content: RecordDict) -> None:
    record = Arrays(content, "statistics")
    for name in record:
        if nothing_counted(name):
            record[name] = np.zeros_like(record[name])


def changed(name: str, to: Callable[[Any], Any]) -> Change:
    def change(content: RecordDict) -> None:
        record = Arrays(content, "statistics")
        record[name] = to(record[name].copy())

    return change


STATISTICS_CHANGES: dict[str, tuple[Change, str]] = {
    "sums of nobody": (sums_of_nobody, "has sums of no cases"),
    "impossible squares": (changed("clinical.age.squares", lambda value: value / 2), "has sums that no cases have"),
    "sums of any size": (changed("patches.sum", lambda value: value + 1e300), "has sums beyond 1e"),
    "squares of any size": (changed("expression.squares", lambda value: value + 1e300), "has sums beyond 1e"),
    "more cases than there are": (changed("clinical.age.count", lambda value: value + 1), "more cases than there are"),
    "more labels than there are": (changed("labels.diagnosis", lambda value: value + 1), "more cases than there are"),
}


@pytest.mark.parametrize("name", STATISTICS_CHANGES)
def test_sums_are_those_of_counted_cases(conversation: Conversation, name: str) -> None:
    change, reason = STATISTICS_CHANGES[name]
    content = conversation.reply(STATISTICS)
    change(content)
    with pytest.raises(MessageRefused, match=reason):
        released(conversation, STATISTICS, content)


def test_sums_that_were_held_back_leave_as_one_kind_of_zero(conversation: Conversation) -> None:
    content = conversation.reply(STATISTICS)
    record = Arrays(content, "statistics")
    for name in list(record):
        record[name] = -np.zeros_like(record[name])
    left = Arrays(released(conversation, STATISTICS, content), "statistics")
    assert not any(np.signbit(left[name]).any() for name in left)


EVALUATIONS = {
    "a patient as metric": ({PATIENT: 0.5}, r"1 metric\(s\) outside"),
    "a value out of range": ({"diagnosis.auc.value": 97.0}, "is outside 0..1"),
    "a small group": ({"diagnosis.auc.n": 2.0}, "is below 5"),
    "half a case": ({"diagnosis.auc.n": 7.5}, "is not a whole number"),
    "an invented number of cases": ({"diagnosis.auc.n": 1e6}, "is above the approved number"),
    "no number of cases": ({"diagnosis.auc.n": 0.0}, "lacks its number of cases"),
    "few events": ({"diagnosis.auc.events": 2.0}, "is below 5"),
    "events of no group": ({"diagnosis.auc.events": None}, "lacks its number of events"),
    "events of all but a few cases": ({"diagnosis.auc.events": 8.0}, "how few the other cases"),
}


@pytest.mark.parametrize("name", EVALUATIONS)
def test_metrics_are_those_of_the_study_and_in_range(conversation: Conversation, name: str) -> None:
    changes, reason = EVALUATIONS[name]
    content = conversation.reply(EVALUATE)
    metrics = {**content.metric_records["metrics"], **changes}
    content["metrics"] = MetricRecord({name: value for name, value in metrics.items() if value is not None})
    with pytest.raises(MessageRefused, match=reason):
        released(conversation, EVALUATE, content)


@pytest.mark.parametrize(
    ("code", "leaves"),
    [("LabelError", "LabelError"), ("UnexpectedError", "UnexpectedError"), (f"/data/{PATIENT}", "UnexpectedError")],
)
def test_a_failure_leaves_as_a_known_code(conversation: Conversation, code: str, leaves: str) -> None:
    content = RecordDict({"failure": ConfigRecord({"code": code, "text": PATIENT})})
    assert released(conversation, TRAIN, content) == gate.failure(leaves)


def other_study(conversation: Conversation) -> Study:
    return conversation.study.model_copy(update={"seed": 99})


def preprocessing_with(change: Callable[[dict[str, Any]], None], conversation: Conversation) -> dict[str, Any]:
    document = json.loads(conversation.preprocessing.to_json())
    change(document)
    return {"preprocessing": json.dumps(document)}


def put(*path: str, value: Any) -> Callable[[dict[str, Any]], None]:
    def change(document: dict[str, Any]) -> None:
        for part in path[:-1]:
            document = document[part]
        document[path[-1]] = value(document[path[-1]]) if callable(value) else value

    return change


PREPROCESSINGS: dict[str, tuple[Callable[[dict[str, Any]], None], str]] = {
    "foreign texts": (put("tasks", "diagnosis", "texts", value=["a", "b"]), "task diagnosis"),
    "the same candidate twice": (put("tasks", "stage", "candidates", value=["II", "II"]), "task stage"),
    "one candidate": (put("tasks", "stage", "candidates", value=["II"]), "task stage"),
    "bins for a label": (put("tasks", "stage", "bin_edges", value=[3.0]), "task stage"),
    "edges backwards": (put("tasks", "survival", "bin_edges", value=lambda edges: edges[::-1]), "task survival"),
    "too few times": (put("tasks", "survival", "bin_times", value=[1.0]), "task survival"),
    "a time outside its bin": (put("tasks", "survival", "bin_times", value=lambda t: [t[1], *t[1:]]), "task survival"),
    "genes in another order": (put("genes", value=lambda genes: genes[::-1]), "genes"),
    "genes of a set in another order": (
        put("gene_sets", value=lambda sets: {name: genes[::-1] for name, genes in sets.items()}),
        "gene sets",
    ),
    "a scale of one gene": (put("expression", value={"mean": [0.0], "deviation": [1.0]}), "scale of expression"),
    "a tiny deviation": (
        put("expression", "deviation", value=lambda values: [1e-30, *values[1:]]),
        "scale of expression",
    ),
    "a negative deviation": (
        put("expression", "deviation", value=lambda values: [-1.0, *values[1:]]),
        "scale of expression",
    ),
    "an age picked out": (put("clinical", "age", value={"mean": [63.0], "deviation": [0.01]}), "scale of clinical.age"),
    "a scale of a category": (
        put("clinical", value=lambda scales: scales | {"sex": {"mean": [0.0], "deviation": [1.0]}}),
        "scales",
    ),
    "a modality of another study": (put("modalities", value={"x": {"mean": [0.0], "deviation": [1.0]}}), "scales"),
    "a text among the sites": (put("suppressed", value={"expression": [PATIENT]}), "suppressed groups"),
    "a text among the groups": (put("suppressed", value={PATIENT: ["H1"]}), "suppressed groups"),
}


QUESTIONS: dict[str, tuple[str, Callable[[Conversation], dict[str, Any]], str]] = {
    "genes outside the study": (STATISTICS, lambda c: {"genes": [*c.genes, "ZZZ"]}, "genes that the study does not"),
    "genes as text": (STATISTICS, lambda _: {"genes": "all"}, "genes that the study does not"),
    "no preprocessing": (TRAIN, lambda _: {"preprocessing": "{}"}, "lacks what it needs"),
    "the preprocessing of another study": (
        EVALUATE,
        lambda c: {"preprocessing": c.preprocessing.model_copy(update={"study": other_study(c).digest}).to_json()},
        "not one of the study",
    ),
    "other gene sets": (
        TRAIN,
        lambda c: {"preprocessing": json.dumps(json.loads(c.preprocessing.to_json()) | {"gene_sets": {"ONE": ["A"]}})},
        "not one of the study",
    ),
    **{
        f"preprocessing, {name}": (EVALUATE, partial(preprocessing_with, change), f"not one of the study: {part}")
        for name, (change, part) in PREPROCESSINGS.items()
    },
    "a round beyond the last": (TRAIN, lambda _: {"round": 3}, "rounds 1 to 2 only"),
}


@pytest.mark.parametrize("name", QUESTIONS)
def test_a_question_asks_what_the_study_says(conversation: Conversation, name: str) -> None:
    kind, config, reason = QUESTIONS[name]
    with pytest.raises(MessageRefused, match=reason):
        conversation.question(kind, **config(conversation))


def test_a_kind_of_question_that_no_study_has_is_refused(conversation: Conversation) -> None:
    with pytest.raises(MessageRefused) as refusal:
        conversation.question("query.patients")
    assert refusal.value.code == "QuestionUnknown"
