"""Label queries: how candidate texts of a task that nobody labelled divide a site's cases. Exploratory.

The coordinator embeds the texts with the study's text encoder and sends texts and vectors; a site projects the vectors
with the study's frozen projector, so its client app needs no text encoder. A site cannot tell whether a vector belongs
to its text; what bounds a query is that its answer is a few suppressed counts, and that there are only so many queries.

The answer, with C candidates and L labels; a table that is held back is -1 everywhere:

================ =========== ==========================================================
``cases``        ``[1]``     cases scored: the site's test cases; 0 = too few
``counts``       ``[C]``     cases nearest to each candidate
``probability``  ``[C]``     mean probability of each candidate; held back with ``counts``
``by.TASK``      ``[L+1,C]`` the counts by label of a task, the last row: without label
================ =========== ==========================================================
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from modaltune.data.batch import CaseTensors
from modaltune.data.cohort import Cohort
from modaltune.errors import ConfigError
from modaltune.evaluation.predictions import embed_cases
from modaltune.federation.manifest import Manifest
from modaltune.federation.study import Study
from modaltune.models.learner import Learner
from modaltune.storage import canonical_json, digest_text
from modaltune.suppression import has_small_group, tells_small_counts
from modaltune.tasks.head import LARGEST_SCALE, TextHead, candidate_targets
from modaltune.tasks.projector import seeded_projector

HELD_BACK = -1
WIDEST, LONGEST = 4096, 500  # numbers of a text vector, characters of a text
DECIMALS, _UNIT = 4, 1e-3
Counts = NDArray[np.int64]
Answer = dict[str, NDArray[np.float64]]


@dataclass(frozen=True, kw_only=True)
class LabelQuery:
    """Candidate texts of a task that is not in the study.

    Attributes:
        name: what the coordinator calls the task.
        texts: a text for each candidate.
        vectors: ``[C, W]`` their embeddings, of unit length.
    """

    name: str
    texts: tuple[str, ...]
    vectors: NDArray[np.float32]

    @property
    def digest(self) -> str:
        """Names the query; the same one may be asked again."""
        return digest_text(canonical_json([self.name, self.texts, self.vectors.tobytes().hex()]))

    def check(self, study: Study) -> None:
        """Refuse a query that the study does not allow.

        Raises:
            ConfigError: names the rule.
        """
        allowed, count = study.label_queries, len(self.texts)
        if not allowed.budget:
            raise ConfigError(f"study {study.name} allows no label queries: label_queries.budget is 0")
        if study.model.head != "text":
            raise ConfigError(
                f"study {study.name}: label queries need model.head = 'text'; separate heads know no text"
            )
        if not 2 <= count <= allowed.max_candidates or len(set(self.texts)) < count:
            raise ConfigError(f"a label query has 2 to {allowed.max_candidates} different candidates, got {count}")
        if max(map(len, (self.name, *self.texts))) > LONGEST or not all(map(str.isprintable, (self.name, *self.texts))):
            raise ConfigError(f"texts of a label query are printable, of at most {LONGEST} characters")
        good = self.vectors.ndim == 2 and len(self.vectors) == count and 0 < self.vectors.shape[1] <= WIDEST
        if not good or not (np.abs(np.linalg.norm(self.vectors.astype(np.float64), axis=1) - 1) < _UNIT).all():
            raise ConfigError("a label query has one vector of unit length for each text")


def answer_manifest(study: Study, query: LabelQuery) -> Manifest:
    """Arrays of an answer."""
    count = len(query.texts)
    shapes: dict[str, tuple[int, ...]] = {"cases": (1,), "counts": (count,), "probability": (count,)}
    if study.label_queries.by_label:
        shapes |= {f"by.{t.name}": (len(t.values) + 1, count) for t in study.tasks if t.kind != "survival"}
    return Manifest(shapes=shapes, dtype="float64")


@torch.no_grad()
def zero_shot(learner: Learner, study: Study, cases: Sequence[CaseTensors], vectors: Tensor) -> Tensor:
    """Logits ``[n, C]`` over candidate texts of a task that nobody trained.

    There is no token of it: a case is placed by the mean of its directions for the study's tasks, with the mean of
    their learnt scales.

    Args:
        vectors: ``[C, text width]`` embedded texts.
    Raises:
        ConfigError: the model has separate heads.
    """
    if not isinstance(learner.head, TextHead):
        raise ConfigError("model.head: only a head of label texts places texts that it never saw")
    projector = seeded_projector(study.seed, vectors.shape[1], study.model.output_width)
    targets = candidate_targets(projector(vectors), centre=study.model.centre_texts)
    head = learner.head
    directions = [head.directions(found, task).cpu() for task, found in embed_cases(learner, cases).items()]
    scales = [value.exp().clamp(max=LARGEST_SCALE).cpu() for value in head.scale.values()]
    out: Tensor = torch.stack(scales).mean() * F.normalize(torch.stack(directions).mean(dim=0), dim=-1) @ targets.T
    return out


@torch.no_grad()
def site_answer(
    learner: Learner, study: Study, cases: Sequence[CaseTensors], cohort: Cohort, query: LabelQuery, minimum: int
) -> Answer:
    """Score the test cases of a site and count them; see :func:`held_back`.

    Mean probabilities are held back with the counts: a large scale makes them the counts in another form.
    """
    out = {name: np.full(shape, HELD_BACK, np.float64) for name, shape in answer_manifest(study, query).shapes.items()}
    out["cases"][0] = 0
    inside = (cohort.cases["split"] == "test").to_numpy()
    frame, cases = cohort.cases[inside], [case for case, keep in zip(cases, inside, strict=True) if keep]
    if len(cases) < minimum or not isinstance(learner.head, TextHead):
        return out
    logits = zero_shot(learner, study, cases, torch.from_numpy(query.vectors))
    nearest = logits.argmax(dim=-1).numpy()
    counts = np.bincount(nearest, minlength=len(query.texts))
    out["cases"][0], out["counts"] = len(cases), held_back(counts, minimum).astype(np.float64)
    if (out["counts"] != HELD_BACK).all():
        out["probability"] = logits.double().softmax(dim=-1).mean(dim=0).numpy().round(DECIMALS)
    for task in study.tasks:
        if f"by.{task.name}" in out and task.name in cohort.tasks:
            table = _cross_table(frame[task.name].tolist(), task.values, nearest, len(query.texts))
            out[f"by.{task.name}"] = held_back(table, minimum).astype(np.float64)
    return out


def _cross_table(labels: Sequence[object], values: Sequence[str], nearest: Counts, candidates: int) -> Counts:
    rows = {value: number for number, value in enumerate(values)}
    table = np.zeros((len(values) + 1, candidates), np.int64)
    for label, candidate in zip(labels, nearest, strict=True):
        table[rows.get(str(label), len(values)), candidate] += 1
    return table


def held_back(table: Counts, minimum: int) -> Counts:
    """A table as it may leave: as it is, or not at all when a cell has 1 to ``minimum - 1`` cases.

    To hide single cells is not enough where sums are known: whoever knows the rule by which a second cell is hidden, or
    asks again with the candidates in another order, can often work out the first.
    """
    return np.full_like(table, HELD_BACK) if has_small_group(table, minimum) else table


def problem_with(answer: Mapping[str, NDArray[np.float64]], minimum: int, most_cases: int) -> str:
    """What is wrong with an answer that otherwise fits its manifest; empty = it may leave, and counts."""
    cases = answer["cases"][0]
    tables = [answer["counts"], *(value for name, value in answer.items() if name.startswith("by."))]
    if cases != int(cases) or not (cases == 0 or minimum <= cases <= most_cases):
        return "its number of cases is too small, or above the approved number"
    if not cases and any((value != HELD_BACK).any() for name, value in answer.items() if name != "cases"):
        return "it counts cases where there are none"
    told = bool((answer["counts"] != HELD_BACK).any())
    if not told and (answer["probability"] != HELD_BACK).any():
        return "it tells probabilities where counts are held back"
    if told and (np.abs(answer["probability"].sum() - 1) > _UNIT or (answer["probability"] < 0).any()):
        return "its probabilities do not add up to 1"
    for table in tables:
        if (table == HELD_BACK).all():
            continue
        if tells_small_counts(table, minimum):
            return f"it counts fewer than {minimum} cases"
        if table.sum() != cases:
            return "its counts do not add up to its cases"
    return ""
