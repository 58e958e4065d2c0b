"""Federated statistics: sums that leave a site, and the exact pooled result.

G genes of the panel, W patch features (times the rows of a bag when ``standardise = "position"``).
Every sum is over training cases only. Suppression happens at the site, before anything leaves.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from modaltune.data.case_table import labelled, task_columns
from modaltune.data.cohort import Cohort
from modaltune.data.features import slabs
from modaltune.data.genesets import restrict
from modaltune.data.modalities import modality_numbers
from modaltune.data.preprocessing import Preprocessing, TaskSpace
from modaltune.data.scale import Scale
from modaltune.errors import FeatureFileError, FederationError
from modaltune.federation.study import Study
from modaltune.federation.task import TaskSpec
from modaltune.tasks.survival import CELLS, bin_edges, bin_times, event_histogram

SMALLEST_SPREAD = 1e-6
"""Least deviation that is one: a share of the mean where that is above 1."""
Sums = dict[str, NDArray[np.float64]]


def statistics_shapes(study: Study, genes: Sequence[str]) -> dict[str, tuple[int, ...]]:
    """The manifest of a statistics reply: name and shape of every sum (all float64)."""
    shapes: dict[str, tuple[int, ...]] = {"cases": (1,)}
    groups = {"expression": len(genes)} if genes else {}
    if study.slides.standardise != "none":
        by_row = study.slides.standardise == "position"
        groups["patches"] = study.slides.in_width * (study.slides.rows if by_row else 1)
    groups |= {f"modality.{modality.name}": modality.width for modality in study.modalities if modality.columns}
    groups |= {f"clinical.{column.name}": 1 for column in study.clinical if not column.values}
    for group, width in groups.items():
        counts = 1 if group == "patches" else width
        shapes |= {f"{group}.count": (counts,), f"{group}.sum": (width,), f"{group}.squares": (width,)}
    for task in study.tasks:
        shapes[f"labels.{task.name}"] = (CELLS,) if task.kind == "survival" else (len(task.labels),)
    return shapes


def _moments(name: str, rows: NDArray[np.float64], told: NDArray[np.bool_]) -> Sums:
    """Sums of the columns that may be told, ``told`` ``[F]`` or one for all of them."""
    count = told * float(len(rows))
    return {f"{name}.count": count, f"{name}.sum": told * rows.sum(axis=0), f"{name}.squares": told * (rows**2).sum(0)}


def may_be_told(rows: NDArray[np.float64], minimum: int) -> NDArray[np.bool_]:
    """``[n, F] -> [F]``: columns of enough cases, and not with one value that all but a few of them share.

    The sums of a gene that all but one patient lack, or of a flag that one has, would be that patient's own value.
    """
    if len(rows) < max(minimum, 1):
        return np.zeros(rows.shape[1], dtype=bool)
    usual = np.partition(rows, len(rows) // 2, axis=0)[len(rows) // 2]
    odd = (rows != usual).sum(axis=0)
    told: NDArray[np.bool_] = (odd == 0) | (odd >= min(minimum, len(rows) - 1))
    return told


def _patch_moments(cohort: Cohort, train: pd.DataFrame, study: Study, minimum: int) -> Sums:
    """Sums over all patches of the training cases, slab by slab."""
    by_row = study.slides.standardise == "position"
    width = study.slides.in_width * (study.slides.rows if by_row else 1)
    cases = [str(case_id) for case_id in train.index if str(case_id) in cohort.bags]
    enough = np.array([len(cases) >= minimum])
    sums = _moments("patches", np.zeros((0, width)), enough)
    for bag in (bag for case_id in cases if len(cases) >= minimum for bag in cohort.bags[case_id]):
        if by_row and len(bag.features) != study.slides.rows:
            raise FeatureFileError(
                f"site {cohort.site}: a bag has {len(bag.features)} rows but slides.standardise = 'position' needs"
                f" {study.slides.rows}; use 'feature' or 'none'"
            )
        parts = [np.asarray(bag.features).reshape(1, -1)] if by_row else slabs(bag.features)
        for part in parts:
            more = _moments("patches", part.astype(np.float64), enough)
            sums = {name: value + more[name] for name, value in sums.items()}
    return sums


def _label_counts(train: pd.DataFrame, task: TaskSpec, minimum: int) -> NDArray[np.float64]:
    if task.kind == "survival":
        of_time, of_event = task_columns(task.name)
        known = train[labelled(train, task.name)]
        event = known[of_event].to_numpy(bool)
        if event.sum() < minimum:
            return np.zeros(CELLS)
        return event_histogram(known[of_time].to_numpy(np.float64), event)
    counts = np.array([float((train[task.name] == value).sum()) for value in task.values])
    return np.where(counts < minimum, 0.0, counts)


def site_statistics(cohort: Cohort, study: Study, genes: Sequence[str], min_cell: int = 1) -> Sums:
    """What one site answers in the preprocessing round: sums and counts over its training cases.

    Counts below the study's ``min_cell`` (or, if larger, the site's) are zeroed; nothing is reported of a group with
    fewer cases than that, nor of a measurement whose value all but fewer cases share.
    """
    train = cohort.cases[cohort.cases["split"] == "train"]
    minimum = max(study.privacy.min_cell, min_cell)
    sums: Sums = {"cases": np.array([float(len(train) if len(train) >= minimum else 0)])}
    if genes:
        rows, measured = np.zeros((0, len(genes))), np.zeros(len(genes), dtype=bool)
        if cohort.expression is not None:
            inside = cohort.expression.index.intersection(train.index)
            rows = cohort.expression.loc[inside].reindex(columns=list(genes), fill_value=0).to_numpy(np.float64)
            measured = np.isin(genes, cohort.expression.columns)
        sums |= _moments("expression", rows, may_be_told(rows, minimum) & measured)
    if study.slides.standardise != "none":
        sums |= _patch_moments(cohort, train, study, minimum)
    for modality in study.modalities:
        if modality.columns:
            rows = modality_numbers(cohort, modality, train.index)
            sums |= _moments(f"modality.{modality.name}", rows, may_be_told(rows, minimum))
    for column in study.clinical:
        if not column.values:
            values = train[column.name].dropna().to_numpy(np.float64) if column.name in train else np.zeros(0)
            sums |= _moments(f"clinical.{column.name}", values[:, None], may_be_told(values[:, None], minimum))
    for task in study.tasks:
        width = statistics_shapes(study, genes)[f"labels.{task.name}"]
        held = task.name in cohort.tasks
        sums[f"labels.{task.name}"] = _label_counts(train, task, minimum) if held else np.zeros(width)
    return sums


def pool_sums(replies: Mapping[str, Sums]) -> Sums:
    """Sum over sites, in the order of their names."""
    names = sorted(replies)
    return {key: np.sum([replies[name][key] for name in names], axis=0) for key in replies[names[0]]}


def _scale(pooled: Sums, name: str) -> Scale | None:
    count = np.maximum(pooled[f"{name}.count"], 1.0)
    if not pooled[f"{name}.count"].any():
        return None
    mean = pooled[f"{name}.sum"] / count
    variance = np.maximum(pooled[f"{name}.squares"] / count - mean**2, 0.0)
    variance[variance < SMALLEST_SPREAD**2 * np.maximum(1.0, mean**2)] = 0.0  # rounding of a constant
    return Scale(mean=tuple(mean.tolist()), deviation=tuple(np.sqrt(variance).tolist()))


def _task_space(task: TaskSpec, counts: NDArray[np.float64]) -> TaskSpace:
    if task.kind == "survival":
        edges = bin_edges(counts, len(task.bins))
        if not edges:
            raise FederationError(
                f"task {task.name}: {int(counts.sum())} deaths reported in training cases, {len(task.bins)} time bins"
                " need at least as many; leave the task out or lower privacy.min_cell"
            )
        texts = tuple(task.template.format(text=text) for text in task.bins)
        return TaskSpace(candidates=task.bins, texts=texts, bin_edges=edges, bin_times=bin_times(counts, edges))
    present = [label for label, count in zip(task.labels, counts, strict=True) if count > 0]
    if len(present) < 2:
        raise FederationError(
            f"task {task.name}: {len(present)} label value(s) reported by the sites' training cases, at least two are"
            " needed; check the label mapping, or lower privacy.min_cell"
        )
    return TaskSpace(
        candidates=tuple(label.value for label in present),
        texts=tuple(task.template.format(text=label.text) for label in present),
    )


def suppressed_groups(replies: Mapping[str, Sums]) -> dict[str, tuple[str, ...]]:
    """Sites whose sums of a group are absent or were held back, in whole or in part: group -> site names.

    Of labels, the sites that count none at all: which values are too rare to be told is not told either.
    """
    out: dict[str, tuple[str, ...]] = {}
    for key in next(iter(replies.values())):
        if key.endswith(".count"):
            out[key.removesuffix(".count")] = tuple(s for s in sorted(replies) if not replies[s][key].all())
        elif key == "cases" or key.startswith("labels."):
            out[key] = tuple(s for s in sorted(replies) if not replies[s][key].any())
    return {group: sites for group, sites in out.items() if sites}


def pooled_preprocessing(replies: Mapping[str, Sums], study: Study, genes: Sequence[str]) -> Preprocessing:
    """Pool the sites' sums into the study's preprocessing; equals the centralised statistics exactly."""
    pooled = pool_sums(replies)
    if pooled["cases"][0] == 0:
        raise FederationError(
            f"no site reported {study.privacy.min_cell} or more training cases; lower privacy.min_cell or add cases"
        )
    sets = restrict(study.gene_sets, genes, study.model.gene_minimum) if genes else {}
    measured = [modality.name for modality in study.modalities if modality.columns]
    modalities = {name: _scale(pooled, f"modality.{name}") for name in measured}
    numbers = [column.name for column in study.clinical if not column.values]
    scales = {name: _scale(pooled, f"clinical.{name}") for name in numbers}
    return Preprocessing(
        study=study.digest,
        genes=tuple(genes),
        gene_sets=sets,
        expression=_scale(pooled, "expression") if genes else None,
        patches=_scale(pooled, "patches") if study.slides.standardise != "none" else None,
        clinical={name: scale for name, scale in scales.items() if scale is not None},
        modalities={name: scale for name, scale in modalities.items() if scale is not None},
        tasks={task.name: _task_space(task, pooled[f"labels.{task.name}"]) for task in study.tasks},
        suppressed=suppressed_groups(replies),
    )
