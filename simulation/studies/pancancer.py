"""One federation over several cancers: the cancer's site enters through the texts of the labels alone.

Diagnoses have other values in each cancer. Stages are shared by name but not in meaning, so they become a value each
(``breast III``), ordered within their cancer only. Survival is one task with one set of times; grade exists for
gliomas only.
"""

from __future__ import annotations

from collections.abc import Sequence

from modaltune.data.tcga import LOCATIONS, placed_level
from modaltune.federation.study import Label, TaskSpec
from modaltune.tasks.vocabulary import load_vocabulary, vocabulary_file


def pan_vocabulary(cohorts: Sequence[str]) -> tuple[TaskSpec, ...]:
    """The tasks of all cohorts; ``cancer location breast; ...`` stands before the text of each label."""
    merged: dict[str, TaskSpec] = {}
    for cohort in cohorts:
        for task in load_vocabulary(vocabulary_file(cohort)):
            placed = _placed(task, LOCATIONS[cohort])
            known = merged.get(task.name)
            merged[task.name] = placed if known is None else _joined(known, placed)
    return tuple(merged.values())


def _placed(task: TaskSpec, location: str) -> TaskSpec:
    if task.kind == "survival":
        return task
    named = (lambda value: placed_level(location, value)) if task.kind == "ordinal" else str
    scale = location if task.kind == "ordinal" else ""
    labels = [
        Label(value=named(label.value), text=f"cancer location {location}; {label.text}", scale=scale)
        for label in task.labels
    ]
    return task.model_copy(update={"labels": tuple(labels), "positive": tuple(map(named, task.positive))})


def _joined(first: TaskSpec, second: TaskSpec) -> TaskSpec:
    if first.kind == "survival":
        return first
    return first.model_copy(
        update={"labels": first.labels + second.labels, "positive": first.positive + second.positive}
    )
