from __future__ import annotations

import logging
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from modaltune.data.bags import read_bag, write_bag
from modaltune.data.site import hash_split, load_site, read_site_config
from modaltune.errors import CaseTableError, ExpressionError, FeatureFileError, LabelError, SiteFolderError
from tests.data.small_site import IDS, LABELS, TOML, edit, put, some_expression, write_small_site


@pytest.fixture
def site(tmp_path: Path) -> Path:
    return write_small_site(tmp_path / "H1")


def test_a_site_becomes_a_cohort(site: Path) -> None:
    cohort = load_site(site, split_salt="s", labels=LABELS)
    assert cohort.site == "H1"
    assert cohort.tasks == ("diagnosis", "stage", "survival")
    assert list(cohort.cases.index) == IDS[:7]
    assert list(cohort.cases.columns) == ["split", "diagnosis", "stage", "time_months", "event", "age", "sex"]
    assert cohort.cases["diagnosis"].tolist() == ["ductal", "lobular", None, "ductal", "lobular", "ductal", "ductal"]
    assert cohort.cases["stage"].tolist() == ["I", "II", "III", "IV", None, "II", "III"]
    assert cohort.cases["sex"].tolist() == ["female", "male", None, "male", "female", "female", "male"]
    assert cohort.patch_width == 4


def test_expression_is_single_precision_in_the_order_of_the_cases(site: Path) -> None:
    expression = load_site(site, split_salt="s").expression
    assert expression is not None
    assert list(expression.index) == IDS[:6]
    assert set(expression.dtypes) == {np.dtype("float32")}
    np.testing.assert_allclose(expression.loc[IDS[5]], some_expression().iloc[0, 1:].astype(float), rtol=1e-6)


def test_slides_of_a_case_are_ordered_by_slide_id(site: Path) -> None:
    bags = load_site(site, split_salt="s").bags
    assert list(bags) == [*IDS[:4], IDS[6]]
    assert [np.asarray(bag.features)[0, 0] for bag in bags[IDS[0]]] == [1, 0]


def test_files_of_another_encoder_are_refused_naming_both_rows(site: Path) -> None:
    file = site / "features" / f"{IDS[1]}-S7.h5"
    write_bag(file, read_bag(file), encoder="gigapath")
    message = r"site H1: slides.csv, file of row 3: patch encoder gigapath but test in site H1: slides.csv, file of row"
    with pytest.raises(FeatureFileError, match=message) as caught:
        load_site(site, split_salt="s")
    assert "TCGA" not in str(caught.value)


def test_the_site_file_gives_the_patch_edge_that_tensors_do_not_state(site: Path) -> None:
    for file in (site / "features").glob("*.h5"):
        bag = read_bag(file)
        torch.save({"features": torch.from_numpy(bag.features), "coords": torch.from_numpy(bag.coords)}, file)
    with pytest.raises(FeatureFileError, match=r"set patch_size_level0 under \[features\] in site.toml"):
        load_site(site, split_salt="s")
    settings = site / "site.toml"
    settings.write_text(settings.read_text() + "\n[features]\npatch_size_level0 = 512\n")
    cohort = load_site(site, split_salt="s")
    assert {bag.patch_size_level0 for bags in cohort.bags.values() for bag in bags} == {512}
    settings.write_text(settings.read_text().replace("patch_size_level0", "patch_size"))
    with pytest.raises(SiteFolderError, match=r"unknown key 'features\.patch_size'; known keys: patch_size_level0"):
        load_site(site, split_salt="s")


def test_a_case_with_neither_modality_is_left_out_and_counted(site: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        load_site(site, split_salt="s")
    assert "1 of 8 cases left out" in caplog.text
    assert "TCGA" not in caplog.text


def test_expression_rows_of_strangers_are_ignored_and_counted(site: Path, caplog: pytest.LogCaptureFixture) -> None:
    edit(site, "expression.parquet", put("case_id", 1, "TCGA-ZZ-9999"))
    assert len(load_site(site, split_salt="s").expression) == 5  # type: ignore[arg-type]
    assert "1 of 6 rows belong to no case" in caplog.text


def test_columns_of_unlisted_tasks_and_other_columns_are_not_read(site: Path) -> None:
    (site / "site.toml").write_text(TOML.replace('"diagnosis", "stage", "survival"', '"diagnosis"'))
    assert list(load_site(site, split_salt="s").cases.columns) == ["split", "diagnosis", "age", "sex"]


def test_local_columns_and_codes_are_mapped(site: Path) -> None:
    edit(site, "cases.parquet", lambda cases: cases.rename(columns={"case_id": "pid", "diagnosis": "icd"}))
    edit(site, "cases.parquet", lambda cases: cases.assign(icd=[1, 2, 1, 2, 3, 1, 1, 1], kps=80))
    mapping = '[columns]\ncase_id = "pid"\ndiagnosis = "icd"\nkarnofsky = "kps"\n'
    codes = '[labels.diagnosis]\n"1" = "ductal"\n"2" = "lobular"\n"3" = ""\n'
    (site / "site.toml").write_text(TOML + mapping + codes)
    cases = load_site(site, split_salt="s", labels=LABELS).cases
    assert cases["diagnosis"].tolist() == ["ductal", "lobular", "ductal", "lobular", None, "ductal", "ductal"]
    assert cases["karnofsky"].eq(80).all()


def rename(site: Path, table: str, **names: str) -> None:
    edit(site, table, lambda frame: frame.rename(columns=names))


def test_a_mapping_holds_for_the_slides_table_and_the_splits_file_too(site: Path) -> None:
    expected = load_site(site, split_salt="s", labels=LABELS)
    for table in ("cases.parquet", "expression.parquet", "slides.csv"):
        rename(site, table, case_id="patient", slide_id="scan", file="bag")
    edit(site, "cases.parquet", lambda cases: cases.drop(columns="split"))
    pd.DataFrame({"patient": IDS, "split": ["train"] * 5 + ["val"] + ["test"] * 2}).to_csv(site / "s.csv", index=False)
    mapping = '[columns]\ncase_id = "patient"\nslide_id = "scan"\nfile = "bag"\n[splits]\nfile = "s.csv"\n'
    (site / "site.toml").write_text(TOML + mapping)
    cohort = load_site(site, split_salt="s", labels=LABELS)
    pd.testing.assert_frame_equal(cohort.cases, expected.cases)
    assert list(cohort.bags) == list(expected.bags)


def test_a_mapped_column_that_the_slides_table_lacks_is_asked_for_by_its_local_name(site: Path) -> None:
    rename(site, "cases.parquet", case_id="patient")
    rename(site, "slides.csv", case_id="owner")
    (site / "site.toml").write_text(TOML + '[columns]\ncase_id = "patient"\n')
    with pytest.raises(FeatureFileError, match=r"slides.csv: column 'patient' is missing among 3"):
        load_site(site, split_salt="s")


def as_gdc(slides: pd.DataFrame) -> pd.DataFrame:
    """GDC's slide.tsv: its slide_id and case_id are other numbers, and it lists slides that nobody extracted."""
    names = slides.rename(columns={"slide_id": "slide_submitter_id", "case_id": "case_submitter_id"})
    more = {"slide_submitter_id": "TCGA-ZZ-0001-01A-01-TS1", "case_submitter_id": "TCGA-ZZ-0001"}
    names = pd.concat([names.drop(columns="file"), pd.DataFrame([more])], ignore_index=True)
    return names.assign(case_id=[f"uuid-{row}" for row in names.index], slide_id="uuid")


def test_gdcs_slide_table_finds_feature_files_by_name(site: Path, caplog: pytest.LogCaptureFixture) -> None:
    expected = load_site(site, split_salt="s").bags
    file = site / "features" / f"{IDS[1]}-S7.h5"
    file.rename(file.with_name(f"{IDS[1]}-S7.0F5A-11.h5"))
    as_gdc(pd.read_csv(site / "slides.csv")).to_csv(site / "slide.tsv", sep="\t", index=False)
    (site / "site.toml").write_text(TOML.replace("slides.csv", "slide.tsv"))
    bags = load_site(site, split_salt="s").bags
    assert {case: len(bags[case]) for case in bags} == {case: len(expected[case]) for case in expected}
    assert "1 of 7 slides left out: no feature file has their name" in caplog.text
    (site / "features" / f"{IDS[1]}-S7.h5").touch()
    with pytest.raises(FeatureFileError, match=r"several feature files .* 1 row \(first: row 3\); add a column 'file'"):
        load_site(site, split_salt="s")


def test_a_table_without_a_file_column_needs_the_file_of_every_slide(site: Path) -> None:
    edit(site, "slides.csv", lambda slides: slides.drop(columns="file"))
    assert len(load_site(site, split_salt="s").bags) == 5
    (site / "features" / f"{IDS[1]}-S7.h5").unlink()
    with pytest.raises(FeatureFileError, match=r"the feature file is absent in 1 row \(first: row 3\)"):
        load_site(site, split_salt="s")


def test_only_feature_files_count_where_files_are_found_by_name(site: Path) -> None:
    edit(site, "slides.csv", lambda slides: slides.drop(columns="file"))
    stem = f"{IDS[1]}-S7"
    for suffix in (".json", ".png", ".log"):
        (site / "features" / f"{stem}{suffix}").touch()
    (site / "features" / stem).mkdir()
    (site / "features" / f"{stem}.pt").mkdir()
    assert len(load_site(site, split_salt="s").bags) == 5


@pytest.mark.parametrize("linked", [False, True])
def test_a_feature_file_of_two_slides_is_refused_under_any_name(linked: bool, site: Path) -> None:
    first, name = f"{IDS[0]}-S9.h5", "again.h5" if linked else f"../features/{IDS[0]}-S9.h5"
    if linked:
        (site / "features" / name).symlink_to(site / "features" / first)
    edit(site, "slides.csv", put("file", 4, name))
    with pytest.raises(
        FeatureFileError, match=r"several slides in 2 rows \(first: row 1\); name each slide's own file"
    ):
        load_site(site, split_salt="s")


@pytest.mark.parametrize("suffix", [".csv", ".tsv"])
def test_text_tables_give_the_same_cohort(suffix: str, site: Path) -> None:
    expected = load_site(site, split_salt="s", labels=LABELS)
    for name in ("cases", "expression"):
        table = pd.read_parquet(site / f"{name}.parquet")
        table.to_csv(site / f"{name}{suffix}", sep="\t" if suffix == ".tsv" else ",", index=False, na_rep="'--")
    (site / "site.toml").write_text(TOML.replace(".parquet", suffix))
    cohort = load_site(site, split_salt="s", labels=LABELS)
    pd.testing.assert_frame_equal(cohort.cases, expected.cases)
    pd.testing.assert_frame_equal(cohort.expression, expected.expression)  # type: ignore[arg-type]


def test_leading_zeros_of_identifiers_are_kept_in_text_tables(site: Path) -> None:
    numbers = {case: f"{row:04d}" for row, case in enumerate(IDS)}
    for name in ("cases", "expression"):
        table = pd.read_parquet(site / f"{name}.parquet")
        table.replace({"case_id": numbers}).to_csv(site / f"{name}.csv", index=False)
    (site / "site.toml").write_text(TOML.replace(".parquet", ".csv").split("slides")[0])
    assert list(load_site(site, split_salt="s").cases.index) == [f"{row:04d}" for row in range(6)]


def test_without_a_split_column_a_salted_hash_decides_for_ever(site: Path) -> None:
    (site / "site.toml").write_text(TOML.split("slides")[0])
    edit(site, "cases.parquet", lambda cases: cases.drop(columns="split"))
    first = load_site(site, split_salt="a").cases["split"]
    edit(site, "cases.parquet", lambda cases: cases.iloc[[5, 2, 0]])
    fewer = load_site(site, split_salt="a").cases["split"]
    assert fewer.to_dict() == first[fewer.index].to_dict()


def test_the_hash_split_has_its_shares_and_depends_on_the_salt() -> None:
    cases = [f"case-{number}" for number in range(20_000)]
    split = pd.Series([hash_split(case, "a") for case in cases])
    shares = split.value_counts(normalize=True)
    assert shares["train"] == pytest.approx(0.65, abs=0.01)
    assert shares["val"] == pytest.approx(0.10, abs=0.01)
    assert shares["test"] == pytest.approx(0.25, abs=0.01)
    assert [hash_split(case, "b") for case in cases] != split.tolist()


def test_a_site_may_lack_either_modality(site: Path) -> None:
    (site / "site.toml").write_text(TOML.replace('expression = "expression.parquet"\n', ""))
    assert load_site(site, split_salt="s").expression is None
    (site / "site.toml").write_text(TOML.split("slides")[0])
    cohort = load_site(site, split_salt="s")
    assert dict(cohort.bags) == {}
    assert cohort.patch_width is None


CONFIGS = {
    "not TOML": ("name = ", "not valid TOML"),
    "unknown key": (TOML.replace("name", "nmae", 1), "unknown key 'nmae'|'name' is missing"),
    "unknown path": (
        TOML + 'genes = "x"\n',
        "unknown key 'paths.genes'; known keys: cases, expression, slides, features",
    ),
    "unknown policy": (TOML + "[policy]\nmin_cel = 3\n", "unknown key 'policy.min_cel'; known keys: min_cell"),
    "policy": (TOML + "[policy]\nmin_cell = 0\n", "policy.min_cell: .*greater than or equal to 1"),
    "no name": (TOML.replace('name = "H1"\n', ""), "'name' is missing"),
    "bad name": (TOML.replace("H1", "../H1"), "name: "),
    "no task": (TOML.replace('"diagnosis", "stage", "survival"', ""), "tasks: "),
    "task twice": (TOML.replace('"stage"', '"diagnosis"'), "names a task twice"),
    "stray mapping": (TOML + '[labels.grade]\n"1" = "G1"\n', r"\[labels.grade\] is for a task"),
    "half a modality": (TOML.replace('features = "features"\n', ""), "go together"),
}


@pytest.mark.parametrize("name", CONFIGS)
def test_a_wrong_site_file_is_one_line(name: str, site: Path) -> None:
    text, message = CONFIGS[name]
    (site / "site.toml").write_text(text)
    with pytest.raises(SiteFolderError, match=message) as caught:
        read_site_config(site)
    assert "\n" not in str(caught.value)


def test_an_absent_folder_or_site_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(SiteFolderError, match="no such site folder"):
        read_site_config(tmp_path / "nowhere")
    with pytest.raises(SiteFolderError, match=r"site.toml is missing"):
        read_site_config(tmp_path)


def test_a_site_without_a_usable_case_is_named(site: Path) -> None:
    (site / "site.toml").write_text(TOML.split("expression")[0])
    with pytest.raises(SiteFolderError, match="site H1: none of 8 cases has a slide or a row of expression or"):
        load_site(site, split_salt="s")


@pytest.mark.parametrize("value", [f"x {IDS[4]}", "63.5", "long text " * 10])
def test_a_label_that_may_be_patient_data_is_not_shown(value: str, site: Path) -> None:
    edit(site, "cases.parquet", put("diagnosis", 2, value))
    with pytest.raises(LabelError, match="labels outside the vocabulary in 1 row") as caught:
        load_site(site, split_salt="s", labels=LABELS)
    assert value not in str(caught.value)
    assert r"[labels.diagnosis]" in str(caught.value)


def test_a_gene_twice_in_a_text_table_is_found(site: Path) -> None:
    (site / "expression.csv").write_text(f"case_id,TP53,TP53\n{IDS[0]},1,2\n")
    (site / "site.toml").write_text(TOML.replace("expression.parquet", "expression.csv"))
    with pytest.raises(ExpressionError, match=r"occur twice \(first: column 3\)"):
        load_site(site, split_salt="s")


def test_a_parquet_table_may_keep_its_case_id_in_the_index(site: Path) -> None:
    for name in ("cases.parquet", "expression.parquet"):
        edit(site, name, lambda frame: frame.set_index("case_id"))
    assert list(load_site(site, split_salt="s", labels=LABELS).cases.index) == IDS[:7]


def test_a_mapped_column_that_is_absent_is_named(site: Path) -> None:
    (site / "site.toml").write_text(TOML + '[columns]\nage = "age_at_index"\n')
    with pytest.raises(CaseTableError, match="'age_at_index' named in"):
        load_site(site, split_salt="s")


def test_an_unknown_table_format_lists_the_known_ones(site: Path) -> None:
    (site / "cases.sav").write_text("")
    (site / "site.toml").write_text(TOML.replace("cases.parquet", "cases.sav"))
    with pytest.raises(CaseTableError, match=r"choose from .parquet, .csv, .tsv"):
        load_site(site, split_salt="s")
