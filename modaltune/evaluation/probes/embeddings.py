"""Probes of a study: one a task, on that task's embeddings of the training cases, or on slide vectors.

n cases, F features, D width of a slide vector.

Ridge is that of the published evaluation, C = 1 and penalizer 0.1, here on standardised embeddings: nothing is chosen,
so no case is spent on choosing, and a federation pays for one fit a task.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from modaltune.data.batch import CaseTensors, collate
from modaltune.data.case_table import task_columns
from modaltune.data.preprocessing import TaskSpace
from modaltune.encoders.slide import Places, SlideEncoder
from modaltune.evaluation.metrics import Floats
from modaltune.evaluation.predictions import embed_cases, prediction_table, renamed
from modaltune.evaluation.probes.fit import PENALIZER, C, Probe, ProbeSpec
from modaltune.evaluation.probes.sums import SiteCases
from modaltune.federation.task import TaskSpec
from modaltune.models.learner import Learner

SUFFIX = "_probe"


def probe_spec(task: TaskSpec, space: TaskSpace) -> ProbeSpec:
    """The probe of a task."""
    if task.kind == "survival":
        return ProbeSpec(kind="cox", ridge=PENALIZER)
    return ProbeSpec(kind="logistic", groups=len(space.candidates), ridge=C)


def embedded(learner: Learner, cases: Sequence[CaseTensors]) -> dict[str, Floats]:
    """Embeddings ``[n, F]`` of every case for every task."""
    return numbers_of(embed_cases(learner, cases))


def numbers_of(embeddings: Mapping[str, Tensor]) -> dict[str, Floats]:
    """Embeddings by task as features of probes."""
    return {task: found.double().cpu().numpy() for task, found in embeddings.items()}


@torch.no_grad()
def slide_vectors(cases: Sequence[CaseTensors], encoder: SlideEncoder) -> Floats:
    """``[n, D]`` vector that the frozen slide encoder gives to each case's bag; zeros for a case without slides."""
    rows = []
    for case in cases:
        if not case.patch_count:
            rows.append(torch.zeros(encoder.width))
            continue
        batch = collate([case])
        places = Places(batch.cells)
        tokens = encoder.with_cls(encoder.embed(batch.patches, batch.cells))
        rows.append(encoder.slide_vector(encoder.run_layers(tokens, 0, encoder.depth - 1, places), places)[0])
    return torch.stack(rows).double().numpy() if rows else np.zeros((0, encoder.width))


def labelled_cases(task: TaskSpec, cases: Sequence[CaseTensors], frame: pd.DataFrame, features: Floats) -> SiteCases:
    """The cases that carry a task's label.

    Args:
        cases: prepared.
        frame: rows of the cases table, in the same order.
        features: ``[n, F]`` their embeddings.
    """
    known = np.array([task.name in case.targets for case in cases], dtype=bool)
    targets = [case.targets[task.name] for case in cases if task.name in case.targets]
    if task.kind == "survival":
        months = frame[task_columns(task.name)[0]].to_numpy(np.float64)[known] if known.any() else np.zeros(0)
        group = np.array([observed for _, observed in targets], dtype=np.int64)
        return SiteCases(features=features[known], group=group, months=months)
    return SiteCases(features=features[known], group=np.array([label for label, _ in targets], dtype=np.int64))


def probe_predictions(
    probe: Probe, frame: pd.DataFrame, hospital: str, task: TaskSpec, space: TaskSpace, features: Floats
) -> pd.DataFrame:
    """Prediction table of a probe for the cases of ``frame`` that carry its label."""
    if task.kind != "survival":
        return prediction_table(frame, hospital, task, space, probe.probabilities(features))
    table = prediction_table(frame, hospital, task, space, np.zeros((len(frame), len(space.candidates))))
    known = frame.reindex(columns=list(task_columns(task.name))).notna().all(axis=1).to_numpy()
    return table.assign(probabilities=None, risk=probe.risk(features)[known])


def as_probe_row(row: Mapping[str, Any]) -> dict[str, Any]:
    """A row of ``metrics.json`` under the name that probe scores have."""
    return renamed(row, SUFFIX)
