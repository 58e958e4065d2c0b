from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from modaltune.data.case_table import clean_cases, labelled
from modaltune.data.follow_up import clean_follow_up, event_values, events_live_longer
from modaltune.errors import CaseTableError

WORDS = {"Alive": 0, "living": 0, "0:LIVING": 0, "0:ALIVE OR DEAD TUMOR FREE": 0}
WORDS |= {"Dead": 1, "DECEASED": 1, "1:DECEASED": 1, "1:DEAD WITH TUMOR": 1, " dead ": 1}


@pytest.mark.parametrize("word", WORDS)
def test_words_of_vital_status_become_events(word: str) -> None:
    assert event_values(pd.Series([word, None, ""]), "status", "t").tolist() == pytest.approx(
        [WORDS[word], np.nan, np.nan], nan_ok=True
    )


@pytest.mark.parametrize("values", [[True, False], [1, 0], [1.0, 0.0], ["1", "0"], ["Dead", "Alive"]])
def test_events_may_be_numbers_words_or_truth_values(values: list[object]) -> None:
    assert event_values(pd.Series(values), "event", "t").tolist() == [1, 0]


@pytest.mark.parametrize("value", ["1:LIVING", "0:DECEASED", "2:DECEASED", "unknown", "1"])
def test_a_word_that_is_neither_is_refused_by_its_row(value: str) -> None:
    with pytest.raises(CaseTableError, match=r"neither alive nor dead in 1 row \(first: row 2\)"):
        event_values(pd.Series(["Dead", value, "Alive"]), "status", "t")


@given(st.lists(st.tuples(st.floats(0.01, 700), st.integers(0, 1)), min_size=1, max_size=20))
def test_sound_follow_up_comes_back_unchanged(rows: list[tuple[float, int]]) -> None:
    table = pd.DataFrame(rows, columns=["time_months", "event"])
    pd.testing.assert_frame_equal(clean_follow_up(table, "t"), table, check_dtype=False)


def cohort(*, deaths: int, death_months: float, censored: int, censored_months: float) -> pd.DataFrame:
    draw = np.random.default_rng(0)
    times = np.r_[draw.exponential(death_months, deaths), draw.exponential(censored_months, censored)] + 0.1
    return pd.DataFrame({"time_months": times, "event": np.r_[np.ones(deaths), np.zeros(censored)]})


def test_events_that_live_longer_are_questioned() -> None:
    sound = cohort(deaths=40, death_months=12, censored=60, censored_months=50)
    flipped = sound.assign(event=1 - sound["event"])
    assert not events_live_longer(sound)
    assert events_live_longer(flipped)


def test_few_late_deaths_under_a_short_follow_up_are_not_questioned() -> None:
    assert not events_live_longer(cohort(deaths=20, death_months=45, censored=180, censored_months=28))


def test_too_few_cases_are_not_questioned() -> None:
    assert not events_live_longer(cohort(deaths=9, death_months=500, censored=60, censored_months=5))


@pytest.mark.tcga
@pytest.mark.skipif("MODALTUNE_TCGA" not in os.environ, reason="MODALTUNE_TCGA names no folder of TCGA tables")
def test_real_cohorts_are_questioned_when_their_events_are_flipped() -> None:
    """All but breast cancer, whose few deaths come late: flipped, they still look like short survival."""
    for path in sorted(Path(os.environ["MODALTUNE_TCGA"]).glob("*/clinical.parquet")):
        table = pd.read_parquet(path)
        cases = table.rename(columns={"os_months": "time_months", "os_event": "event"}).dropna(
            subset=["time_months", "event"]
        )
        assert not events_live_longer(cases), path
        assert events_live_longer(cases.assign(event=1 - cases["event"])) == (path.parent.name != "BRCA"), path


@pytest.mark.parametrize("words", [("Alive", "Dead"), ("0:LIVING", "1:DECEASED")])
def test_deaths_in_words_are_an_event_and_no_censorship(words: tuple[str, str]) -> None:
    table = pd.DataFrame({"case_id": ["a", "b", "c"], "time_months": [3.0, 5.0, 8.0], "status": [*words, words[0]]})

    def cleaned(canonical: str) -> pd.DataFrame:
        columns = {canonical: "status"}
        return clean_cases(table, site="H1", where="cases", tasks=["survival"], columns=columns, codes={}, labels={})

    assert cleaned("event")["event"].tolist() == [0, 1, 0]
    with pytest.raises(CaseTableError, match=r"'status' says in words who died.*write event = 'status'"):
        cleaned("censorship")


@pytest.mark.parametrize("local", ["alive", "Survived", "living_status", "survived_dss"])
def test_a_column_of_the_living_is_no_event_unless_it_says_so_in_words(local: str) -> None:
    table = pd.DataFrame({"case_id": ["a", "b"], "time_months": [3.0, 5.0], local: [1, 0]})

    def cleaned(canonical: str, table: pd.DataFrame) -> list[float]:
        columns = {canonical: local}
        cases = clean_cases(table, site="H1", where="t", tasks=["survival"], columns=columns, codes={}, labels={})
        return cases["event"].tolist()

    with pytest.raises(CaseTableError, match=f"event = '{local}', .*; write censorship = '{local}' in its place"):
        cleaned("event", table)
    assert cleaned("censorship", table) == [0, 1]
    assert cleaned("event", table.assign(**{local: ["Alive", "Dead"]})) == [0, 1]


def test_other_words_and_decimal_commas_say_what_is_expected() -> None:
    with pytest.raises(CaseTableError, match=r"expected 1 or 0 .* in event also Alive and Dead"):
        event_values(pd.Series(["yes", "no", "yes"]), "event", "t")
    table = pd.DataFrame({"time_months": ["12,5", "3,0"], "event": [1, 0]})
    with pytest.raises(CaseTableError, match=r"'time_months' is not a number .* a decimal point in place of the comma"):
        clean_follow_up(table, "t")


ENDPOINT = "relapse_free_survival"


def endpoints(table: pd.DataFrame, **columns: str) -> pd.DataFrame:
    tasks = ["survival", ENDPOINT]
    return clean_cases(table, site="H1", where="t", tasks=tasks, columns=columns, codes={}, labels={})


def test_every_endpoint_has_columns_of_its_own() -> None:
    table = pd.DataFrame({"case_id": ["a", "b"], "time_months": [30.0, 5.0], "event": [0, 1]})
    table = table.assign(rfs=[12.0, None], relapse_free_event=["1", ""])
    cases = endpoints(table, relapse_free_time_months="rfs")
    assert list(cases) == ["time_months", "event", "relapse_free_time_months", "relapse_free_event"]
    assert cases.loc["a"].tolist() == [30, 0, 12, 1]
    assert labelled(cases, ENDPOINT).tolist() == [True, False]
    assert labelled(cases, "survival").all()


BROKEN: dict[str, tuple[dict[str, list[object]], str]] = {
    "no time": (
        {"relapse_free_time_months": [None, 2.0]},
        "'relapse_free_event' is given but 'relapse_free_time_months'",
    ),
    "days": ({"relapse_free_time_months": [900.0, 2.0]}, "'relapse_free_time_months' is above 720"),
    "status": ({"relapse_free_event": [2, 0]}, "'relapse_free_event' is neither 0 nor 1"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_what_is_wrong_with_an_endpoint_is_said_of_its_columns(name: str) -> None:
    changes, message = BROKEN[name]
    table = pd.DataFrame({"case_id": ["a", "b"], "time_months": [30.0, 5.0], "event": [0, 1]})
    table = table.assign(**{"relapse_free_time_months": [9.0, 2.0], "relapse_free_event": [1, 0], **changes})
    with pytest.raises(CaseTableError, match=message):
        endpoints(table)


@pytest.mark.parametrize("local", ["censorship", "relapse_censored", "alive"])
def test_a_column_of_the_censored_is_no_event_of_an_endpoint(local: str) -> None:
    table = pd.DataFrame({"case_id": ["a", "b"], "time_months": [30.0, 5.0], "event": [0, 1], local: [1, 0]})
    with pytest.raises(
        CaseTableError, match=f"relapse_free_event = '{local}', and 1 in a column of that name means that"
    ):
        endpoints(table.assign(relapse_free_time_months=[9.0, 2.0]), relapse_free_event=local)
