"""The one ``Preprocessing`` of a study: pooled from training cases of all sites, equal everywhere, with a digest."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, ValidationError

from modaltune.data.batch import CaseTensors, readable
from modaltune.data.cohort import Cohort
from modaltune.data.follow_up import follow_up_columns
from modaltune.data.loading import held
from modaltune.data.modalities import modality_vectors
from modaltune.data.patches import CasePatches
from modaltune.data.scale import Scale
from modaltune.errors import ConfigError
from modaltune.federation.study import Study
from modaltune.federation.task import TaskSpec
from modaltune.storage import canonical_json, digest_text
from modaltune.tasks.survival import time_bin


class TaskSpace(BaseModel):
    """Candidate labels of one task, as found in the training cases of the federation.

    Attributes:
        candidates: label values, or bin names for survival.
        texts: prompt of each candidate.
        bin_edges: survival: inner edges in months.
        bin_times: survival: mean death time of each bin in months.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)
    candidates: tuple[str, ...]
    texts: tuple[str, ...]
    bin_edges: tuple[float, ...] = ()
    bin_times: tuple[float, ...] = ()


class Preprocessing(BaseModel):
    """Everything that turns a site's raw values into model input."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    study: str
    genes: tuple[str, ...] = ()
    gene_sets: dict[str, tuple[str, ...]] = {}
    expression: Scale | None = None
    patches: Scale | None = None
    clinical: dict[str, Scale] = {}
    modalities: dict[str, Scale] = {}
    tasks: dict[str, TaskSpace]
    suppressed: dict[str, tuple[str, ...]] = {}

    def to_json(self) -> str:
        """Canonical JSON."""
        return canonical_json(self.model_dump(mode="json"))

    @property
    def digest(self) -> str:
        """SHA-256 of the canonical JSON."""
        return digest_text(self.to_json())

    @classmethod
    def from_json(cls, text: str) -> Preprocessing:
        """Parse canonical JSON."""
        try:
            return cls.model_validate_json(text)
        except ValidationError as error:
            raise ConfigError(f"preprocessing.json is not valid ({error.error_count()} problems)") from error


def clinical_width(study: Study) -> int:
    """Columns of the clinical input: value and missing flag per number, one per category and one for missing."""
    return sum(2 if not column.values else len(column.values) + 1 for column in study.clinical)


def _clinical_row(row: Mapping[str, object], study: Study, preprocessing: Preprocessing) -> list[float]:
    out: list[float] = []
    for column in study.clinical:
        value = row.get(column.name)
        if column.values:
            hot = [float(value == name) for name in column.values]
            out += [*hot, float(not any(hot))]
        elif value is None or pd.isna(value):  # type: ignore[call-overload]
            out += [0.0, 1.0]
        else:
            scale = preprocessing.clinical.get(column.name)
            raw = np.array([value], dtype=np.float32)
            out += [0.0 if scale is None else float(scale.apply(raw)[0]), 0.0]
    return out


def target_of(row: Mapping[str, object], task: TaskSpec, space: TaskSpace) -> tuple[int, bool] | None:
    """(candidate index, observed) of a case, None when it is unlabelled or its label is no candidate."""
    if task.kind != "survival":
        value = row.get(task.name)
        return (space.candidates.index(str(value)), True) if value in space.candidates else None
    months, event = map(row.get, follow_up_columns(task.name))
    if months is None or event is None or pd.isna(months) or pd.isna(event):  # type: ignore[call-overload]
        return None
    return time_bin(float(str(months)), space.bin_edges), bool(event)


def gene_columns(study: Study, genes: Sequence[str]) -> int:
    """Width of the expression input: a value for each gene, in a union of panels also a flag "not measured here"."""
    return len(genes) * (2 if study.gene_panel == "union" else 1)


def _expression_rows(cohort: Cohort, study: Study, preprocessing: Preprocessing) -> dict[str, NDArray[np.float32]]:
    """case_id -> standardised expression, zero (average) for a gene that is not measured, then the flags of a union."""
    genes, scale = list(preprocessing.genes), preprocessing.expression
    if not genes or cohort.expression is None:
        return {}
    values = np.zeros((len(cohort.expression), gene_columns(study, genes)), dtype=np.float32)
    measured = np.isin(genes, cohort.expression.columns)
    if scale is not None:
        table = cohort.expression.reindex(columns=genes, fill_value=0).to_numpy(np.float32)
        values[:, : len(genes)] = np.where(measured, scale.apply(table), 0)
    if study.gene_panel == "union":
        values[:, len(genes) :] = ~measured
    return dict(zip(map(str, cohort.expression.index), values, strict=True))


def prepare(
    cohort: Cohort, study: Study, preprocessing: Preprocessing, *, memory_limit: int | None = None
) -> list[CaseTensors]:
    """Every case of a cohort as model input, in the order of ``cohort.cases``.

    A case that the study's model cannot read has no target: it is not trained on.

    Args:
        memory_limit: bytes of patches to hold in memory, see :func:`modaltune.data.loading.held`.
    """
    expression = _expression_rows(cohort, study, preprocessing)
    absent = np.zeros(gene_columns(study, preprocessing.genes), dtype=np.float32)
    vectors = modality_vectors(cohort, study, preprocessing.modalities)
    rows: list[dict[str, Any]] = cohort.cases.to_dict(orient="records")  # type: ignore[assignment]
    out = []
    for number, (case_id, row) in enumerate(zip(cohort.cases.index, rows, strict=True), start=1):
        out.append(
            CaseTensors(
                patches=torch.zeros(0, study.slides.in_width),
                cells=torch.zeros(0, 2, dtype=torch.long),
                expression=torch.from_numpy(expression.get(str(case_id), absent)),
                has_expression=str(case_id) in expression,
                clinical=torch.tensor(_clinical_row(row, study, preprocessing)),
                targets=_targets(row, cohort, study, preprocessing),
                vectors={name: rows[str(case_id)] for name, rows in vectors.items() if str(case_id) in rows},
                stored=_patches(cohort, study, preprocessing.patches, str(case_id), number),
            )
        )
    return held(
        [case if readable(case, study.model.needs) else replace(case, targets={}) for case in out], memory_limit
    )


def _targets(
    row: Mapping[str, object], cohort: Cohort, study: Study, preprocessing: Preprocessing
) -> dict[str, tuple[int, bool]]:
    found = {
        task.name: target_of(row, task, preprocessing.tasks[task.name])
        for task in study.tasks
        if task.name in cohort.tasks
    }
    return {name: target for name, target in found.items() if target is not None}


def check_patches(cohort: Cohort, study: Study) -> None:
    """Whether every case's slides can be laid out as the study asks.

    Raises:
        FeatureFileError: coordinates, or the number of patches or slides, do not fit.
    """
    for number, case_id in enumerate(cohort.cases.index, start=1):
        _patches(cohort, study, None, str(case_id), number)


def _patches(cohort: Cohort, study: Study, scale: Scale | None, case_id: str, row: int) -> CasePatches | None:
    if case_id not in cohort.bags:
        return None
    return CasePatches(
        bags=cohort.bags,
        case_id=case_id,
        site=cohort.site,
        row=row,
        slides=study.slides,
        scale=scale,
        seed=study.seed,
    ).checked()
