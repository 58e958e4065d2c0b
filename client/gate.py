"""The egress gate: what the client app answers leaves only if it fits the approved study, and written anew.

It runs in the hospital's daemon, outside the app's process. Nothing of the app's own bytes is passed on: names, shapes
and types come from the manifest that this side derives from the study, numbers from arrays that fit it, text from
short lists. What can still hide in numbers that are permitted is a residual risk, see the threat model.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord, MetricRecord, RecordDict

from client.approvals import Approval
from client.label_queries import ANSWER, LABEL, manifest_of, released_answer
from client.probes import PROBE, SUMS, TALLIES, TALLY, check_sums, check_tally
from client.questions import CAPABILITY, EVALUATE, STATISTICS, TRAIN, Question
from modaltune.data.slide_settings import TOLD
from modaltune.errors import MessageRefused, ModalTuneError, ReplyRefused
from modaltune.federation.average import State
from modaltune.federation.capability import Capability, versions
from modaltune.federation.evaluation_counts import COUNTS, labelled_cases, problem_with_counts, rounded
from modaltune.federation.manifest import (
    COUNTED,
    TRAIN_METRICS,
    check_examples,
    check_metrics,
    evaluation_metrics,
    statistics_manifest,
)
from modaltune.federation.statistics_check import problem_with_statistics
from modaltune.federation.wire import decode_update, message_manifest, read_arrays, read_floats, seal
from modaltune.storage import canonical_json, digest_text
from modaltune.training import round_steps

UNEXPECTED = "UnexpectedError"
_DECIMALS = 4
_LARGEST_LOSS = 1e4
"""Largest mean loss: what is beyond is no measurement."""
_COUNTS = {"cases-train": "train", "cases-val": "val", "cases-test": "test"}


def failure(code: str) -> RecordDict:
    """A reply that says no in one word."""
    return RecordDict({"failure": ConfigRecord({"code": code})})


def released(question: Question, approval: Approval, content: RecordDict) -> RecordDict:
    """The reply to a question as it may leave.

    Raises:
        MessageRefused: it may not.
    """
    try:
        if set(content) == {"failure"}:
            return failure(_known_code(content))
        return _RULES[question.kind](question, approval, content)
    except ReplyRefused as problem:
        raise MessageRefused("ReplyRefused", problem.reason) from None
    except (KeyError, TypeError, ValueError, AttributeError):
        raise MessageRefused("ReplyRefused", f"not the records of a reply to {question.kind}") from None


def _capability(question: Question, approval: Approval, content: RecordDict) -> RecordDict:
    record = _only(approval, content, "capability").config_records["capability"]
    own = {f"version-{name}": value for name, value in versions().items()}
    named = {"site", "tasks", "modalities", "genes", *_COUNTS, *own, *TOLD}
    _require(approval, set(record) <= named, "a field is unknown")
    found = Capability.parse(record, question.study)
    known = ["slides", "expression", "clinical", *(modality.name for modality in question.study.modalities)]
    counts = {name: int(str(record[name])) for name in _COUNTS}
    _require(approval, found.site == approval.site, "it names another site")
    _require(approval, len(found.modalities) == _length(record, "modalities"), "it names an unknown modality")
    _require(approval, len(found.genes) == _length(record, "genes"), "it names a gene outside the study")
    _require(approval, all(record[name] == value for name, value in own.items()), "a version is not this one's")
    patches = approval.patches.told()
    _require(approval, found.patches.told() == patches, "its patches are not those that were approved")
    for name, split in _COUNTS.items():
        _check_count(approval, name, counts[name], getattr(approval.cases, split))
    lists: dict[str, list[str]] = {
        "tasks": [task.name for task in question.study.tasks if task.name in found.tasks],
        "modalities": [name for name in known if name in found.modalities],
        "genes": sorted(set(found.genes)),
    }
    filled = {name: values for name, values in lists.items() if values}  # Flower cannot count []
    return RecordDict({"capability": ConfigRecord({"site": approval.site, **filled, **counts, **own, **patches})})


def _length(record: ConfigRecord, name: str) -> int:
    values = record.get(name, [])
    return len(values) if isinstance(values, list) else 0


def _statistics(question: Question, approval: Approval, content: RecordDict) -> RecordDict:
    record = _only(approval, content, "statistics").array_records["statistics"]
    manifest = statistics_manifest(question.study, question.genes)
    sums = read_floats(record, manifest, approval.site)
    _check_count(approval, "cases", sums["cases"][0], approval.cases.train)
    problem = problem_with_statistics(sums, question.study, approval.minimum, approval.cases.train)
    _require(approval, not problem, problem)
    return RecordDict({"statistics": _arrays(sums)})


def _training(question: Question, approval: Approval, content: RecordDict) -> RecordDict:
    _only(approval, content, "arrays", "examples", "metrics")
    form, manifest, site = question.study.training.wire, question.manifest, approval.site
    packed = read_arrays(content.array_records["arrays"], message_manifest(form, manifest), site)
    weights: State = decode_update(form, packed, question.weights)
    manifest.check(site, weights)
    metrics = _training_metrics(question, approval, content)
    largest = int(metrics["train-cases"])
    examples = check_examples(site, content.metric_records["examples"], manifest.shapes, largest)
    for name, count in examples.items():
        _check_count(approval, f"example count of {name}", count, largest)
        still = question.weights[name] if form == "fp32" else np.zeros_like(packed[name])
        _require(approval, count or np.array_equal(packed[name], still), f"{name} changes without a case")
        packed[name] = packed[name] if count else still
    return RecordDict(
        {
            "arrays": _arrays(packed),
            "examples": MetricRecord({name: examples[name] for name in manifest.shapes}),
            "metrics": MetricRecord({name: metrics[name] for name in TRAIN_METRICS}),
        }
    )


def _training_metrics(question: Question, approval: Approval, content: RecordDict) -> dict[str, float]:
    found = check_metrics(approval.site, content.metric_records["metrics"], TRAIN_METRICS)
    _require(approval, set(found) == set(TRAIN_METRICS), "a metric is missing")
    metrics = {name: round(value, _DECIMALS) for name, value in found.items()}
    _require(approval, min(metrics.values()) >= 0, "a metric is negative")
    cases, spec = metrics["train-cases"], question.study.training
    _check_count(approval, "train-cases", cases, approval.cases.train)
    _check_count(approval, "val-cases", metrics["val-cases"], approval.cases.val)
    _require(approval, metrics["steps"].is_integer(), "steps is not a whole number")
    _require(approval, metrics["steps"] <= round_steps(int(cases), spec), "steps is more than the study wants")
    _require(approval, metrics["loss"] <= (_LARGEST_LOSS if cases else 0), "loss is out of range")
    _require(approval, metrics["val-loss-sum"] <= _LARGEST_LOSS * metrics["val-cases"], "val-loss-sum is out of range")
    return metrics


def _evaluation(question: Question, approval: Approval, content: RecordDict) -> RecordDict:
    counting = question.study.evaluation.counts
    _only(approval, content, *(("metrics", COUNTS) if counting else ("metrics",)))
    allowed = evaluation_metrics(question.study)
    metrics = check_metrics(approval.site, content.metric_records["metrics"], allowed)
    for name, value in metrics.items():
        group, _, part = name.rpartition(".")
        if part in COUNTED:
            _check_count(approval, name, value, approval.cases.test)
            spared = metrics.get(f"{group}.n", 0) - value
            small = spared < 0 or 0 < spared < approval.minimum
            _require(approval, part == "n" or not small, f"{name} tells how few the other cases are")
        else:
            _require(approval, 0 <= value <= 1, f"{name} is outside 0..1")
            _require(approval, metrics.get(f"{group}.n", 0) > 0, f"{group} lacks its number of cases")
            _require(approval, f"{group}.events" in metrics, f"{group} lacks its number of events")
    found = [name for name in allowed if name in metrics]
    told = RecordDict({"metrics": MetricRecord({name: round(metrics[name], _DECIMALS) for name in found})})
    if counting:
        told[COUNTS] = _arrays(_counts(question, approval, content.array_records[COUNTS], metrics))
    return told


def _counts(
    question: Question, approval: Approval, record: ArrayRecord, metrics: Mapping[str, float]
) -> Mapping[str, Any]:
    counts, study = rounded(read_floats(record, question.manifest, approval.site)), question.study
    labelled = labelled_cases(metrics)
    problem = problem_with_counts(counts, study, approval.minimum, approval.cases.test, labelled)
    _require(approval, problem is None, problem or "")
    return counts


def _label_query(question: Question, approval: Approval, content: RecordDict) -> RecordDict:
    record = _only(approval, content, ANSWER).array_records[ANSWER]
    found = read_floats(record, manifest_of(question), approval.site)
    return RecordDict({ANSWER: _arrays(released_answer(approval, found))})


def _tally(question: Question, approval: Approval, content: RecordDict) -> RecordDict:
    record = _only(approval, content, TALLIES).array_records[TALLIES]
    found = read_floats(record, question.manifest, approval.site)
    check_tally(question, approval, found)
    return RecordDict({TALLIES: _arrays(found)})


def _probe(question: Question, approval: Approval, content: RecordDict) -> RecordDict:
    record = _only(approval, content, SUMS).array_records[SUMS]
    found = read_floats(record, question.manifest, approval.site)
    check_sums(approval, found)
    return RecordDict({SUMS: _arrays(found)})


def settled(question: Question, content: RecordDict) -> dict[str, str]:
    """What an answer settles for an approval: a second one with other numbers would tell who was added or left."""
    if question.kind not in (STATISTICS, EVALUATE, TALLY, LABEL) or "failure" in content:
        return {}
    arrays = {name: [part.data.hex() for part in record.values()] for name, record in content.array_records.items()}
    metrics = {name: dict(record) for name, record in content.metric_records.items()}
    which = "" if question.query is None else f" {question.query.digest}"
    return {f"{question.kind.rpartition('.')[2]} answer{which}": digest_text(canonical_json([arrays, metrics]))}


_RULES: Mapping[str, Callable[[Question, Approval, RecordDict], RecordDict]] = {
    CAPABILITY: _capability,
    STATISTICS: _statistics,
    TRAIN: _training,
    EVALUATE: _evaluation,
    LABEL: _label_query,
    TALLY: _tally,
    PROBE: _probe,
}


def _only(approval: Approval, content: RecordDict, *names: str) -> RecordDict:
    _require(approval, set(content) == set(names), f"its records are not {', '.join(names)}")
    return content


def _check_count(approval: Approval, name: str, count: float, largest: int) -> None:
    """A count of cases: whole, 0 or large enough to leave, and no larger than what was approved."""
    _require(approval, math.isfinite(count) and count == int(count), f"{name} is not a whole number")
    _require(approval, count == 0 or count >= approval.minimum, f"{name} is below {approval.minimum}")
    _require(approval, count <= largest, f"{name} is above the approved number; approve again if cases were added")


def _require(approval: Approval, condition: object, otherwise: str) -> None:
    if not condition:
        raise ReplyRefused(approval.site, otherwise)


def _arrays(values: Mapping[str, Any]) -> ArrayRecord:
    return ArrayRecord({name: Array(value) for name, value in seal(values).items()})


def _known_code(content: RecordDict) -> str:
    code = content.config_records["failure"].get("code")
    return str(code) if code in {kind.__name__ for kind in _kinds(ModalTuneError)} else UNEXPECTED


def _kinds(kind: type[ModalTuneError]) -> Iterator[type[ModalTuneError]]:
    yield kind
    for below in kind.__subclasses__():
        yield from _kinds(below)
