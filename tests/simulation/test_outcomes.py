from __future__ import annotations

import pandas as pd

from simulation.outcomes import left_out


def fitted(*tasks: str) -> pd.DataFrame:
    return pd.DataFrame({"task": list(tasks)})


def test_hospitals_that_a_mean_over_their_own_models_does_without_are_named() -> None:
    holders = {"stage": ["H1", "H2", "H3"], "survival": ["H1", "H2"], "grade": ["H3"]}
    tables = {"H1": fitted("stage", "survival"), "H2": fitted("survival")}
    (only,) = left_out("linear_local", tables, holders)  # nobody has a grade: that row is n/a itself
    assert only.startswith("linear_local, stage: H2, H3 could not fit a model of their own")
    assert only.endswith("the other 1 of 3 hospitals.")
    assert left_out("pooled", {"": fitted()}, holders) == []
