"""Probes on the embeddings of a study's model: over hospitals, and with all cases in one place."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler

from modaltune.data.cohort import Cohort
from modaltune.evaluation.predictions import COLUMNS, predict
from modaltune.evaluation.probes.embeddings import embedded, labelled_cases
from modaltune.evaluation.probes.sums import SiteCases
from modaltune.federation.statistics import pooled_preprocessing, site_statistics
from modaltune.federation.study import Study
from modaltune.models.learner import Learner, build_learner
from simulation import compare
from simulation.compare import Hospitals, Scene
from simulation.outcomes import Outcome, Scorer
from simulation.probes import CANCER, Fitted, embeddings_of, fit_probes, probe_tables, training_cases


@pytest.fixture(scope="module")
def data(study: Study, hospitals: dict[str, Path], cohorts: dict[str, Cohort]) -> Hospitals:
    measured = [set(c.expression.columns) for c in cohorts.values() if c.expression is not None]
    genes = sorted(set.intersection(*measured) & {gene for members in study.gene_sets.values() for gene in members})
    sums = {site: site_statistics(cohort, study, genes) for site, cohort in cohorts.items()}
    preprocessing = pooled_preprocessing(sums, study, genes).to_json()
    return Hospitals(Scene(sites=hospitals, truth=hospitals, study=study.to_json(), preprocessing=preprocessing))


@pytest.fixture(scope="module")
def learner(data: Hospitals) -> Learner:
    return build_learner(data.study, data.preprocessing)


def everybodys_cases(data: Hospitals, learner: Learner, name: str) -> SiteCases:
    parts = []
    for site in sorted(data.cohorts):
        cases, frame = data.split(site, "train"), data.cohorts[site].cases
        features = embedded(learner, cases)[name]
        parts.append(labelled_cases(data.study.task(name), cases, frame[frame["split"] == "train"], features))
    return SiteCases.together(parts)


def fitted(data: Hospitals, learner: Learner, *, together: bool) -> Fitted:
    return fit_probes(data, training_cases(data, embeddings_of(learner), list(data.cohorts)), together=together)


def test_a_federated_probe_is_scikit_learns_on_pooled_embeddings(data: Hospitals, learner: Learner) -> None:
    probe = fitted(data, learner, together=False).probes["diagnosis"]
    cases = everybodys_cases(data, learner, "diagnosis")
    model = LogisticRegression(solver="newton-cholesky", tol=1e-12)
    model.fit(StandardScaler().fit_transform(cases.features), cases.group)
    np.testing.assert_allclose(probe.optimum.coefficients[:, :-1], model.coef_, atol=1e-6)


def test_cases_in_one_place_or_at_their_hospitals_give_the_same_classes(data: Hospitals, learner: Learner) -> None:
    apart, together = (fitted(data, learner, together=one).probes for one in (False, True))
    for task in ("diagnosis", "stage"):
        np.testing.assert_allclose(apart[task].optimum.coefficients, together[task].optimum.coefficients, atol=1e-6)
    assert set(apart) == {task.name for task in data.study.tasks}


def test_probes_predict_the_cases_that_the_model_predicts(data: Hospitals, learner: Learner) -> None:
    probed = probe_tables(data, embeddings_of(learner), list(data.cohorts), together=False).table
    assert tuple(probed.columns) == COLUMNS
    for site in data.cohorts:
        own = predict(learner, data.study, data.preprocessing, data.truth[site], data.truth_cases[site])
        beside = probed[probed["hospital"] == site]
        for column in ("task", "label", "time_months"):
            assert list(own[column].fillna("-")) == list(beside[column].fillna("-"))
    assert probed.loc[probed["task"] == "survival", "risk"].notna().all()


def test_a_hospital_with_one_death_is_left_out_of_the_federation_only_which_names_it(
    data: Hospitals, learner: Learner, monkeypatch: pytest.MonkeyPatch
) -> None:
    strict = data.study.privacy.model_copy(update={"min_cell": 2})
    monkeypatch.setattr(data, "study", data.study.model_copy(update={"privacy": strict}))
    train = data.cohorts["H4"].cases.query("split == 'train'")
    assert train["event"].sum() == 1
    apart, together = (fitted(data, learner, together=one) for one in (False, True))
    assert "H4" in apart.probes["survival"].left_out
    assert apart.remarks["survival"] == "without H4 (fewer than 2 deaths or survivors)"
    assert not together.probes["survival"].left_out
    assert not together.remarks


def test_a_probe_names_hospitals_whose_classes_are_small_and_says_why_nothing_is_left_to_fit(
    data: Hospitals, learner: Learner, monkeypatch: pytest.MonkeyPatch
) -> None:
    strict = data.study.privacy.model_copy(update={"min_cell": 1000})
    monkeypatch.setattr(data, "study", data.study.model_copy(update={"privacy": strict}))
    table, notes = probe_tables(data, embeddings_of(learner), list(data.cohorts), together=False)
    assert table.empty
    assert (
        "probe of diagnosis: without H1, H2 and H5 (a class of fewer than 1000 cases);"
        " not fitted, 0 of 5 sites contribute, min_contributors = 1."
    ) in notes
    assert len(notes) == len(data.study.tasks)


def test_a_scorer_gives_probe_rows_for_every_hospital_and_all(
    data: Hospitals, learner: Learner, hospitals: dict[str, Path], tmp_path: Path
) -> None:
    probed = probe_tables(data, embeddings_of(learner), sorted(hospitals), together=False).table
    outcome = Outcome()
    Scorer(data, outcome).record_probes("federated", {"": probed})
    rows = outcome.rows
    assert {row["hospital"] for row in rows} == {*hospitals, "all"}
    assert {row["metric"] for row in rows} == {"auc_probe", "balanced_accuracy_probe", "c_index_probe"}
    assert not outcome.predictions


def test_a_model_trained_for_comparison_comes_back_with_probes(
    data: Hospitals, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(compare, "_hospitals", data, raising=False)
    found = compare._run(compare.Job(method="local", hospital="H1", steps=1), None)
    assert set(found.probes["hospital"]) == set(data.cohorts)
    assert set(found.probes["task"]) == set(found.table["task"])


CANCERS = {"H1": "BRCA", "H2": "BRCA", "H3": "BRCA", "H4": "RCC", "H5": "RCC"}


def test_each_cohort_of_several_has_probes_of_its_own_hospitals(
    data: Hospitals, learner: Learner, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(data, "cancers", CANCERS)
    embed, sites = embeddings_of(learner), sorted(data.cohorts)
    several = probe_tables(data, embed, sites, together=False).table
    monkeypatch.setattr(data, "cancers", {})
    for cancer in ("BRCA", "RCC"):
        alone = probe_tables(data, embed, [site for site in sites if CANCERS[site] == cancer], together=False).table
        first, second = (
            table[table["hospital"].map(CANCERS) == cancer].reset_index(drop=True) for table in (several, alone)
        )
        pd.testing.assert_frame_equal(first, second)
        assert len(first)


def test_several_cohorts_have_probe_rows_each_and_are_told_apart_over_all(
    data: Hospitals, learner: Learner, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(data, "cancers", CANCERS)
    embed, outcome = embeddings_of(learner), Outcome()
    scorer = Scorer(data, outcome)
    scorer.record_probes(
        "federated", {"": probe_tables(data, embed, sorted(data.cohorts), together=False, cancer=True).table}
    )
    own = {site: probe_tables(data, embed, [site], together=True, cancer=True).table for site in data.cohorts}
    scorer.record_probes("local", own)
    test = sum(int((cohort.cases["split"] == "test").sum()) for cohort in data.truth.values())
    everywhere = [row for row in outcome.rows if row["hospital"] == "all"]
    assert [(row["method"], row["task"], row["metric"], row["n"]) for row in everywhere] == [
        ("federated", CANCER, metric, test) for metric in ("auc_probe", "balanced_accuracy_probe")
    ]
    assert all(0 <= row["value"] <= 1 for row in everywhere)
    for method in ("federated", "local"):
        found = {row["hospital"] for row in outcome.rows if row["method"] == method and row["value"] is not None}
        assert {"BRCA", "RCC"} <= found <= {"BRCA", "RCC", "all", *CANCERS}


def test_a_note_says_in_which_cohort_a_probe_lacks_hospitals(
    data: Hospitals, learner: Learner, monkeypatch: pytest.MonkeyPatch
) -> None:
    strict = data.study.privacy.model_copy(update={"min_cell": 2})
    monkeypatch.setattr(data, "study", data.study.model_copy(update={"privacy": strict}))
    monkeypatch.setattr(data, "cancers", CANCERS)
    notes = probe_tables(data, embeddings_of(learner), sorted(data.cohorts), together=False, cancer=True).notes
    assert "probe of survival: in RCC without H4 (fewer than 2 deaths or survivors)." in notes
    assert not any(note.startswith("probe of cancer") for note in notes)
