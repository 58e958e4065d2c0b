"""The preprocessing that a coordinator sends, held against the study.

A coordinator chooses among candidates, genes and sites, and states scales and times that it computed from sums. All the
rest follows from the study. A scale with a tiny deviation would turn a number into the answer to "is it exactly this?".
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from modaltune.data.genesets import restrict
from modaltune.data.preprocessing import Preprocessing, TaskSpace
from modaltune.data.scale import Scale
from modaltune.errors import MessageRefused
from modaltune.federation.statistics import SMALLEST_SPREAD, statistics_shapes
from modaltune.federation.study import Study
from modaltune.federation.task import TaskSpec
from modaltune.tasks.survival import CELL_MONTHS, CELLS

_LEAST, _LEAST_CLINICAL = 0.999 * SMALLEST_SPREAD, 1.0
"""Smallest deviation of any number, but for rounding, and of a clinical number (years of age)."""


def named_genes(study: Study) -> set[str]:
    """Genes that a set of the study names: no others are ever spoken of."""
    return {gene for members in study.gene_sets.values() for gene in members}


def widest_preprocessing(study: Study, genes: Iterable[str]) -> Preprocessing:
    """A preprocessing with every candidate and as many of the given genes as the study names, without scales."""
    panel = sorted(named_genes(study) & set(genes))
    return Preprocessing(
        study=study.digest,
        genes=tuple(panel),
        gene_sets=_gene_sets(study, panel),
        tasks={task.name: _space(task, task.bins or task.values) for task in study.tasks},
    )


def check_preprocessing(given: Preprocessing, study: Study) -> None:
    """Refuse a preprocessing that no sums of this study give.

    Raises:
        MessageRefused: names the part that does not fit, never its content.
    """
    if given.study != study.digest or set(given.tasks) != {task.name for task in study.tasks}:
        raise _refused("study and tasks")
    if list(given.genes) != sorted(named_genes(study) & set(given.genes)):
        raise _refused("genes")
    if given.gene_sets != _gene_sets(study, given.genes):
        raise _refused("gene sets")
    for task in study.tasks:
        space = given.tasks[task.name]
        bare = space.model_copy(update={"bin_edges": (), "bin_times": ()})
        if len(space.candidates) < 2 or bare != _space(task, space.candidates) or not _bins_fit(task, space):
            raise _refused(f"task {task.name}")
    _check_scales(given, study)


def _gene_sets(study: Study, genes: Iterable[str]) -> dict[str, tuple[str, ...]]:
    panel = list(genes)
    return restrict(study.gene_sets, panel, study.model.gene_minimum) if panel else {}


def _space(task: TaskSpec, candidates: Iterable[str]) -> TaskSpace:
    """Those candidates that a task has, in its order, with their texts."""
    known = [(text, text) for text in task.bins] or [(label.value, label.text) for label in task.labels]
    chosen = [(value, text) for value, text in known if task.bins or value in set(candidates)]
    return TaskSpace(
        candidates=tuple(value for value, _ in chosen),
        texts=tuple(task.template.format(text=text) for _, text in chosen),
    )


def _bins_fit(task: TaskSpec, space: TaskSpace) -> bool:
    """Increasing edges with one time between each two of them; none of either where nobody dies."""
    if task.kind != "survival":
        return not space.bin_edges and not space.bin_times
    if len(space.bin_edges) != len(task.bins) - 1 or len(space.bin_times) != len(task.bins):
        return False
    bounds = np.array([0.0, *space.bin_edges, CELLS * CELL_MONTHS])
    times = np.asarray(space.bin_times)
    return bool((np.diff(bounds) > 0).all() and (bounds[:-1] <= times).all() and (times <= bounds[1:]).all())


def _check_scales(given: Preprocessing, study: Study) -> None:
    shapes = statistics_shapes(study, given.genes)
    widths = {name.removesuffix(".sum"): shape[0] for name, shape in shapes.items() if name.endswith(".sum")}
    stated = {"expression": given.expression, "patches": given.patches}
    found = {name: scale for name, scale in stated.items() if scale is not None}
    found |= {f"clinical.{name}": scale for name, scale in given.clinical.items()}
    found |= {f"modality.{name}": scale for name, scale in given.modalities.items()}
    if not set(found) <= set(widths):
        raise _refused("scales")
    for name, scale in found.items():
        if not _is_sound(scale, widths[name], _LEAST_CLINICAL if name.startswith("clinical.") else 0.0):
            raise _refused(f"scale of {name}")
    sites = {site for names in given.suppressed.values() for site in names}
    counts = {name for name in shapes if name == "cases" or name.startswith("labels.")}
    if not set(given.suppressed) <= {*widths, *counts} or not sites <= set(study.roster):
        raise _refused("suppressed groups")


def _is_sound(scale: Scale, width: int, least: float) -> bool:
    if not len(scale.mean) == len(scale.deviation) == width:
        return False
    mean, deviation = np.asarray(scale.mean), np.asarray(scale.deviation)
    floor = np.maximum(least, _LEAST * np.maximum(1.0, np.abs(mean)))
    sound = np.isfinite(mean) & np.isfinite(deviation) & ((deviation == 0) | (deviation >= floor))
    return bool(sound.all())


def _refused(part: str) -> MessageRefused:
    return MessageRefused("QuestionRefused", f"the preprocessing is not one of the study: {part}")
