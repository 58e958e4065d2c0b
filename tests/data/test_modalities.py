"""Further modalities: report texts and tables of numbers, from a site's folder to vectors."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from pydantic import ValidationError

from modaltune.data.batch import collate, modalities_of, without_modality
from modaltune.data.cohort import Cohort
from modaltune.data.preprocessing import prepare
from modaltune.data.site import load_site
from modaltune.encoders.text import text_encoder
from modaltune.errors import ModalityError, ModelFileError, SiteFolderError
from modaltune.federation.inputs import ModalitySpec, TextSpec
from modaltune.federation.statistics import pooled_preprocessing, site_statistics, statistics_shapes
from modaltune.federation.study import Study
from modaltune.models.learner import OPTIONAL_PREFIXES, Learner, build_learner
from modaltune.storage import cache_folder
from modaltune.tasks.head import candidate_targets
from modaltune.training import fit
from tests.conftest import GENES

LAB = ModalitySpec(name="lab", columns=("ldh", "crp"), width=2, tokens=2)
NO_HASH = TextSpec(sha256="0" * 64)


def report() -> ModalitySpec:
    return ModalitySpec(name="report", text=TextSpec(sha256=text_encoder().sha256), width=384)


@pytest.fixture
def study(tiny_study: Study) -> Study:
    return tiny_study.model_copy(update={"modalities": (LAB,)})


@pytest.fixture
def cohort(tiny_cohort: Cohort) -> Cohort:
    """The tiny cohort with laboratory values of every second case."""
    cases = tiny_cohort.cases.index[::2]
    values = np.random.default_rng(3).normal(100, 20, (len(cases), 2)).astype(np.float32)
    lab = pd.DataFrame(values, index=cases, columns=["crp", "ldh"]).assign(other=np.float32(1))
    return replace(tiny_cohort, modalities={"lab": lab})


def a_learner(study: Study, cohort: Cohort) -> Learner:
    preprocessing = pooled_preprocessing({"H1": site_statistics(cohort, study, GENES)}, study, GENES)
    generator = torch.Generator().manual_seed(0)
    targets = {
        name: candidate_targets(torch.randn(len(space.candidates), 8, generator=generator), centre=True)
        for name, space in preprocessing.tasks.items()
    }
    return build_learner(study, preprocessing, targets).eval()


def test_numbers_are_standardised_with_the_sums_of_training_cases_only(study: Study, cohort: Cohort) -> None:
    parts = [
        replace(cohort, site=name, cases=cohort.cases.iloc[rows])
        for name, rows in (("H1", slice(0, 13)), ("H2", slice(13, 30)))
    ]
    replies = {part.site: site_statistics(part, study, GENES) for part in parts}
    assert {name: value.shape for name, value in replies["H1"].items()} == statistics_shapes(study, GENES)
    pooled = pooled_preprocessing(replies, study, GENES)
    train = cohort.modalities["lab"].loc[lambda t: t.index.isin(cohort.cases.index[cohort.cases["split"] == "train"])]
    scale = pooled.modalities["lab"]
    np.testing.assert_allclose(scale.mean, train[["ldh", "crp"]].mean(), rtol=1e-6)
    np.testing.assert_allclose(scale.deviation, train[["ldh", "crp"]].std(ddof=0), rtol=1e-5)
    prepared = prepare(cohort, study, pooled)
    rows = [case.vectors["lab"] for case in prepared if "lab" in case.vectors]
    assert len(rows) == 15
    assert ["lab" in case.vectors for case in prepared] == [row % 2 == 0 for row in range(30)]
    inside = torch.stack(
        [
            case.vectors["lab"]
            for case, split in zip(prepared, cohort.cases["split"], strict=True)
            if "lab" in case.vectors and split == "train"
        ]
    )
    torch.testing.assert_close(inside.mean(dim=0), torch.zeros(2), atol=1e-5, rtol=0)


def test_a_site_without_the_modality_reports_nothing_and_trains_its_missing_token(
    study: Study, cohort: Cohort, tiny_cohort: Cohort
) -> None:
    sums = site_statistics(tiny_cohort, study, GENES)
    assert float(sums["modality.lab.count"][0]) == 0
    learner = a_learner(study, cohort)
    own = pooled_preprocessing({"H1": site_statistics(cohort, study, GENES)}, study, GENES)
    without, some = prepare(tiny_cohort, study, own), prepare(cohort, study, own)
    spec = study.training.model_copy(update={"batch_size": 8, "modality_dropout": 0.0})
    counts = fit(learner, without, spec, steps=4, seed=0).examples
    encoder = [name for name in counts if name.startswith("modaltune.vector_encoders.lab.")]
    assert encoder
    assert all(counts[name] == 0 for name in encoder)
    assert counts["modaltune.missing.lab"] == len([case for case in without if case.targets])
    counts = fit(learner, some, spec, steps=4, seed=0).examples
    labelled = [case for case in some if case.targets]
    assert counts[encoder[0]] == sum("lab" in case.vectors for case in labelled)
    assert counts["modaltune.missing.lab"] == sum("lab" not in case.vectors for case in labelled)
    assert encoder[0].startswith(OPTIONAL_PREFIXES)


def test_a_batch_of_mixed_cases_equals_single_cases(study: Study, cohort: Cohort) -> None:
    learner = a_learner(study, cohort)
    with torch.no_grad():
        for parameter in learner.modaltune.missing.values():
            parameter.normal_(generator=torch.Generator().manual_seed(1))
    preprocessing = pooled_preprocessing({"H1": site_statistics(cohort, study, GENES)}, study, GENES)
    cases = prepare(cohort, study, preprocessing)[:8]
    together = learner.modaltune.embed(collate(cases))
    for row, case in enumerate(cases):
        torch.testing.assert_close(together[row], learner.modaltune.embed(collate([case]))[0], atol=1e-5, rtol=1e-4)
    case = cases[0]
    blind = without_modality(case, "lab")
    assert modalities_of(case) == [*modalities_of(blind), "lab"]
    assert not torch.allclose(learner.modaltune.embed(collate([blind]))[0], together[0], atol=1e-3)


@pytest.mark.parametrize("joined", ["sum", "cat"])
def test_every_parameter_of_the_modality_is_trained(joined: str, study: Study, cohort: Cohort) -> None:
    study = study.model_copy(update={"model": study.model.model_copy(update={"token_join": joined})})
    learner = a_learner(study, cohort)
    preprocessing = pooled_preprocessing({"H1": site_statistics(cohort, study, GENES)}, study, GENES)
    learner.modaltune.embed(collate(prepare(cohort, study, preprocessing)[:4])).square().sum().backward()
    own = [p for name, p in learner.named_parameters() if ".lab" in name]
    assert len(own) == 7
    assert all(parameter.grad is not None and bool(parameter.grad.any()) for parameter in own)


@pytest.mark.slow
def test_reports_are_embedded_at_the_site_and_enter_no_shared_cache(
    tiny_study: Study, tiny_cohort: Cohort, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    texts = pd.DataFrame({"text": ["invasive carcinoma", "no tumour"]}, index=tiny_cohort.cases.index[:2])
    cohort = replace(tiny_cohort, modalities={"report": texts})
    study = tiny_study.model_copy(update={"modalities": (report(),)})
    monkeypatch.setenv("MODALTUNE_CACHE", str(tmp_path))
    sums = site_statistics(cohort, study, GENES)
    assert not [name for name in sums if "report" in name], "texts need no statistics"
    cases = prepare(cohort, study, pooled_preprocessing({"H1": sums}, study, GENES))
    expected = text_encoder().encode(["invasive carcinoma", "no tumour"]) * 384**0.5
    torch.testing.assert_close(torch.stack([case.vectors["report"] for case in cases[:2]]), expected)
    assert "report" not in cases[2].vectors
    assert not list(cache_folder().rglob("*"))


def test_another_text_encoder_is_refused(tiny_study: Study, tiny_cohort: Cohort) -> None:
    texts = pd.DataFrame({"text": ["one"]}, index=tiny_cohort.cases.index[:1])
    cohort = replace(tiny_cohort, modalities={"report": texts})
    study = tiny_study.model_copy(update={"modalities": (report().model_copy(update={"text": NO_HASH}),)})
    preprocessing = pooled_preprocessing({"H1": site_statistics(cohort, study, GENES)}, study, GENES)
    with pytest.raises(ModelFileError, match=r"sha256 .* differs from the study's 000000000000"):
        prepare(cohort, study, preprocessing)


def test_columns_that_the_site_lacks_are_named(study: Study, cohort: Cohort) -> None:
    lab = cohort.modalities["lab"].drop(columns="ldh")
    with pytest.raises(ModalityError, match="H1: modality lab: 1 of 2 columns of the study are missing, first 'ldh'"):
        site_statistics(replace(cohort, modalities={"lab": lab}), study, GENES)


def test_numbers_where_the_study_reads_texts_are_refused(tiny_study: Study, cohort: Cohort) -> None:
    study = tiny_study.model_copy(update={"modalities": (report().model_copy(update={"name": "lab"}),)})
    preprocessing = pooled_preprocessing({"H1": site_statistics(cohort, study, GENES)}, study, GENES)
    with pytest.raises(ModalityError, match="the study reads a column 'text' and the table has 3 numeric ones"):
        prepare(cohort, study, preprocessing)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"name": "slides", "columns": ("a",), "width": 1}, "has a part of its own"),
        ({"name": "x", "width": 1}, "give either columns or a text encoder"),
        ({"name": "x", "columns": ("a",), "text": NO_HASH, "width": 1}, "give either columns or a text encoder"),
        ({"name": "x", "columns": ("a", "b"), "width": 3}, "width 3 but 2 different columns"),
        ({"name": "x", "columns": ("a", "a"), "width": 2}, "width 2 but 1 different columns"),
    ],
)
def test_a_study_says_what_a_modality_is(change: dict[str, object], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        ModalitySpec.model_validate(change)


SITE = """
name = "H1"
tasks = ["diagnosis"]
[paths]
cases = "cases.csv"
modalities = {report = "reports.csv", lab = "lab.csv"}
"""


@pytest.fixture
def site(tmp_path: Path) -> Path:
    (tmp_path / "site.toml").write_text(SITE)
    (tmp_path / "cases.csv").write_text("case_id,diagnosis\n01,a\n02,b\n03,a\n04,b\n")
    (tmp_path / "reports.csv").write_text("case_id,text\n03,a tumour\n01,'none'\n02,\n09,stranger\n")
    (tmp_path / "lab.csv").write_text("case_id,ldh,crp\n02,1,2.5\n01,3,4\n")
    return tmp_path


def test_a_site_brings_its_tables_in_the_order_of_its_cases(site: Path) -> None:
    cohort = load_site(site, split_salt="s")
    assert list(cohort.cases.index) == ["01", "02", "03"], "a case without any modality is left out"
    assert cohort.modalities["report"]["text"].to_dict() == {"01": "'none'", "03": "a tumour"}
    assert cohort.modalities["lab"].to_dict("index") == {"01": {"ldh": 3, "crp": 4}, "02": {"ldh": 1, "crp": 2.5}}


def _write(name: str, text: str) -> Callable[[Path], object]:
    return lambda site: (site / name).write_text(text)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        (_write("lab.csv", "case_id,ldh\n01,high\n"), ModalityError, r"H1: lab.csv: 1 measurement columns are not num"),
        (_write("lab.csv", "case_id,ldh\n01,\n02,1\n"), ModalityError, r"1 values are NaN .* 1 measurement columns"),
        (_write("lab.csv", "case_id,ldh\n01,1\n01,2\n"), ModalityError, r"case_id repeats an earlier one in 1 row"),
        (_write("reports.csv", "case_id,text\n01,a\n01,b\n"), ModalityError, r"reports.csv: case_id repeats"),
        (
            _write("reports.csv", "case_id,text\n77,a\n"),
            ModalityError,
            r"none of 1 rows belongs to a case of cases.csv",
        ),
        (_write("reports.csv", "patient,text\n01,a\n"), ModalityError, r"column 'case_id' is missing"),
        (lambda site: (site / "lab.csv").unlink(), ModalityError, r"lab.csv: no such file; correct its path"),
        (_write("site.toml", SITE.replace("lab =", '"l b" =')), SiteFolderError, r"paths.modalities"),
    ],
)
def test_a_table_that_cannot_be_used_is_one_line(
    change: Callable[[Path], object], error: type[Exception], message: str, site: Path
) -> None:
    change(site)
    with pytest.raises(error, match=message) as caught:
        load_site(site, split_salt="s")
    assert "high" not in str(caught.value)
    assert "\n" not in str(caught.value)
