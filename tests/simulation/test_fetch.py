from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from modaltune.data.tcga import DIAGNOSES, read_tcga
from modaltune.errors import ConfigError, DataError, FetchError
from modaltune.storage import digest_file
from simulation.fetch.cohort import Wanted, fetch_cohort
from simulation.fetch.connection import ATTEMPTS, Connection
from tests.simulation.fake_tcga import GENES, FakeTcga, Fault, barcode, breast_cohort, case, matrix, serve

MATRIX = "/download/TCGA.BRCA.sampleMap/HiSeqV2.gz"


@pytest.fixture
def tcga() -> Iterator[FakeTcga]:
    with serve(breast_cohort()) as fake:
        yield fake


def quiet(what: str, done: int, total: int | None) -> None:
    pass


def fetch(fake: FakeTcga, out: Path, **options: Any) -> dict[str, Any]:
    wanted = Wanted(**({"cohort": "BRCA", "gdc": fake.url, "xena": fake.url} | options))
    return fetch_cohort(wanted, out, Connection(backoff=0.001), quiet)


def test_a_fetched_cohort_reads_as_tcga_tables(tcga: FakeTcga, tmp_path: Path) -> None:
    manifest = fetch(tcga, tmp_path)
    tables = read_tcga(tmp_path, "brca")
    assert tables.hospitals == ("H1", "H2", "H3")
    assert len(tables.cases) == 59
    assert tables.cases["diagnosis"].value_counts().to_dict() == dict(zip(DIAGNOSES["BRCA"], (40, 19), strict=True))
    assert set(tables.cases["stage"]) == {"I", "II", "III", "IV"}
    assert set(tables.expression.columns) == set(GENES)
    assert manifest["gdc_release"].startswith("Data Release")
    assert manifest["counts"] == {
        "samples left out: not a primary tumour": 3,
        "samples left out: further primary sample of a patient": 1,
        "genes left out: missing values": 0,
        "gene rows averaged: same symbol": 1,
    }


def test_all_pages_are_read_with_only_the_fields_that_are_needed(tcga: FakeTcga, tmp_path: Path) -> None:
    fetch(tcga, tmp_path)
    assert tcga.paths() == ["/status", "/cases", "/cases", "/cases", "/files", "/files", "/files", MATRIX]
    clinical = pd.read_parquet(tmp_path / "BRCA" / "clinical.parquet")
    assert len(clinical) == 60
    assert clinical.drop(columns="hospital").notna().all(axis=None)


def test_follow_up_is_the_last_contact_or_the_death(tcga: FakeTcga, tmp_path: Path) -> None:
    fetch(tcga, tmp_path)
    clinical = pd.read_parquet(tmp_path / "BRCA" / "clinical.parquet").set_index("case_id")
    assert clinical.loc[barcode(5), ["os_months", "os_event"]].tolist() == [pytest.approx(450 / 30.4375), 1]
    assert clinical.loc[barcode(6), ["os_months", "os_event"]].tolist() == [pytest.approx(48 + 6 / 30.4375), 0]


def test_only_diagnostic_slides_of_primary_tumours_are_listed(tcga: FakeTcga, tmp_path: Path) -> None:
    fetch(tcga, tmp_path)
    slides = pd.read_parquet(tmp_path / "BRCA" / "slides.parquet")
    assert len(slides) == 56
    assert slides["slide_id"].str.contains(r"-01Z-00-DX\d$").all()
    assert slides["slide_id"].is_unique
    assert slides["case_id"].tolist() == slides["slide_id"].str[:12].tolist()
    assert slides.columns.tolist() == ["case_id", "slide_id", "file_id", "file_name", "file_size", "md5sum"]


def test_codes_of_one_centre_are_one_hospital_and_the_largest_is_first(tcga: FakeTcga, tmp_path: Path) -> None:
    manifest = fetch(tcga, tmp_path)
    assert manifest["hospitals"] == {
        "H1": {"centre": "University North", "tss": ["BH", "E2"], "cases": 30},
        "H2": {"centre": "Harbour Hospital", "tss": ["A2"], "cases": 15},
        "H3": {"centre": "Lake Clinic", "tss": ["D8"], "cases": 14},
    }


def test_cases_of_smaller_centres_have_no_hospital_and_are_counted(tcga: FakeTcga, tmp_path: Path) -> None:
    fetch(tcga, tmp_path, hospitals=2)
    tables = read_tcga(tmp_path, "BRCA")
    assert tables.hospitals == ("H1", "H2")
    assert tables.counts["left out: no hospital"] == 14


def test_a_table_of_centres_goes_before_the_names_of_gdc(tcga: FakeTcga, tmp_path: Path) -> None:
    (tmp_path / "centres.csv").write_text("tss,centre\nD8,Harbour Hospital\n")
    manifest = fetch(tcga, tmp_path / "out", centres=tmp_path / "centres.csv")
    assert {name: about["tss"] for name, about in manifest["hospitals"].items()} == {
        "H1": ["BH", "E2"],
        "H2": ["A2", "D8"],
    }


def test_a_second_run_verifies_and_asks_nobody(tcga: FakeTcga, tmp_path: Path) -> None:
    first = fetch(tcga, tmp_path)
    tcga.requests.clear()
    assert fetch(tcga, tmp_path) == first | {"fetched": False}
    assert not tcga.requests
    for name, about in first["files"].items():
        assert digest_file(tmp_path / "BRCA" / name) == about["sha256"]


def test_other_options_make_new_tables_from_the_same_download(tcga: FakeTcga, tmp_path: Path) -> None:
    fetch(tcga, tmp_path)
    tcga.requests.clear()
    assert list(fetch(tcga, tmp_path, hospitals=1)["hospitals"]) == ["H1"]
    assert MATRIX not in tcga.paths()


def test_a_table_changed_by_hand_is_neither_used_nor_replaced(tcga: FakeTcga, tmp_path: Path) -> None:
    fetch(tcga, tmp_path)
    path = tmp_path / "BRCA" / "slides.parquet"
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(DataError, match=r"slides.parquet: missing or changed since it was fetched .*remove"):
        fetch(tcga, tmp_path)


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"files": {"rna.parquet": 1}, "options": {}}', '{"files": {}}'])
def test_a_broken_manifest_is_one_line(text: str, tcga: FakeTcga, tmp_path: Path) -> None:
    (tmp_path / "BRCA").mkdir()
    (tmp_path / "BRCA" / "manifest.json").write_text(text)
    with pytest.raises(ConfigError, match=r"no readable manifest.json"):
        fetch(tcga, tmp_path)


def test_a_folder_that_fetch_did_not_write_stays_as_it_is(tcga: FakeTcga, tmp_path: Path) -> None:
    (tmp_path / "BRCA").mkdir()
    with pytest.raises(ConfigError, match=r"not a folder that fetch wrote .*choose another --out"):
        fetch(tcga, tmp_path)
    fetch(tcga, tmp_path / "out")
    (tmp_path / "out" / "BRCA" / "img_hif.parquet").write_bytes(b"mine")
    with pytest.raises(ConfigError, match="fetch did not write 1 of the files in it; choose another --out"):
        fetch(tcga, tmp_path / "out", hospitals=1)
    assert not fetch(tcga, tmp_path / "out")["fetched"]
    assert (tmp_path / "out" / "BRCA" / "img_hif.parquet").read_bytes() == b"mine"


def test_an_interrupted_fetch_leaves_no_table_and_goes_on(tcga: FakeTcga, tmp_path: Path) -> None:
    tcga.files[MATRIX] = matrix([f"{barcode(number)}-01" for number in range(60)], GENES)
    tcga.faults[MATRIX] = [Fault(cut=3000)]
    wanted = Wanted(cohort="BRCA", gdc=tcga.url, xena=tcga.url)

    def stop(what: str, done: int, total: int | None) -> None:
        if what.startswith("expression"):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fetch_cohort(wanted, tmp_path, Connection(backoff=0.001), stop)
    assert sorted(path.name for path in tmp_path.rglob("*") if path.is_file()) == [
        "TCGA-BRCA.HiSeqV2.gz.json",
        "TCGA-BRCA.HiSeqV2.gz.part",
    ]
    fetch(tcga, tmp_path)
    assert tcga.requests[-1][1]["Range"] == "bytes=3000-"
    assert len(read_tcga(tmp_path, "BRCA").cases) == 60


def test_a_failed_write_leaves_no_folder(tcga: FakeTcga, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(pd.DataFrame, "to_parquet", full)
    with pytest.raises(OSError, match="No space left"):
        fetch(tcga, tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["downloads"]


@pytest.mark.parametrize(
    ("path", "faults", "message"),
    [
        ("/cases", [Fault(status=500)] * ATTEMPTS, r"/cases: no answer in 6 attempts \(too many 500"),
        ("/cases", [Fault(body=b"<html>" + b" " * 99999)], "the answer is not JSON; check the base address"),
        ("/files", [Fault(cut=40)] * ATTEMPTS, "/files: the answer broke off 6 times"),
        ("/status", [Fault(status=403)], "/status: refused with HTTP 403 Forbidden"),
    ],
)
def test_a_source_that_fails_is_one_line_and_nothing_is_written(
    path: str, faults: list[Fault], message: str, tcga: FakeTcga, tmp_path: Path
) -> None:
    tcga.faults[path] = list(faults)
    with pytest.raises(FetchError, match=message) as raised:
        fetch(tcga, tmp_path)
    assert "\n" not in str(raised.value)
    assert not list(tmp_path.iterdir())


def test_passing_failures_leave_no_trace(tcga: FakeTcga, tmp_path: Path) -> None:
    tcga.faults = {"/cases": [Fault(status=500)] * 2, "/files": [Fault(cut=30)], MATRIX: [Fault(cut=100)]}
    fetch(tcga, tmp_path)
    with serve(breast_cohort()) as steady:
        fetch(steady, tmp_path / "steady")
    for name in ("clinical", "rna", "slides"):
        paths = (folder / "BRCA" / f"{name}.parquet" for folder in (tmp_path, tmp_path / "steady"))
        pd.testing.assert_frame_equal(*map(pd.read_parquet, paths))


def test_an_empty_answer_is_an_error(tcga: FakeTcga, tmp_path: Path) -> None:
    tcga.cases.clear()
    with pytest.raises(FetchError, match="no case of TCGA-BRCA; expected some, check --base-gdc"):
        fetch(tcga, tmp_path)


def test_an_answer_that_shrinks_between_pages_is_an_error(tcga: FakeTcga, tmp_path: Path) -> None:
    tcga.cases += [tcga.cases[7]]
    with pytest.raises(FetchError, match="61 records read, some perhaps twice, but it says 61"):
        fetch(tcga, tmp_path)


def test_a_field_of_another_form_is_named_without_its_value(tcga: FakeTcga, tmp_path: Path) -> None:
    tcga.cases[2]["demographic"]["days_to_death"] = "a year"
    with pytest.raises(FetchError, match=r"record \d+: demographic.days_to_death: .*number") as raised:
        fetch(tcga, tmp_path)
    assert "a year" not in str(raised.value)
    assert "TCGA-A2" not in str(raised.value)


def test_an_unknown_cohort_lists_the_known_ones() -> None:
    with pytest.raises(ConfigError, match="unknown cohort 'LUAD'; choose from BLCA, BRCA, COADREAD"):
        Wanted(cohort="LUAD")


def test_two_projects_become_one_cohort_with_the_genes_of_both(tmp_path: Path) -> None:
    fake = breast_cohort(0)
    fake.cases = [case(number, "TCGA-COAD" if number < 30 else "TCGA-READ") for number in range(60)]
    for name, numbers, genes in (("COAD", range(30), GENES), ("READ", range(30, 60), GENES[1:])):
        samples = [f"{barcode(number)}-01" for number in numbers]
        fake.files[f"/download/TCGA.{name}.sampleMap/HiSeqV2.gz"] = matrix(samples, genes)
    with serve(fake):
        manifest = fetch(fake, tmp_path, cohort="COADREAD")
    assert [Path(source["url"]).name for source in manifest["sources"]] == [
        "TCGA.COAD.sampleMap%2FHiSeqV2.gz",
        "TCGA.READ.sampleMap%2FHiSeqV2.gz",
    ]
    rna = pd.read_parquet(tmp_path / "COADREAD" / "rna.parquet")
    assert rna.shape == (60, len(GENES))
    assert rna.columns[0] == "case_id"


def test_gene_sets_may_be_the_users_own_gmt(tcga: FakeTcga, tmp_path: Path) -> None:
    fetch(tcga, tmp_path)
    (tmp_path / "pathways.gmt").write_text("SET\t\tGENE1\tGENE2\tGENE3\n")
    assert read_tcga(tmp_path, "BRCA").gene_sets == {"SET": ("GENE1", "GENE2", "GENE3")}


def test_the_manifest_tells_where_everything_came_from(tcga: FakeTcga, tmp_path: Path) -> None:
    fetch(tcga, tmp_path)
    manifest = json.loads((tmp_path / "BRCA" / "manifest.json").read_text())
    (source,) = manifest["sources"]
    assert source["sha256"] == digest_file(tmp_path / "downloads" / "TCGA-BRCA.HiSeqV2.gz")
    assert source["url"].endswith("/download/TCGA.BRCA.sampleMap%2FHiSeqV2.gz")
    assert manifest["unit"] == "log2(RSEM normalised count + 1)"
    assert set(manifest["files"]) == {"clinical.parquet", "rna.parquet", "slides.parquet"}
