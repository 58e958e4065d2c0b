"""Gene sets over many cases: mean contribution with an interval over patients, for all cases and for groups.

Shapes: n cases, P gene sets, C candidates.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from modaltune.data.batch import CaseTensors
from modaltune.data.preprocessing import Preprocessing
from modaltune.errors import DataError
from modaltune.evaluation.metrics import Floats, bootstrap_weights
from modaltune.explain.occlusion import Occlusion, Target, contributions, occlude, targets_of_cohort
from modaltune.explain.page import cohort_page
from modaltune.federation.task import TaskSpec
from modaltune.models.learner import Learner
from modaltune.prediction.site import ModelAtSite
from modaltune.storage import write_text
from modaltune.suppression import has_small_group

EVERYBODY = "all"


@dataclass(frozen=True, kw_only=True)
class Group:
    """Contributions of one group of patients, gene sets in the order of the cohort's ``names``.

    Attributes:
        name: ``all``, or what the model said about these cases.
        cases: how many; None when it or the other group is too small to be reported, and then nothing else is.
        mean, low, high: ``[P]`` mean contribution and its 95 % bootstrap interval over patients.
        size: ``[P]`` mean of the contribution without its sign.
    """

    name: str
    cases: int | None
    mean: Floats
    low: Floats
    high: Floats
    size: Floats


@dataclass(frozen=True, kw_only=True)
class TargetOverCases:
    """One target over the cases: everybody first, then the groups."""

    target: Target
    groups: tuple[Group, ...]


@dataclass(frozen=True, kw_only=True)
class CohortExplanation:
    """Everything on the page of a cohort.

    Attributes:
        split: of the cases.
        without: cases left out because they have no expression; None when few.
        minimum: smallest group reported.
        names: of the gene sets.
    """

    split: str
    without: int | None
    minimum: int
    names: tuple[str, ...]
    targets: tuple[TargetOverCases, ...]


def explain_cohort(
    at: ModelAtSite, split: str, task: str | None = None, after_case: Callable[[], None] = lambda: None
) -> CohortExplanation:
    """Contributions of every gene set over the cases of a split that have expression.

    Args:
        task: one task; None = all.
        after_case: called once a case.
    Raises:
        DataError: fewer such cases than the smallest group that is reported.
    """
    rows = at.rows(split)
    chosen = [row for row in rows if at.cases[row].has_expression]
    if len(chosen) < at.minimum or not at.preprocessing.gene_sets:
        raise DataError(
            f"site {at.cohort.site}: fewer than {at.minimum} cases of split {split!r} have expression that the model"
            " reads; a mean over fewer patients is not reported (min_cell), explain single cases instead"
        )
    specs = [spec for spec in at.study.tasks if task in (None, spec.name)]
    shown = (at.cases[row] for row in chosen)
    targets = over_cases(at.learner, shown, specs, at.preprocessing, at.minimum, at.study.seed, after_case)
    return CohortExplanation(
        split=split,
        without=at.reported(len(rows) - len(chosen)),
        minimum=at.minimum,
        names=tuple(sorted(at.preprocessing.gene_sets)),
        targets=tuple(targets),
    )


def over_cases(
    learner: Learner,
    cases: Iterable[CaseTensors],
    tasks: Sequence[TaskSpec],
    preprocessing: Preprocessing,
    minimum: int,
    seed: int,
    after_case: Callable[[], None] = lambda: None,
) -> list[TargetOverCases]:
    """Contributions of every gene set, in the order of their names, over cases that have expression.

    Args:
        minimum: smallest group that is reported.
        after_case: called once a case.
    """
    learner.eval()
    found = []
    for case in cases:
        found.append(occlude(learner, case.loaded(), preprocessing, modalities=False))
        after_case()
    targets = [target for spec in tasks for target in targets_of_cohort(spec, preprocessing.tasks[spec.name])]
    return [_over_cases(target, found, minimum, seed) for target in targets]


def _over_cases(target: Target, found: Sequence[Occlusion], minimum: int, seed: int) -> TargetOverCases:
    values = np.array([list(contributions(target, one).values()) for one in found])
    whole = np.stack([one.whole[target.task.name] for one in found])
    parts = {name: inside for name, inside in groups_of(target, whole).items() if 0 < inside.sum() < len(found)}
    return TargetOverCases(target=target, groups=tuple(summarise_parts(values, parts, minimum, seed)))


def summarise_parts(values: Floats, parts: Mapping[str, NDArray[np.bool_]], minimum: int, seed: int) -> Iterator[Group]:
    """Everybody, and groups that part them: none of these where one is too small, for the others would tell it."""
    yield summarise(EVERYBODY, values, minimum, seed)
    hidden = has_small_group(np.array([inside.sum() for inside in parts.values()]), minimum)
    for name, inside in parts.items():
        yield summarise(name, values[:0] if hidden else values[inside], minimum, seed)


def groups_of(target: Target, whole: Floats) -> dict[str, NDArray[np.bool_]]:
    """What the model says about ``[n, C]`` probabilities -> which cases: two groups that share nobody."""
    score = target.score(whole)
    if target.task.kind == "survival":
        worse = score > np.median(score)
        return {"risk above the median": worse, "risk up to the median": ~worse}
    if target.task.kind == "ordinal":
        return {f"predicted {target.direction}": score > 0.5, "predicted otherwise": score <= 0.5}
    best = np.array(target.space.candidates)[whole.argmax(axis=1)] == target.label
    return {f"predicted {target.label}": best, "predicted otherwise": ~best}


def summarise(name: str, values: Floats, minimum: int, seed: int) -> Group:
    """Mean contributions ``[n, P]`` of a group with intervals; nothing but its name when it is too small."""
    nothing: Floats = np.zeros(0)
    if len(values) < minimum:
        return Group(name=name, cases=None, mean=nothing, low=nothing, high=nothing, size=nothing)
    weights = bootstrap_weights(len(values), seed, "contributions", name)
    means = weights @ values / len(values)
    low, high = np.percentile(means[1:], [2.5, 97.5], axis=0)
    return Group(name=name, cases=len(values), mean=means[0], low=low, high=high, size=np.abs(values).mean(axis=0))


def write_cohort(out: Path, at: ModelAtSite, found: CohortExplanation) -> Path:
    """Write the table of contributions and, last, the page; returns the page."""
    write_text(
        out / "contributions.csv", cohort_table(found.names, found.targets).to_csv(index=False, float_format="%.6g")
    )
    page = out / "cohort.html"
    write_text(page, cohort_page(at, found))
    return page


def cohort_table(names: Sequence[str], targets: Sequence[TargetOverCases]) -> pd.DataFrame:
    """One row a target, group and gene set of ``names``; groups that are too small are absent."""
    rows = [
        {
            "task": over.target.task.name,
            "towards": over.target.direction,
            "unit": over.target.unit,
            "group": group.name,
            "cases": group.cases,
            "gene_set": name,
            "mean": group.mean[place],
            "low": group.low[place],
            "high": group.high[place],
            "mean_size": group.size[place],
        }
        for over in targets
        for group in over.groups
        if group.cases is not None
        for place, name in enumerate(names)
    ]
    return pd.DataFrame(rows)
