from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from modaltune.data.cohort import Bag, Cohort
from modaltune.data.preprocessing import Preprocessing, Scale
from modaltune.errors import FeatureFileError, FederationError
from modaltune.federation.inputs import ClinicalColumn
from modaltune.federation.settings import PrivacySpec
from modaltune.federation.statistics import (
    Sums,
    may_be_told,
    pool_sums,
    pooled_preprocessing,
    site_statistics,
    statistics_shapes,
)
from modaltune.federation.study import Study
from modaltune.tasks.survival import bin_edges, bin_times, event_histogram

SITES = ("H1", "H2", "H3")
COPIES = 3
partitions = st.lists(st.sampled_from(SITES), min_size=90, max_size=90)


@pytest.fixture(scope="module")
def hospital(tiny_cohort: Cohort) -> Cohort:
    """Ninety cases: the tiny cohort three times over, every copy with a shift of its own."""
    frames, genes, bags = [], [], {}
    for copy in range(COPIES):
        names = {case: f"{case}-{copy}" for case in tiny_cohort.cases.index}
        frame = tiny_cohort.cases.rename(index=names)
        frame[["age", "time_months"]] += [float(copy), float(7 * copy)]
        frames.append(frame)
        assert tiny_cohort.expression is not None
        genes.append(tiny_cohort.expression.rename(index=names) + np.float32(0.5 * copy))
        bags |= {
            names[case]: tuple(replace(bag, features=bag.features - np.float32(copy)) for bag in slides)
            for case, slides in tiny_cohort.bags.items()
        }
    return replace(tiny_cohort, cases=pd.concat(frames), expression=pd.concat(genes), bags=bags)


def test_a_measurement_whose_value_all_but_a_few_cases_share_is_not_told() -> None:
    rows = np.tile(np.arange(30.0)[:, None], 5)
    rows[:, 1:] = [0.0, 7.0, 0.0, 1.0]
    rows[[4], 1], rows[:5, 3], rows[:2, 4] = 3.1415, 1.0, -2.5
    told = may_be_told(rows, 5)
    assert list(told) == [True, False, True, True, False], "all differ, of one patient, constant, of five, of two"
    halves = np.repeat([[0.0], [1.0]], 4, axis=0)
    assert not may_be_told(halves, 5).any(), "four have it and four have not"
    assert may_be_told(rows[:5, :1], 5).all()
    assert may_be_told(rows, 1).all(), "without suppression all are told"
    assert not may_be_told(rows[:0], 1).any()
    assert not may_be_told(rows[:4], 5).any()


def test_sums_of_a_site_do_not_tell_the_one_patient_who_has_a_gene(hospital: Cohort, tiny_study: Study) -> None:
    assert hospital.expression is not None
    expression, train = hospital.expression.copy(), hospital.cases.index[hospital.cases["split"] == "train"]
    genes = [str(gene) for gene in expression.columns]
    expression[genes[0]] = 0.0
    expression.loc[expression.index.isin(train[:1]), genes[0]] = 3.1415
    study = tiny_study.model_copy(update={"privacy": PrivacySpec(min_cell=5)})
    sums = site_statistics(replace(hospital, expression=expression), study, genes)
    assert sums["expression.sum"][0] == sums["expression.squares"][0] == sums["expression.count"][0] == 0
    assert sums["expression.count"][1] > 5
    other = site_statistics(hospital, study, genes)
    pooled = pooled_preprocessing({"H1": sums, "H2": other}, study, genes)
    assert pooled.suppressed["expression"] == ("H1",)
    assert pooled.expression is not None
    assert pooled.expression.mean[0] == pytest.approx(other["expression.sum"][0] / other["expression.count"][0])


def part_of(cohort: Cohort, site: str, ids: Iterable[str]) -> Cohort:
    chosen = [case for case in cohort.cases.index if case in set(ids)]
    expression = cohort.expression
    return replace(
        cohort,
        site=site,
        cases=cohort.cases.loc[chosen],
        expression=None if expression is None else expression[expression.index.isin(chosen)],
        bags={case: cohort.bags[case] for case in chosen if case in cohort.bags},
    )


def split_up(cohort: Cohort, owners: list[str]) -> dict[str, Cohort]:
    held = {
        site: [case for case, owner in zip(cohort.cases.index, owners, strict=True) if owner == site] for site in SITES
    }
    return {site: part_of(cohort, site, ids) for site, ids in held.items()}


def replies(sites: dict[str, Cohort], study: Study) -> dict[str, Sums]:
    return {site: site_statistics(cohort, study, genes_of(cohort)) for site, cohort in sites.items()}


def genes_of(cohort: Cohort) -> list[str]:
    assert cohort.expression is not None
    return list(cohort.expression.columns)


def with_minimum(study: Study, minimum: int) -> Study:
    return study.model_copy(update={"privacy": PrivacySpec(min_cell=minimum)})


def assert_scale(found: Scale | None, rows: np.ndarray) -> None:
    assert found is not None
    np.testing.assert_allclose(found.mean, rows.mean(axis=0), rtol=1e-9, atol=1e-9)
    np.testing.assert_allclose(found.deviation, rows.std(axis=0), rtol=1e-9, atol=1e-9)


def training(cohort: Cohort) -> pd.DataFrame:
    return cohort.cases[cohort.cases["split"] == "train"]


def gene_rows(cohort: Cohort) -> np.ndarray:
    assert cohort.expression is not None
    return cohort.expression[cohort.expression.index.isin(training(cohort).index)].to_numpy(np.float64)


def patch_rows(cohort: Cohort) -> np.ndarray:
    bags = [bag.features for case in training(cohort).index for bag in cohort.bags.get(case, ())]
    return np.concatenate([np.zeros((0, 6)), *bags]).astype(np.float64)


def ages(cohort: Cohort) -> np.ndarray:
    return training(cohort)["age"].dropna().to_numpy()[:, None]


def deaths(cohort: Cohort) -> np.ndarray:
    train = training(cohort)
    return train.loc[train["event"] == 1, "time_months"].to_numpy()


def pooled(sites: dict[str, Cohort], study: Study) -> Preprocessing:
    return pooled_preprocessing(replies(sites, study), study, genes_of(next(iter(sites.values()))))


@given(owners=partitions)
@settings(max_examples=15, deadline=None)
def test_any_partition_into_sites_gives_the_statistics_of_all_cases_together(
    owners: list[str], hospital: Cohort, tiny_study: Study
) -> None:
    found = pooled(split_up(hospital, owners), tiny_study)
    assert_scale(found.expression, gene_rows(hospital))
    assert_scale(found.patches, patch_rows(hospital))
    assert_scale(found.clinical["age"], ages(hospital))
    together = pooled({"all": hospital}, tiny_study)
    assert found.tasks == together.tasks
    assert found.gene_sets == together.gene_sets


@pytest.mark.parametrize("rows", [1, 2, 1000])
def test_sums_over_slabs_equal_those_of_all_patches_at_once(
    rows: int, hospital: Cohort, tiny_study: Study, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("modaltune.data.features.SLAB_BYTES", 4 * 6 * rows)
    sums, together = site_statistics(hospital, tiny_study, []), patch_rows(hospital)
    assert sums["patches.count"] == len(together)
    np.testing.assert_allclose(sums["patches.sum"], together.sum(axis=0), rtol=1e-12)
    np.testing.assert_allclose(sums["patches.squares"], (together**2).sum(axis=0), rtol=1e-12)


def test_candidates_and_bins_of_all_cases_together_are_those_of_the_training_cases(
    hospital: Cohort, tiny_study: Study
) -> None:
    tasks = pooled({"all": hospital}, tiny_study).tasks
    assert tasks["diagnosis"].candidates == ("alpha", "beta", "gamma")
    assert tasks["diagnosis"].texts == ("text of alpha.", "text of beta.", "text of gamma.")
    histogram = event_histogram(deaths(hospital), np.ones(len(deaths(hospital)), dtype=bool))
    assert tasks["survival"].bin_edges == bin_edges(histogram, 3)
    assert tasks["survival"].bin_times == bin_times(histogram, bin_edges(histogram, 3))
    assert tasks["survival"].texts == ("early.", "middle.", "late.")


@given(owners=st.lists(st.sampled_from(["H1", "H1", "H1", "H2", "H2", "H3"]), min_size=90, max_size=90))
@settings(max_examples=15, deadline=None)
def test_with_suppression_the_statistics_are_those_of_the_sites_that_report(
    owners: list[str], hospital: Cohort, tiny_study: Study
) -> None:
    minimum, sites = 8, split_up(hospital, owners)
    study = with_minimum(tiny_study, minimum)
    reported = {task: reported_values(sites, task, minimum) for task in ("diagnosis", "stage")}
    times = np.concatenate([np.zeros(0), *(t for t in map(deaths, sites.values()) if len(t) >= minimum)])
    if min(map(len, reported.values())) < 2 or len(times) < 3:
        with pytest.raises(FederationError, match=r"lower privacy\.min_cell"):
            pooled(sites, study)
        return
    found = pooled(sites, study)
    for task, values in reported.items():
        assert set(found.tasks[task].candidates) == values
    histogram = event_histogram(times, np.ones(len(times), dtype=bool))
    assert found.tasks["survival"].bin_edges == bin_edges(histogram, 3)

    def assert_group(group: str, scale: Scale | None, rows: dict[str, np.ndarray], cases: dict[str, int]) -> None:
        reporting = [site for site in SITES if cases[site] >= minimum]
        assert found.suppressed.get(group, ()) == tuple(site for site in SITES if site not in reporting)
        if reporting:
            assert_scale(scale, np.concatenate([rows[site] for site in reporting]))
        else:
            assert scale is None

    genes = {site: gene_rows(cohort) for site, cohort in sites.items()}
    assert_group("expression", found.expression, genes, {site: len(rows) for site, rows in genes.items()})
    slides = {site: sum(case in c.bags for case in training(c).index) for site, c in sites.items()}
    assert_group("patches", found.patches, {site: patch_rows(cohort) for site, cohort in sites.items()}, slides)
    years = {site: ages(cohort) for site, cohort in sites.items()}
    counts = {site: len(rows) for site, rows in years.items()}
    assert_group("clinical.age", found.clinical.get("age"), years, counts)


def reported_values(sites: dict[str, Cohort], task: str, minimum: int) -> set[str]:
    counts = [training(cohort)[task].value_counts() for cohort in sites.values()]
    return {str(value) for count in counts for value, cases in count.items() if cases >= minimum}


@given(draw=st.randoms(use_true_random=False))
@settings(max_examples=10, deadline=None)
def test_validation_and_test_cases_change_nothing(draw: object, hospital: Cohort, tiny_study: Study) -> None:
    rng = np.random.default_rng(draw.getrandbits(32))  # type: ignore[attr-defined]
    frame = hospital.cases.copy()
    other = (frame["split"] != "train").to_numpy()
    shuffled = frame.loc[other, frame.columns != "split"].iloc[rng.permutation(other.sum())].to_numpy()
    frame.loc[other, frame.columns != "split"] = shuffled
    frame.loc[other, ["time_months", "event", "age"]] = rng.random((other.sum(), 3))
    assert hospital.expression is not None
    expression = hospital.expression.copy()
    elsewhere = expression.index.isin(frame.index[other])
    expression.loc[elsewhere] = rng.normal(size=(int(elsewhere.sum()), expression.shape[1]))
    train = set(frame.index[~other])
    bags = {
        case: slides if case in train else tuple(replace(bag, features=bag.features + 1) for bag in slides)
        for case, slides in hospital.bags.items()
    }
    changed = replace(hospital, cases=frame, expression=expression, bags=bags)
    genes = genes_of(hospital)
    before, after = (site_statistics(cohort, tiny_study, genes) for cohort in (hospital, changed))
    assert before.keys() == after.keys()
    for name, value in before.items():
        np.testing.assert_array_equal(after[name], value, err_msg=name)


def test_a_training_case_changes_the_statistics(hospital: Cohort, tiny_study: Study) -> None:
    fewer = part_of(hospital, "H1", [case for case in hospital.cases.index if case != "PATIENT-00-0"])
    before, after = (site_statistics(cohort, tiny_study, genes_of(hospital)) for cohort in (hospital, fewer))
    unchanged = {name for name, value in before.items() if np.array_equal(after[name], value)}
    assert unchanged <= {"labels.survival"}  # a censored case is not in the histogram of deaths


def same_rows(cohort: Cohort, rows: int) -> Cohort:
    bag = Bag(
        features=np.ones((rows, 6), dtype=np.float32), coords=np.zeros((rows, 2), dtype=np.int64), patch_size_level0=256
    )
    return replace(cohort, bags=dict.fromkeys(cohort.bags, (bag,)))


@pytest.mark.parametrize("standardise", ["none", "feature", "position"])
@pytest.mark.parametrize("genes", [0, 4])
@pytest.mark.parametrize("absent", ["nothing", "expression", "slides", "clinical", "labels", "cases"])
def test_what_a_site_sends_has_the_shapes_of_the_manifest(
    standardise: str, genes: int, absent: str, tiny_cohort: Cohort, tiny_study: Study
) -> None:
    slides = tiny_study.slides.model_copy(update={"standardise": standardise, "rows": 4})
    study = tiny_study.model_copy(update={"slides": slides})
    cohort = same_rows(tiny_cohort, 4)
    panel = genes_of(cohort)[:genes]
    poorer = {
        "nothing": cohort,
        "expression": replace(cohort, expression=None),
        "slides": replace(cohort, bags={}),
        "clinical": replace(cohort, cases=cohort.cases.drop(columns=["age", "sex"])),
        "labels": replace(cohort, tasks=("survival",), cases=cohort.cases.drop(columns=["diagnosis", "stage"])),
        "cases": part_of(cohort, "H1", []),
    }
    sums = site_statistics(poorer[absent], study, panel)
    assert {name: value.shape for name, value in sums.items()} == statistics_shapes(study, panel)
    assert {str(value.dtype) for value in sums.values()} == {"float64"}


def test_sums_hold_nothing_about_a_group_that_is_too_small(tiny_cohort: Cohort, tiny_study: Study) -> None:
    sums = site_statistics(tiny_cohort, with_minimum(tiny_study, 1000), genes_of(tiny_cohort))
    assert not any(value.any() for value in sums.values())


def test_the_larger_of_the_studys_and_the_sites_minimum_counts(tiny_cohort: Cohort, tiny_study: Study) -> None:
    genes = genes_of(tiny_cohort)
    by_site = site_statistics(tiny_cohort, tiny_study, genes, min_cell=6)
    by_study = site_statistics(tiny_cohort, with_minimum(tiny_study, 6), genes, min_cell=2)
    open_ = site_statistics(tiny_cohort, tiny_study, genes)
    assert all(np.array_equal(by_site[name], by_study[name]) for name in by_site)
    assert by_site["labels.stage"].sum() < open_["labels.stage"].sum()
    assert all(count == 0 or count >= 6 for count in by_site["labels.stage"])


def test_a_task_that_a_site_does_not_hold_is_not_counted(tiny_cohort: Cohort, tiny_study: Study) -> None:
    sums = site_statistics(replace(tiny_cohort, tasks=("stage",)), tiny_study, [])
    assert sums["labels.stage"].any()
    assert not sums["labels.diagnosis"].any()
    assert not sums["labels.survival"].any()


def test_the_pool_does_not_depend_on_the_order_of_replies(hospital: Cohort, tiny_study: Study) -> None:
    owners = [SITES[index % 3] for index in range(90)]
    received = replies(split_up(hospital, owners), tiny_study)
    forward, backward = pool_sums(received), pool_sums(dict(reversed(received.items())))
    assert all(np.array_equal(forward[name], backward[name]) for name in forward)


def test_a_gene_that_never_varies_has_no_deviation(tiny_cohort: Cohort, tiny_study: Study) -> None:
    assert tiny_cohort.expression is not None
    flat = tiny_cohort.expression.assign(G03=np.float32(0.1))
    scale = pooled({"H1": replace(tiny_cohort, expression=flat)}, tiny_study).expression
    assert scale is not None
    assert scale.deviation[3] == 0
    assert min(scale.deviation[:3]) > 0.1


def test_per_position_statistics_keep_rows_apart(tiny_cohort: Cohort, tiny_study: Study) -> None:
    slides = tiny_study.slides.model_copy(update={"standardise": "position", "rows": 2})
    study = tiny_study.model_copy(update={"slides": slides})
    bags = {
        case: (replace(bags[0], features=np.arange(12, dtype=np.float32).reshape(2, 6), coords=np.zeros((2, 2), int)),)
        for case, bags in tiny_cohort.bags.items()
    }
    scale = pooled({"H1": replace(tiny_cohort, bags=bags)}, study).patches
    assert scale is not None
    assert scale.mean == tuple(range(12))


def test_a_bag_of_another_length_is_refused_by_position(tiny_cohort: Cohort, tiny_study: Study) -> None:
    slides = tiny_study.slides.model_copy(update={"standardise": "position", "rows": 2})
    study = tiny_study.model_copy(update={"slides": slides})
    with pytest.raises(FeatureFileError, match=r"site H1: a bag has 3 rows .* needs 2") as caught:
        site_statistics(same_rows(tiny_cohort, 3), study, [])
    assert "PATIENT" not in str(caught.value)


def test_too_few_deaths_for_the_time_bins_are_an_error(tiny_cohort: Cohort, tiny_study: Study) -> None:
    alive = replace(tiny_cohort, cases=tiny_cohort.cases.assign(event=0.0))
    with pytest.raises(FederationError, match="task survival: 0 deaths reported in training cases, 3 time bins"):
        pooled({"H1": alive}, tiny_study)


def test_a_task_with_one_label_is_an_error(tiny_cohort: Cohort, tiny_study: Study) -> None:
    one = replace(tiny_cohort, cases=tiny_cohort.cases.assign(diagnosis="alpha"))
    with pytest.raises(FederationError, match="task diagnosis: 1 label value"):
        pooled({"H1": one}, tiny_study)


def test_sites_that_all_hold_back_are_an_error(tiny_cohort: Cohort, tiny_study: Study) -> None:
    with pytest.raises(FederationError, match="no site reported 100 or more training cases"):
        pooled({"H1": tiny_cohort}, with_minimum(tiny_study, 100))


def test_a_study_without_numbers_or_genes_needs_no_scales(tiny_cohort: Cohort, tiny_study: Study) -> None:
    slides = tiny_study.slides.model_copy(update={"standardise": "none"})
    sex = (ClinicalColumn(name="sex", values=("female", "male")),)
    study = tiny_study.model_copy(update={"slides": slides, "clinical": sex})
    found = pooled_preprocessing({"H1": site_statistics(tiny_cohort, study, [])}, study, [])
    assert (found.expression, found.patches, found.clinical, found.gene_sets) == (None, None, {}, {})
