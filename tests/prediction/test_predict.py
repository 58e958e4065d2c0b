"""modaltune predict: what the table says, what the command prints, and every way to ask for too much."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from modaltune.data.batch import CaseTensors
from modaltune.data.cohort import Cohort
from modaltune.data.preprocessing import Preprocessing
from modaltune.evaluation.predictions import embed_cases, probabilities_of
from modaltune.federation.study import Study
from modaltune.models.baselines.registry import baseline_study
from modaltune.models.learner import Learner, build_learner
from modaltune.prediction.distance import distance_of
from modaltune.prediction.site import model_at_site
from modaltune.prediction.table import median_months, prediction_rows, survival_curve
from modaltune.trust.keys import SigningKey
from modaltune.trust.release import sign_folder
from tests.prediction.released import Released, Run, one_document, release

EDGES = (6.0, 18.0, 40.0)


def nobody(text: str) -> bool:
    return "PATIENT" not in text


def table_of(run: Run, released: Released, *options: object) -> pd.DataFrame:
    code, _, err = run("predict", released.model, released.site, *options)
    assert code == 0, err
    return pd.read_parquet(released.site / "predictions.parquet").set_index("case_id")


def test_the_table_has_a_row_a_case_with_the_probabilities_of_the_model(
    run: Run, released: Released, tiny_learner: Learner, tiny_cohort: Cohort, tiny_cases: list[CaseTensors]
) -> None:
    found = table_of(run, released)
    usable = [bool(case.patch_count or case.has_expression) for case in tiny_cases]
    assert list(found.index) == list(tiny_cohort.cases.index[usable])
    embeddings = embed_cases(tiny_learner, [case for case, keep in zip(tiny_cases, usable, strict=True) if keep])
    for task, names in (("diagnosis", ["alpha", "beta", "gamma"]), ("survival", ["bin1", "bin2", "bin3"])):
        columns = found[[f"{task}.probability.{name}" for name in names]]
        np.testing.assert_allclose(columns, probabilities_of(tiny_learner, embeddings, task), atol=1e-5)
        assert (columns.to_numpy().argmax(axis=1) == [names.index(name) for name in found[f"{task}.predicted"]]).all()
        nearest = found[[f"{task}.cosine.{name}" for name in names]].to_numpy().argmax(axis=1)
        assert (nearest == columns.to_numpy().argmax(axis=1)).all()
    assert set(found["diagnosis.nearest_text"]) <= {f"text of {name}." for name in ("alpha", "beta", "gamma")}
    positive = found[["stage.probability.III", "stage.probability.IV"]].sum(axis=1)
    np.testing.assert_allclose(found["stage.positive"], positive)
    assert set(found["use"]) == {"research use only, not a medical device"}


def test_survival_columns_agree_with_each_other(
    run: Run, released: Released, tiny_preprocessing: Preprocessing
) -> None:
    found = table_of(run, released)
    alive = found.filter(like="survival.alive_after_")
    edges = tiny_preprocessing.tasks["survival"].bin_edges
    assert list(alive.columns) == [f"survival.alive_after_{edge:.1f}_months" for edge in edges]
    assert (alive.diff(axis=1).iloc[:, 1:] <= 0).all(axis=None)
    np.testing.assert_allclose(alive.iloc[:, 0], 1 - found["survival.probability.bin1"], atol=1e-6)
    np.testing.assert_allclose(found["survival.risk"], -found["survival.expected_months"])


def test_the_table_says_what_each_case_lacked(run: Run, released: Released, tiny_cohort: Cohort) -> None:
    found = table_of(run, released)
    assert tiny_cohort.expression is not None
    for case_id, missing in found["missing"].items():
        lacks = set(filter(None, str(missing).split(",")))
        row = tiny_cohort.cases.loc[str(case_id)]
        assert ("slides" in lacks) == (case_id not in tiny_cohort.bags)
        assert ("expression" in lacks) == (case_id not in tiny_cohort.expression.index)
        assert ("age" in lacks) == bool(pd.isna(row["age"]))
        assert ("sex" in lacks) == (row["sex"] is None)


def test_no_label_is_needed_or_read(run: Run, released: Released) -> None:
    before = table_of(run, released)
    cases = pd.read_parquet(released.site / "cases.parquet")
    cases["diagnosis"] = "a word that no vocabulary has"
    cases.drop(columns=["stage", "time_months", "event"]).to_parquet(released.site / "cases.parquet")
    pd.testing.assert_frame_equal(table_of(run, released), before)


def test_the_same_question_gets_the_same_bytes(run: Run, released: Released, tmp_path: Path) -> None:
    for name in ("a.csv", "b.csv"):
        assert run("predict", released.model, released.site, "--out", tmp_path / name)[0] == 0
    assert (tmp_path / "a.csv").read_bytes() == (tmp_path / "b.csv").read_bytes()


def test_the_document_has_counts_and_the_path_and_no_patient(run: Run, released: Released, tmp_path: Path) -> None:
    out = tmp_path / "table.csv"
    code, text, err = run("predict", released.model, released.site, "--split", "test", "--out", out, "--json")
    document = one_document(text)
    assert code == 0
    table = pd.read_csv(out)
    assert set(table["split"]) == {"test"}
    assert (document["path"], document["cases"]) == (str(out), len(table))
    assert document["genes_absent"] == 0
    assert nobody(text + err)
    assert "H1 took part in the training" in err


def test_a_count_of_few_patients_is_held_back(
    run: Run, tmp_path: Path, tiny_learner: Learner, tiny_study: Study, tiny_preprocessing: Preprocessing,
    tiny_cohort: Cohort,
) -> None:  # fmt: skip
    made = release(tmp_path, tiny_learner, tiny_study, tiny_preprocessing, tiny_cohort, min_cell=5)
    document = one_document(run("predict", made.model, made.site, "--json")[1])
    absent: Any = document["missing"]
    table = pd.read_parquet(made.site / "predictions.parquet")
    counts = {name: int(table["missing"].str.split(",").map(lambda row, n=name: n in row).sum()) for name in absent}
    assert absent == {name: count if count >= 5 else None for name, count in counts.items()}
    assert None in absent.values()


def test_expression_in_another_unit_is_far(run: Run, released: Released) -> None:
    assert not table_of(run, released)["far"].any()
    path = released.site / "expression.parquet"
    table = pd.read_parquet(path).set_index("case_id")
    (table * 3).reset_index().to_parquet(path)
    found = table_of(run, released)
    assert (found["far"] == ~found["missing"].str.contains("expression")).all()


def test_distance_is_one_over_the_training_cases(
    tiny_cases: list[CaseTensors], tiny_cohort: Cohort, tiny_preprocessing: Preprocessing
) -> None:
    measured = np.ones(len(tiny_preprocessing.genes), dtype=bool)
    train = (tiny_cohort.cases["split"] == "train").to_numpy()
    squares = [
        distance_of(case.loaded(), tiny_preprocessing, measured).expression ** 2
        for case, keep in zip(tiny_cases, train, strict=True)
        if keep and case.has_expression
    ]
    assert np.mean(squares) == pytest.approx(1, abs=1e-3)


@given(
    arrays.arrays(np.float64, st.tuples(st.integers(1, 5), st.just(4)), elements=st.floats(1e-3, 1)).map(
        lambda rows: rows / rows.sum(axis=1, keepdims=True)
    )
)
def test_half_are_alive_at_the_median(probabilities: np.ndarray[Any, np.dtype[np.float64]]) -> None:
    alive = survival_curve(probabilities)
    for curve, median in zip(alive, median_months(alive, EDGES), strict=True):
        if np.isnan(median):
            assert curve[-1] > 0.5
        else:
            assert np.interp(median, [0, *EDGES], [1, *curve]) == pytest.approx(0.5)


def test_genes_that_the_site_does_not_measure_are_counted(run: Run, released: Released) -> None:
    path = released.site / "expression.parquet"
    pd.read_parquet(path).drop(columns=["G00", "G01"]).to_parquet(path)
    code, text, err = run("predict", released.model, released.site, "--json")
    assert (code, one_document(text)["genes_absent"]) == (0, 2)
    assert "2 of 12 genes are not measured here and count as average" in err


def strange_genes(site: Path) -> None:
    table = pd.read_parquet(site / "expression.parquet")
    renamed = {name: f"ENSG{name}" for name in table if name != "case_id"}
    table.rename(columns=renamed).to_parquet(site / "expression.parquet")


def no_site_file(site: Path) -> None:
    (site / "site.toml").unlink()


def damaged_bag(site: Path) -> None:
    next((site / "features").iterdir()).write_bytes(b"not HDF5")


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (strange_genes, "has none of the model's 12 genes, expected at least half"),
        (no_site_file, "site.toml is missing"),
        (damaged_bag, "slides.csv, file of row"),
    ],
)
def test_a_site_that_does_not_fit_is_one_line(damage: Any, message: str, run: Run, released: Released) -> None:
    damage(released.site)
    code, out, err = run("predict", released.model, released.site)
    assert (code, out) == (2, "")
    assert message in err
    assert err.count("error:") == 1
    assert nobody(err)
    assert not (released.site / "predictions.parquet").exists()


def test_features_of_another_width_are_refused(
    run: Run, tmp_path: Path, tiny_learner: Learner, tiny_study: Study, tiny_preprocessing: Preprocessing,
    tiny_cohort: Cohort,
) -> None:  # fmt: skip
    wide = {
        case: tuple(replace(bag, features=np.concatenate([bag.features, bag.features], axis=1)) for bag in bags)
        for case, bags in tiny_cohort.bags.items()
    }
    made = release(tmp_path, tiny_learner, tiny_study, tiny_preprocessing, replace(tiny_cohort, bags=wide))
    code, _, err = run("predict", made.model, made.site)
    assert code == 2
    assert "site H1: bags have 12 features per patch but the model needs 6" in err


def test_a_modality_that_the_model_does_not_know_is_named_and_left_out(run: Run, released: Released) -> None:
    before = table_of(run, released)
    cases = pd.read_parquet(released.site / "cases.parquet")["case_id"]
    pd.DataFrame({"case_id": cases, "ldh": 1.0}).to_csv(released.site / "lab.csv", index=False)
    with (released.site / "site.toml").open("a") as file:
        file.write('\n[paths.modalities]\nlab = "lab.csv"\n')
    code, _, err = run("predict", released.model, released.site)
    assert code == 0
    assert "modality lab is no input of this model" in err
    found = pd.read_parquet(released.site / "predictions.parquet").set_index("case_id").loc[before.index]
    pd.testing.assert_frame_equal(found, before)


def test_a_name_that_is_no_table_is_refused_before_anything_is_read(run: Run, tmp_path: Path) -> None:
    code, _, err = run("predict", tmp_path / "none", tmp_path / "none", "--out", "table.xlsx")
    assert code == 2
    assert "expected a name that ends in .parquet or .csv" in err


def test_a_model_changed_after_it_was_signed_is_refused(run: Run, released: Released, tmp_path: Path) -> None:
    sign_folder(released.model, SigningKey.create(tmp_path / "release.key"))
    assert run("predict", released.model, released.site)[0] == 0
    path = released.model / "preprocessing.json"
    path.write_text(path.read_text() + " ")
    code, _, err = run("predict", released.model, released.site)
    assert code == 2
    assert "preprocessing.json" in err


def test_nobody_knows_the_test_cases_of_a_model_trained_alone_on_hashed_splits(
    run: Run, tmp_path: Path, tiny_learner: Learner, tiny_study: Study, tiny_preprocessing: Preprocessing,
    tiny_cohort: Cohort,
) -> None:  # fmt: skip
    alone = tiny_study.model_copy(update={"roster": ("H1",)})
    cohort = replace(tiny_cohort, cases=tiny_cohort.cases.drop(columns="split"))
    made = release(tmp_path, tiny_learner, alone, tiny_preprocessing, cohort)
    code, _, err = run("predict", made.model, made.site, "--split", "test")
    assert code == 2
    assert "nobody can tell which ones it saw; take --split all" in err
    assert "nobody can tell which these are" in run("predict", made.model, made.site)[2]
    assert set(table_of(run, made)["split"]) == {"unknown"}


def test_a_baseline_predicts_the_cases_that_it_can_read_and_is_not_explained(
    run: Run, tmp_path: Path, tiny_study: Study, tiny_preprocessing: Preprocessing, tiny_cohort: Cohort
) -> None:
    study = baseline_study(tiny_study, "mlp")
    made = release(tmp_path, build_learner(study, tiny_preprocessing), study, tiny_preprocessing, tiny_cohort)
    table = table_of(run, made)
    unread = table["missing"].str.contains("expression")
    assert table["diagnosis.predicted"].isna().equals(unread)
    assert 0 < unread.sum() < len(table)
    assert "diagnosis.nearest_text" not in table
    assert table.loc[~unread, "survival.risk"].corr(table.loc[~unread, "survival.expected_months"], "spearman") < 0
    code, _, err = run("explain", made.model, made.site, "--cohort")
    assert code == 2
    assert "the model is a baseline (mlp)" in err


def test_patches_stay_on_disk_until_a_case_is_read(released: Released) -> None:
    at = model_at_site(released.model, released.site)
    assert not any(len(case.patches) for case in at.cases)
    steps: list[int] = []
    prediction_rows(at, [0, 2], lambda: steps.append(1))
    assert len(steps) == 2
