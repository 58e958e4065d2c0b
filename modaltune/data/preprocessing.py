"""The one ``Preprocessing`` of a study: pooled from training cases of all sites, equal everywhere, with a digest."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, ValidationError

from modaltune.data.batch import CaseTensors
from modaltune.data.cohort import Bag, Cohort
from modaltune.data.modalities import modality_vectors
from modaltune.data.scale import Scale
from modaltune.encoders.positions import grid_cells
from modaltune.errors import ConfigError, FeatureFileError
from modaltune.federation.study import Study, TaskSpec
from modaltune.seeds import numpy_generator
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
    months, event = row.get("time_months"), row.get("event")
    if months is None or event is None or pd.isna(months) or pd.isna(event):  # type: ignore[call-overload]
        return None
    return time_bin(float(str(months)), space.bin_edges), bool(event)


def _sampled(bag: Bag, study: Study, site: str, row: int, number: int) -> Bag:
    """At most ``max_patches`` patches: one fixed random subset per slide, in file order."""
    limit = study.slides.max_patches
    if len(bag.features) <= limit:
        return bag
    generator = numpy_generator(study.seed, "patches", site, row, number)
    keep = np.sort(generator.choice(len(bag.features), limit, replace=False))
    return Bag(features=bag.features[keep], coords=bag.coords[keep], patch_size_level0=bag.patch_size_level0)


def bag_inputs(
    bags: tuple[Bag, ...], study: Study, scale: Scale | None, site: str, row: int
) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """All slides of a case as one bag ``[N, W]`` with cells ``[N, 2]``; slides lie side by side, never overlapping."""
    features, cells, offset = [], [], 0
    for number, whole in enumerate(bags):
        bag = _sampled(whole, study, site, row, number)
        placed = grid_cells(bag.coords, bag.patch_size_level0, 1000, f"site {site}, case row {row}, slide {number}")
        placed = placed + np.array([0, offset])
        offset = int(placed[:, 1].max()) + 2
        values = bag.features
        if scale is not None:
            values = _standardised(values, study, scale, site, row)
        features.append(values)
        cells.append(placed)
    if offset > 1001:
        raise FeatureFileError(
            f"site {site}, case row {row}: {len(bags)} slides side by side need {offset} grid columns of 1000;"
            " keep fewer slides for this case"
        )
    return np.concatenate(features), np.concatenate(cells)


def _standardised(values: NDArray[np.float32], study: Study, scale: Scale, site: str, row: int) -> NDArray[np.float32]:
    if study.slides.standardise == "feature":
        return scale.apply(values)
    if len(values) != study.slides.rows:
        raise FeatureFileError(
            f"site {site}, case row {row}: bag has {len(values)} rows but slides.standardise = 'position' needs"
            f" {study.slides.rows} in every bag"
        )
    return scale.apply(values.reshape(-1)).reshape(values.shape)


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


def prepare(cohort: Cohort, study: Study, preprocessing: Preprocessing) -> list[CaseTensors]:
    """Every case of a cohort as model input, in the order of ``cohort.cases``."""
    expression = _expression_rows(cohort, study, preprocessing)
    absent = np.zeros(gene_columns(study, preprocessing.genes), dtype=np.float32)
    vectors = modality_vectors(cohort, study, preprocessing.modalities)
    rows: list[dict[str, Any]] = cohort.cases.to_dict(orient="records")  # type: ignore[assignment]
    out = []
    for number, (case_id, row) in enumerate(zip(cohort.cases.index, rows, strict=True), start=1):
        patches = np.zeros((0, study.slides.in_width), dtype=np.float32)
        cells = np.zeros((0, 2), dtype=np.int64)
        if bags := cohort.bags.get(str(case_id)):
            patches, cells = bag_inputs(bags, study, preprocessing.patches, cohort.site, number)
        targets = {}
        for task in study.tasks:
            target = target_of(row, task, preprocessing.tasks[task.name]) if task.name in cohort.tasks else None
            if target is not None:
                targets[task.name] = target
        out.append(
            CaseTensors(
                patches=torch.from_numpy(patches),
                cells=torch.from_numpy(cells),
                expression=torch.from_numpy(expression.get(str(case_id), absent)),
                has_expression=str(case_id) in expression,
                clinical=torch.tensor(_clinical_row(row, study, preprocessing)),
                targets=targets,
                vectors={name: rows[str(case_id)] for name, rows in vectors.items() if str(case_id) in rows},
            )
        )
    return out
