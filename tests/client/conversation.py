"""A coordinator that asks one hospital everything a study asks, through the real handlers of the client app."""

from __future__ import annotations

from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from flwr.app import Array, ArrayRecord, ConfigRecord, Context, Message, MetricRecord, RecordDict
from flwr.supercore.task_identity import TaskIdentity

from client.app import make_app
from client.approvals import Approval
from client.label_queries import LABEL
from client.preprocessing import named_genes
from client.probes import PROBE, TALLIES, TALLY
from client.questions import CAPABILITY, EVALUATE, STATISTICS, TRAIN, Question, read_question
from client.runtime import Site
from modaltune.data.preprocessing import Preprocessing
from modaltune.evaluation.probes.embeddings import probe_spec
from modaltune.evaluation.probes.fit import ProbeQuestion, first_question
from modaltune.federation.average import State
from modaltune.federation.evaluation_counts import COUNTS, rounded
from modaltune.federation.probe_query import model_name, probe_arrays, question_arrays, tally_of
from modaltune.federation.statistics import pooled_preprocessing
from modaltune.federation.study import Study
from modaltune.federation.wire import encode_weights, seal, unseal
from modaltune.models.learner import build_learner
from modaltune.models.modaltune import trainable_state
from tests.integration.grids import pack, unpack

BUNDLE = "b" * 64
PROBED = "diagnosis"
"""The task whose probe is asked about."""


class Conversation:
    """Questions of a study and the honest answers of one site."""

    def __init__(self, folder: Path, study: Study) -> None:
        self.folder, self.study = folder, study
        self.app = make_app(lambda _: folder)
        self.site = Site(folder, study)
        self.genes = sorted(named_genes(study) & set(self.site.capability()["genes"]))

    @cached_property
    def preprocessing(self) -> Preprocessing:
        return pooled_preprocessing({"H1": self.site.statistics(self.genes)}, self.study, self.genes)

    @cached_property
    def start(self) -> State:
        torch.set_num_threads(1)
        learner = build_learner(self.study, self.preprocessing)
        return {name: value.numpy().copy() for name, value in trainable_state(learner).items()}

    def message(self, kind: str, weights: State | None = None, **config: Any) -> Message:
        """A question as the coordinator sends it; ``config`` overrides what its study record says."""
        fields: dict[str, Any] = {"study": self.study.to_json()}
        records = RecordDict()
        if kind == STATISTICS:
            fields["genes"] = self.genes
        if kind in (TRAIN, EVALUATE, LABEL, TALLY):
            fields["preprocessing"] = self.preprocessing.to_json()
            packed = encode_weights(self.study.training.wire, weights or self.start, self.start)
            records["arrays"] = sealed(packed)
        if kind == EVALUATE and self.study.probes.questions:
            records["probes"] = sealed(probe_arrays({PROBED: self.first_question}))
        if kind == PROBE:
            packed = encode_weights(self.study.training.wire, self.start, self.start)
            fields |= {"task": PROBED, "model": model_name(self.preprocessing, packed), "derivatives": True}
            records["question"] = sealed(question_arrays(self.first_question))
        if kind == TRAIN:
            fields["round"] = 1
        if kind == LABEL:
            fields |= {"name": "necrosis", "texts": ["much necrosis", "little necrosis"]}
            records["vectors"] = sealed({"vectors": np.eye(2, 12, dtype=np.float32)})
        records["study"] = ConfigRecord(fields | config)
        TaskIdentity.task_id, TaskIdentity.run_id, TaskIdentity.node_id = 0, 0, 0
        message = Message(records, dst_node_id=7, message_type=kind)
        message.metadata.__dict__["_message_id"] = f"question {kind}"
        return message

    @cached_property
    def first_question(self) -> ProbeQuestion:
        """The first question about a probe, after the tally, which is asked for here."""
        tally = tally_of(unseal(self.reply(TALLY).array_records[TALLIES], "H1"), PROBED)  # type: ignore[arg-type]
        spec = probe_spec(self.study.task(PROBED), self.preprocessing.tasks[PROBED])
        return first_question(spec, tally)

    def question(self, kind: str, **config: Any) -> Question:
        return read_question(self.message(kind, **config), self.study)

    def reply(self, kind: str) -> RecordDict:
        """What the honest client app answers: a fresh copy every time."""
        if kind not in self._replies:
            context = Context(run_id=0, node_id=7, node_config={}, state=RecordDict(), run_config={})
            self._replies[kind] = pack(self.app(self.message(kind), context))
        return unpack(self._replies[kind]).content

    def released(self, kind: str) -> RecordDict:
        """What leaves of the honest answer: all of it, metrics to four decimals and sums of scores to two."""
        content = self.reply(kind)
        if "metrics" in content:
            metrics = content.metric_records["metrics"]
            content["metrics"] = MetricRecord({name: round(float(str(value)), 4) for name, value in metrics.items()})
        if COUNTS in content:
            told = unseal(content.array_records[COUNTS], "H1")  # type: ignore[arg-type]
            content[COUNTS] = sealed(rounded(told))
        return content

    @cached_property
    def _replies(self) -> dict[str, bytes]:
        return {}

    @cached_property
    def approval(self) -> Approval:
        return Approval.of(self.site, BUNDLE)


def sealed(arrays: Any) -> ArrayRecord:
    """Arrays as they travel."""
    return ArrayRecord({name: Array(value) for name, value in seal(arrays).items()})


def vectors_record(vectors: Any) -> ArrayRecord:
    """The vectors of a label query as they travel."""
    return sealed({"vectors": vectors})


__all__ = [
    "BUNDLE",
    "CAPABILITY",
    "EVALUATE",
    "LABEL",
    "PROBE",
    "PROBED",
    "STATISTICS",
    "TALLY",
    "TRAIN",
    "Conversation",
    "sealed",
    "vectors_record",
]
