"""One federation over several cancers.

Together: the cancer's site enters through the texts of the labels alone. Diagnoses have other values in each cancer.
Stages are shared by name but not in meaning, so they become a value each (``breast III``), ordered within their cancer
only. Apart: each cancer has a diagnosis and stage of its own (``breast_stage``), so the model is told by the task which
cancer it looks at. Survival is one task with one set of times; grade exists for gliomas only.
"""

from __future__ import annotations

from collections.abc import Sequence

from modaltune.data.tcga import LOCATIONS, cancer_task, placed_level
from modaltune.federation.task import Label, TaskSpec
from modaltune.tasks.vocabulary import load_vocabulary, vocabulary_file


def pan_vocabulary(cohorts: Sequence[str], *, apart: bool = False) -> tuple[TaskSpec, ...]:
    """The tasks of all cohorts; ``cancer location breast; ...`` stands before the text of each label.

    Args:
        apart: a diagnosis, stage or grade for each cancer.
    """
    merged: dict[str, TaskSpec] = {}
    for cohort in cohorts:
        for task in load_vocabulary(vocabulary_file(cohort)):
            placed = _placed(task, cohort, apart)
            known = merged.get(placed.name)
            merged[placed.name] = placed if known is None else _joined(known, placed)
    return tuple(merged.values())


def _placed(task: TaskSpec, cohort: str, apart: bool) -> TaskSpec:
    if task.kind == "survival":
        return task
    location, scaled = LOCATIONS[cohort], task.kind == "ordinal" and not apart
    named = (lambda value: placed_level(location, value)) if scaled else str
    scale = location if scaled else ""
    labels = [
        Label(value=named(label.value), text=f"cancer location {location}; {label.text}", scale=scale)
        for label in task.labels
    ]
    name = cancer_task(cohort, task.name) if apart else task.name
    return task.model_copy(update={"name": name, "labels": tuple(labels), "positive": tuple(map(named, task.positive))})


def _joined(first: TaskSpec, second: TaskSpec) -> TaskSpec:
    if first.kind == "survival":
        return first
    return first.model_copy(
        update={"labels": first.labels + second.labels, "positive": first.positive + second.positive}
    )
