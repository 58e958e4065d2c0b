"""Names of columns that give a label away: never an input, however they are spelt."""

from __future__ import annotations

import re
from collections.abc import Iterable

from modaltune.data.case_table import task_columns
from modaltune.data.column_names import REVERSED, means, snake

_STAGING = re.compile(r"((ajcc|path|clin|tnm)[a-z_]*_)?[pc]?_?[tnm]|.*stage.*")
_LABELS = re.compile(
    "|".join(
        (
            *(r"(primary_)?diagnosis", r"primary_class", r"project(_.*)?", r"cohort", r"(tumou?r|cancer)_type.*"),
            *(r".*grade.*", r".*subtype.*", r"pam50.*", r"m?hrd_high", r"histology", r"histological_type"),
            *(r"event", r"time_months", r"(.*_)?survival(_.*)?", r"vital_status", r"(is_)?dead", r"died"),
            *(r"deceased.*", r"death.*", r"censor.*", r"(cdr_)?(os|dss|pfi|dfi)(_.*)?", r"days_to_(death|last).*"),
            *(r"has_.*", r".*_available", r"n_slides", r"slide_count"),
        )
    )
)


def labels_in_disguise(columns: Iterable[str], tasks: Iterable[str]) -> list[str]:
    """Columns that are a label under another name, or tell which modalities a case has.

    Args:
        columns: as they stand in a table.
        tasks: of the study. T, N, M and stage are labels only where one of them is a task.
    """
    names = {snake(name) for task in tasks for name in (task, *task_columns(task))}
    staged = any(map(_STAGING.fullmatch, names))

    def disguised(name: str) -> bool:
        staging = staged and _STAGING.fullmatch(name) is not None
        known = name in names or any(means(name, other) for other in REVERSED)
        return known or staging or _LABELS.fullmatch(name) is not None

    return [column for column in columns if disguised(snake(column))]
