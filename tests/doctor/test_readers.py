"""The doctor reads what training reads: files of other tools, splits files, declared units, every kind of bag."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from modaltune.doctor.finding import Finding, worst
from modaltune.doctor.site import examine
from modaltune.doctor.site_files import SiteFiles
from tests.data.bag_writers import write_clam, write_stamp, write_tensors, write_trident
from tests.doctor.sites import CASES, IDS, WIDTH, both, drop, table, toml, write

CELLS = np.stack([np.arange(5), np.arange(5)], axis=1).astype(np.int64)


def found_by(check: str, findings: list[Finding]) -> list[tuple[str, str]]:
    return [(found.status, found.finding) for found in findings if found.check == check]


def gdc_clinical(site: Path) -> None:
    """GDC's clinical.tsv with two rows a case, one for each treatment."""
    number = np.arange(CASES)
    dead = number % 3 != 0
    days = (600 + number % 7 * 30 + 900 * ~dead).astype(str)
    once = pd.DataFrame(
        {
            "case_submitter_id": IDS,
            "vital_status": np.where(dead, "Dead", "Alive"),
            "days_to_death": np.where(dead, days, "'--"),
            "days_to_last_follow_up": np.where(dead, "'--", days),
            "primary_diagnosis": np.resize(["Infiltrating duct carcinoma, NOS", "Lobular carcinoma, NOS"], CASES),
            "ajcc_pathologic_stage": np.resize(["Stage I", "Stage IIA", "Stage IIIA", "Stage IV"], CASES),
            "age_at_index": 40 + number % 30,
            "gender": np.resize(["female", "male"], CASES),
        }
    )
    once.loc[once.index.repeat(2)].to_csv(site / "clinical.tsv", sep="\t", index=False)
    toml('"cases.parquet"', '"clinical.tsv"')(site)
    names = '"Infiltrating duct carcinoma, NOS" = "invasive ductal carcinoma"\n'
    names += '"Lobular carcinoma, NOS" = "invasive lobular carcinoma"\n'
    toml("[policy]", f"[labels.diagnosis]\n{names}[policy]")(site)


def as_matrix(found: pd.DataFrame) -> pd.DataFrame:
    return found.set_index("case_id").add_suffix("-01A", axis=0).T.rename_axis("sample").reset_index()


def declared(unit: str) -> Callable[[Path], None]:
    return toml("[policy]", f"[expression]\n{unit}\n[policy]")


LIKE_TRAINING = {
    "GDC's clinical.tsv": gdc_clinical,
    "a gene matrix of samples": both(table("expression.parquet", as_matrix), declared('unit = "log2"')),
    "TPM with its logarithm": both(
        table("expression.parquet", lambda t: t.set_index("case_id").rpow(2).reset_index()),
        declared('unit = "tpm"\nlog = true'),
    ),
    "a splits file": both(
        drop("cases.parquet", "split"),
        lambda site: pd.DataFrame(
            {"case_id": IDS, "split": np.resize(["train", "train", "val", "test"], CASES)}
        ).to_csv(site / "splits.csv", index=False),
        toml("[policy]", '[splits]\nfile = "splits.csv"\n[policy]'),
    ),
}


@pytest.mark.parametrize("what", LIKE_TRAINING)
def test_what_training_reads_passes_every_check(what: str, site: Path) -> None:
    LIKE_TRAINING[what](site)
    findings = examine(SiteFiles(site))
    assert {finding.status for finding in findings} == {"ok"}, [f for f in findings if f.status != "ok"]
    assert found_by("loading", findings) == [("ok", f"training reads {CASES} cases")]


@pytest.mark.parametrize("writer", [write_trident, write_clam, write_stamp, write_tensors])
def test_bags_of_every_tool_can_be_examined(writer: Callable[..., Path], site: Path) -> None:
    toml("[policy]", "[features]\npatch_size_level0 = 256\n[policy]")(site)
    draw = np.random.default_rng(0)
    for file in pd.read_csv(site / "slides.csv")["file"]:
        writer(site / "features" / file, draw.normal(size=(5, WIDTH)).astype(np.float16), CELLS)
    findings = examine(SiteFiles(site))
    assert worst(findings) != "error", [f for f in findings if f.status == "error"]
    assert any(text.startswith(f"width {WIDTH}, float16") for _, text in found_by("bags", findings))


def test_cases_that_the_splits_file_does_not_list_are_counted(site: Path) -> None:
    LIKE_TRAINING["a splits file"](site)
    table("splits.csv", lambda t: t.iloc[2:])(site)
    findings = examine(SiteFiles(site))
    assert ("warning", "not in the splits file: 2 rows (first: row 1)") in found_by("split", findings)
    assert found_by("loading", findings)[0] == ("ok", f"training reads {CASES - 2} cases")


def test_a_case_in_two_splits_of_the_file_is_an_error(site: Path) -> None:
    LIKE_TRAINING["a splits file"](site)
    write("splits.csv", "train,val,test\n" + "".join(f"{IDS[0]},{case},\n" for case in IDS[:2]))(site)
    (status, text), *_ = found_by("split", examine(SiteFiles(site)))
    assert (status, "a case is in two splits" in text) == ("error", True)


def test_a_unit_that_the_values_contradict_is_an_error(site: Path) -> None:
    declared('unit = "tpm"')(site)
    (status, text), *_ = found_by("expression", examine(SiteFiles(site)))
    assert (status, "these look like logarithms" in text) == ("error", True)


def test_what_a_reader_logs_is_said_once_and_not_on_the_terminal(site: Path, capfd: pytest.CaptureFixture[str]) -> None:
    table("expression.parquet", lambda t: t.assign(case_id=t["case_id"].where(t.index != 3, f"{IDS[3]}-11A")))(site)
    findings = examine(SiteFiles(site))
    told = [finding.check for finding in findings if "1 of 48 samples are of another type" in finding.finding]
    assert told == ["expression"]
    assert capfd.readouterr().err == ""
