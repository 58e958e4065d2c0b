"""What gene sets contribute to the federated model's scores, over test cases of all hospitals together."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import pandas as pd
import torch

from modaltune.explain.cohort import cohort_table, over_cases
from modaltune.models.learner import Learner
from modaltune.seeds import numpy_generator
from simulation.compare import Hospitals

MOST_CASES = 60
"""Each costs a pass through the model for every gene set and task; a sample of so many says it well enough."""


def gene_set_contributions(data: Hospitals, learner: Learner) -> pd.DataFrame | None:
    """The table of :func:`modaltune.explain.cohort.cohort_table` with ``of`` (cases to choose from) and ``seed``.

    None without gene sets, for a baseline, and with fewer cases that have expression than the study's least group.
    """
    study, minimum = data.study, data.study.privacy.min_cell
    cases = [
        case
        for site in sorted(data.truth)
        for case, split in zip(data.truth_cases[site], data.truth[site].cases["split"], strict=True)
        if split == "test" and case.has_expression
    ]
    if study.model.kind != "modaltune" or not data.preprocessing.gene_sets or len(cases) < max(1, minimum):
        return None
    drawn = numpy_generator(study.seed, "contributions").permutation(len(cases))[: max(MOST_CASES, minimum)]
    chosen = [cases[place] for place in np.sort(drawn)]
    with _one_thread():
        targets = over_cases(learner, chosen, study.tasks, data.preprocessing, minimum, study.seed)
    names = sorted(data.preprocessing.gene_sets)
    return cohort_table(names, targets).assign(of=len(cases), seed=study.seed)


@contextmanager
def _one_thread() -> Iterator[None]:
    """Passes over one small case are not faster with more, and far slower where others want the cores too."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
