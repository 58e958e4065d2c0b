from __future__ import annotations

import pandas as pd
import pytest

from modaltune.data.case_table import clean_cases
from modaltune.errors import CaseTableError

UNDERSTOOD = {
    "stage": {"Stage IIIA": "III", "iv": "IV", "Stage IA3": "I", "IIc": "II"},
    "t_stage": {"T1": "T1", "pT2a": "T2", "ypT3": "T3", "T1mi": "T1", "T1b1": "T1", "t4D": "T4"},
    "n_stage": {"N0": "N0", "N0 (i-)": "N0", "pN1mi": "N1", "N2a": "N2", "N3c": "N3", "N0 (mol+)": "N0"},
    "m_stage": {"M0": "M0", "cM0 (i+)": "M0", "M1a": "M1", "pM1": "M1"},
}
LEFT_ALONE = {
    "stage": ["Stage X", "0", "V"],
    "t_stage": ["TX", "Tis", "T0", "T5"],
    "n_stage": ["NX", "N4"],
    "m_stage": ["MX"],
}


def harmonised(task: str, values: list[str]) -> list[str]:
    table = pd.DataFrame({"case_id": [f"P{row}" for row in range(len(values))], task: values})
    cases = clean_cases(table, site="H1", where="cases", tasks=[task], columns={}, codes={}, labels={})
    return [str(value) for value in cases[task]]


@pytest.mark.parametrize("task", UNDERSTOOD)
def test_staging_text_becomes_its_main_level(task: str) -> None:
    assert harmonised(task, list(UNDERSTOOD[task])) == list(UNDERSTOOD[task].values())


@pytest.mark.parametrize("task", LEFT_ALONE)
def test_unknown_levels_are_left_for_the_site_to_map(task: str) -> None:
    assert harmonised(task, LEFT_ALONE[task]) == LEFT_ALONE[task]


def test_rows_of_one_case_agree_about_every_task_and_fill_each_others_blanks() -> None:
    def cleaned(levels: list[str | None]) -> pd.DataFrame:
        table = pd.DataFrame({"slide_id": ["s1", "s2", "s3"], "case_id": ["p0", "p0", "p1"], "t_stage": levels})
        return clean_cases(table, site="H1", where="cases", tasks=["t_stage"], columns={}, codes={}, labels={})

    assert cleaned([None, "T2", "T1"])["t_stage"].tolist() == ["T2", "T1"]
    with pytest.raises(CaseTableError, match="differs from an earlier row"):
        cleaned(["T1", "T4", "T1"])
