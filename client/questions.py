"""What a coordinator asks, read and held against the study before any of it reaches the client app."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import lru_cache

import torch
from flwr.app import ConfigRecord, Message

from client.label_queries import LABEL, label_query_bytes, read_label_query
from client.preprocessing import check_preprocessing, named_genes, widest_preprocessing
from client.probes import MODEL, PROBE, TALLY, check_allowed, read_probe, read_probes
from modaltune.data.preprocessing import Preprocessing
from modaltune.errors import ConfigError, MessageRefused, ReplyRefused
from modaltune.federation.average import State
from modaltune.federation.evaluation_counts import counts_manifest
from modaltune.federation.label_query import LabelQuery
from modaltune.federation.manifest import Manifest
from modaltune.federation.probe_query import (
    ProbeQuery,
    model_name,
    probes_digest,
    question_bytes,
    sums_manifest,
    tally_manifest,
)
from modaltune.federation.statistics import statistics_shapes
from modaltune.federation.study import Study
from modaltune.federation.wire import decode_weights, message_manifest, read_arrays
from modaltune.models.learner import build_learner
from modaltune.models.modaltune import trainable_state
from modaltune.storage import canonical_json, digest_state, digest_text

CAPABILITY, STATISTICS, TRAIN, EVALUATE = "query.capability", "query.statistics", "train", "evaluate"
KINDS = (CAPABILITY, STATISTICS, TRAIN, EVALUATE, LABEL, TALLY, PROBE)
_HEADER, _RECORDS, _DIGITS = 4096, 16, 64
"""Bytes beyond a record's content, other records than arrays, digits of a number."""


@dataclass(frozen=True, kw_only=True)
class Question:
    """One message of the coordinator, found to belong to its study.

    Attributes:
        genes: whose sums are asked for; only of statistics.
        round: only of training.
        weights: as the coordinator sent them; of training, evaluation, label queries and tallies.
        manifest: derived here from the study: of the counts of an evaluation, of the answer to a tally or probe
            question, else of the trained weights.
        agreed: what it has in common with other questions that are answered under one approval, name -> digest.
        query: only of label queries.
        probe: only of probe questions.
    """

    kind: str
    study: Study
    genes: tuple[str, ...] = ()
    round: int = 0
    weights: State = field(default_factory=State)
    manifest: Manifest = field(default_factory=lambda: Manifest(shapes={}))
    agreed: Mapping[str, str] = field(default_factory=dict)
    query: LabelQuery | None = None
    probe: ProbeQuery | None = None


def study_of(message: Message) -> Study:
    """The study that a message is about."""
    try:
        return Study.from_json(str(_config(message)["study"]))
    except (KeyError, TypeError, ValueError, ConfigError):
        raise MessageRefused("QuestionUnreadable", "the message names no study that this release can read") from None


def read_question(message: Message, study: Study) -> Question:
    """Read a message about a study that is already approved.

    Raises:
        MessageRefused: it asks for something else than the study says.
    """
    kind = message.metadata.message_type
    if kind not in KINDS:
        raise MessageRefused("QuestionUnknown", f"only {', '.join(KINDS)} are answered")
    try:
        config = _config(message)
        if kind == CAPABILITY:
            return Question(kind=kind, study=study)
        if kind == STATISTICS:
            genes = _genes(config, study)
            return Question(
                kind=kind, study=study, genes=genes, agreed={STATISTICS: digest_text(canonical_json(genes))}
            )
        if kind == PROBE:
            probe = read_probe(message, study)
            manifest = sums_manifest(probe.question)
            return Question(kind=kind, study=study, manifest=manifest, agreed={MODEL: probe.model}, probe=probe)
        return _about_weights(message, study)
    except ReplyRefused as problem:
        raise MessageRefused("QuestionRefused", problem.reason) from None
    except (KeyError, TypeError, ValueError, ConfigError):
        raise MessageRefused("QuestionUnreadable", f"a message of kind {kind} lacks what it needs") from None


def _about_weights(message: Message, study: Study) -> Question:
    """A question that carries weights and preprocessing."""
    kind, config = message.metadata.message_type, _config(message)
    if kind == TALLY:
        check_allowed(study)
    preprocessing = Preprocessing.from_json(str(config["preprocessing"]))
    check_preprocessing(preprocessing, study)
    manifest, start = trained_weights(study, preprocessing)
    travelling = message_manifest(study.training.wire, manifest)
    packed = read_arrays(message.content.array_records["arrays"], travelling, "the server")
    weights = decode_weights(study.training.wire, packed, start)
    manifest.check("the server", weights)
    number = int(str(config["round"])) if kind == TRAIN else 0
    if number not in range(1, study.training.rounds + 1) and kind == TRAIN:
        raise MessageRefused("QuestionRefused", f"the study has rounds 1 to {study.training.rounds} only")
    query = read_label_query(message, study) if kind == LABEL else None
    agreed = {"preprocessing": preprocessing.digest}
    if kind in (EVALUATE, LABEL):  # a query is about the model that is evaluated, and no other
        agreed[EVALUATE] = digest_state({name: torch.from_numpy(value) for name, value in weights.items()})
    if study.probes.questions and kind in (EVALUATE, TALLY):  # and so are probes
        agreed[MODEL] = model_name(preprocessing, packed)
    if study.probes.questions and kind == EVALUATE:
        agreed["set of probes"] = probes_digest(read_probes(message, study, preprocessing))
    answers = {TALLY: tally_manifest, EVALUATE: counts_manifest}
    return Question(
        kind=kind,
        study=study,
        round=number,
        weights=weights,
        manifest=answers[kind](study, preprocessing) if kind in answers else manifest,
        agreed=agreed,
        query=query,
    )


@lru_cache(maxsize=2)
def _trained_weights(study_json: str, preprocessing_json: str) -> tuple[Manifest, State]:
    study, preprocessing = Study.from_json(study_json), Preprocessing.from_json(preprocessing_json)
    candidates = {task.name: len(preprocessing.tasks[task.name].candidates) for task in study.tasks}
    targets = {name: torch.zeros(count, study.model.output_width) for name, count in candidates.items()}
    learner = build_learner(study, preprocessing, targets, frozen=False)
    start: State = {name: value.numpy().copy() for name, value in trainable_state(learner).items()}
    return Manifest.of_training(learner, study), start


def trained_weights(study: Study, preprocessing: Preprocessing) -> tuple[Manifest, State]:
    """Manifest and initial values of what a study trains, without frozen weights or text encoder."""
    return _trained_weights(study.to_json(), preprocessing.to_json())


@lru_cache(maxsize=8)
def _largest_message(study_json: str) -> int:
    study = Study.from_json(study_json)
    manifest, _ = trained_weights(study, widest_preprocessing(study, named_genes(study)))
    arrays = message_manifest(study.training.wire, manifest)
    sums = sum(math.prod(shape) for shape in statistics_shapes(study, sorted(named_genes(study))).values())
    text = 4 * len(study_json) + _DIGITS * sums
    fixed = math.ceil(arrays.megabytes * 1e6) + _HEADER * (len(arrays.shapes) + _RECORDS)
    return fixed + text + label_query_bytes(study) + question_bytes(study)


def largest_message(study: Study) -> int:
    """Bytes that no message of a study exceeds: weights for all genes and candidates, study and preprocessing."""
    return _largest_message(study.to_json())


def _config(message: Message) -> ConfigRecord:
    return message.content.config_records["study"]


def _genes(config: ConfigRecord, study: Study) -> tuple[str, ...]:
    genes = config.get("genes", [])
    if not isinstance(genes, list) or list(genes) != sorted({str(gene) for gene in genes} & named_genes(study)):
        raise MessageRefused("QuestionRefused", "it asks for genes that the study does not name, or not in order")
    return tuple(str(gene) for gene in genes)
