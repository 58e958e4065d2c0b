"""What sites answer to the evaluation: metrics of each, and counts from which those of all are computed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from flwr.app import RecordDict

from modaltune.data.preprocessing import Preprocessing
from modaltune.errors import ReplyRefused
from modaltune.evaluation.federated import pooled_metrics
from modaltune.evaluation.metrics import Floats
from modaltune.federation.evaluation_counts import (
    COUNTS,
    counted_sites,
    counts_manifest,
    labelled_cases,
    problem_with_counts,
    rounded,
)
from modaltune.federation.manifest import check_evaluation
from modaltune.federation.study import Study
from modaltune.federation.wire import read_arrays


@dataclass
class Evaluation:
    """Answers by site, in the order of their names.

    Attributes:
        metrics: name -> value, as each site reports them.
        counts: of each site's test cases, where the study asks for them.
    """

    study: Study
    preprocessing: Preprocessing
    metrics: dict[str, dict[str, float]] = field(default_factory=dict)
    counts: dict[str, Mapping[str, Floats]] = field(default_factory=dict)

    def accept(self, site: str, reply: RecordDict, cases: int) -> None:
        """Read an answer of a site that has ``cases`` test cases.

        Raises:
            ReplyRefused: it is none, or tells of fewer cases than may be told.
        """
        metrics = check_evaluation(site, reply.metric_records["metrics"], self.study, cases)
        if self.study.evaluation.counts:
            self.counts = dict(sorted({**self.counts, site: self._counts(site, reply, cases, metrics)}.items()))
        self.metrics = dict(sorted({**self.metrics, site: metrics}.items()))

    @property
    def log(self) -> dict[str, Any]:
        """For the round log."""
        counted = {"counted": counted_sites(self.counts, self.study)} if self.study.evaluation.counts else {}
        return {"metrics": self.metrics, **counted}

    @property
    def together(self) -> list[dict[str, Any]]:
        """Metrics of everybody's test cases; none without counts."""
        return pooled_metrics(self.counts.values(), self.study)

    @property
    def summed(self) -> dict[str, dict[str, Any]]:
        """Task with classes -> test cases by step of probability, summed over the ``hospitals`` that told them.

        ``counts`` is ``[scored class][others, its own][step]``, as each hospital sends it. Absent: what fewer than two
        hospitals (or the study's least contributors) told, for the sum would be theirs alone.
        """
        found, told = {}, counted_sites(self.counts, self.study)
        for task in self.study.tasks:
            sites = told[task.name]
            if task.kind != "survival" and len(sites) >= max(2, self.study.privacy.min_contributors):
                counts = np.sum([self.counts[site][f"{task.name}.scores"] for site in sites], axis=0)
                found[task.name] = {"hospitals": sites, "counts": counts.astype(int).tolist()}
        return found

    def _counts(self, site: str, reply: RecordDict, cases: int, metrics: Mapping[str, float]) -> Mapping[str, Floats]:
        found = read_arrays(reply.array_records[COUNTS], counts_manifest(self.study, self.preprocessing), site)
        counts, labelled = rounded(found), labelled_cases(metrics)
        if problem := problem_with_counts(counts, self.study, self.study.privacy.min_cell, cases, labelled):
            raise ReplyRefused(site, problem)
        return counts
