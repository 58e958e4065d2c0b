"""A coordinator that asks one hospital everything a study asks, through the real handlers of the client app."""

from __future__ import annotations

from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from flwr.app import Array, ArrayRecord, ConfigRecord, Context, Message, MetricRecord, RecordDict
from flwr.supercore.task_identity import TaskIdentity

from client.app import make_app
from client.approvals import Approval
from client.preprocessing import named_genes
from client.questions import CAPABILITY, EVALUATE, STATISTICS, TRAIN, Question, read_question
from client.runtime import Site
from modaltune.data.preprocessing import Preprocessing
from modaltune.federation.average import State
from modaltune.federation.statistics import pooled_preprocessing
from modaltune.federation.study import Study
from modaltune.federation.wire import encode_weights, seal
from modaltune.models.learner import build_learner
from modaltune.models.modaltune import trainable_state
from tests.integration.grids import pack, unpack

BUNDLE = "b" * 64


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
        if kind in (TRAIN, EVALUATE):
            fields["preprocessing"] = self.preprocessing.to_json()
            packed = encode_weights(self.study.training.wire, weights or self.start, self.start)
            records["arrays"] = ArrayRecord({name: Array(value) for name, value in seal(packed).items()})
        if kind == TRAIN:
            fields["round"] = 1
        records["study"] = ConfigRecord(fields | config)
        TaskIdentity.task_id, TaskIdentity.run_id, TaskIdentity.node_id = 0, 0, 0
        message = Message(records, dst_node_id=7, message_type=kind)
        message.metadata.__dict__["_message_id"] = f"question {kind}"
        return message

    def question(self, kind: str, **config: Any) -> Question:
        return read_question(self.message(kind, **config), self.study)

    def reply(self, kind: str) -> RecordDict:
        """What the honest client app answers: a fresh copy every time."""
        if kind not in self._replies:
            context = Context(run_id=0, node_id=7, node_config={}, state=RecordDict(), run_config={})
            self._replies[kind] = pack(self.app(self.message(kind), context))
        return unpack(self._replies[kind]).content

    def released(self, kind: str) -> RecordDict:
        """What leaves of the honest answer: all of it, metrics to four decimals."""
        content = self.reply(kind)
        if "metrics" in content:
            metrics = content.metric_records["metrics"]
            content["metrics"] = MetricRecord({name: round(float(str(value)), 4) for name, value in metrics.items()})
        return content

    @cached_property
    def _replies(self) -> dict[str, bytes]:
        return {}

    @cached_property
    def approval(self) -> Approval:
        return Approval.of(self.site, BUNDLE)


__all__ = ["BUNDLE", "CAPABILITY", "EVALUATE", "STATISTICS", "TRAIN", "Conversation"]
