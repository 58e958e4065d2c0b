"""Site folders made of the files of :mod:`tests.data.tool_files`, one of each kind."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np

from tests.data import tool_files as tools

HEAD = 'name = "H1"\ntasks = ["diagnosis", "stage", "survival"]\n'
SLIDES = 'slides = "slides.csv"\nfeatures = "features"\n'
CODES = "[labels.diagnosis]\n" + "".join(f'"{code}" = "{value}"\n' for code, value in tools.DIAGNOSES.items())


def own(site: Path) -> str:
    tools.own_cases(site / "cases.csv")
    tools.own_expression(site / "expression.csv")
    paths = f'[paths]\ncases = "cases.csv"\nexpression = "expression.csv"\n{SLIDES}'
    return f'{HEAD}{paths}[expression]\nunit = "tpm"\n'


def excel(site: Path) -> str:
    tools.truth().reset_index().to_excel(site / "cases.xlsx", index=False)
    tools.tpm().reset_index().to_excel(site / "expression.xlsx", index=False)
    return f'{HEAD}[paths]\ncases = "cases.xlsx"\nexpression = "expression.xlsx"\n[expression]\nunit = "tpm"\n'


def gdc(site: Path) -> str:
    tools.gdc_clinical(site / "clinical.tsv")
    tools.star_folder(site / "star", site / "gdc_sample_sheet.tsv")
    paths = f'[paths]\ncases = "clinical.tsv"\nexpression = "star"\n{SLIDES}'
    return f'{HEAD}{paths}[expression]\nunit = "tpm"\nsample_map = "gdc_sample_sheet.tsv"\n{CODES}'


def xena(site: Path) -> str:
    tools.gdc_clinical(site / "clinical.tsv", prefixed=True)
    tools.xena_matrix(site / "TCGA-BRCA.star_tpm.tsv.gz")
    tools.hgnc(site / "hgnc_complete_set.txt")
    paths = '[paths]\ncases = "clinical.tsv"\nexpression = "TCGA-BRCA.star_tpm.tsv.gz"\n'
    return f'{HEAD}{paths}[expression]\nunit = "log2"\ngene_map = "hgnc_complete_set.txt"\n{CODES}'


def cbioportal(site: Path) -> str:
    tools.cbioportal_patients(site / "data_clinical_patient.txt")
    tools.cbioportal_expression(site / "data_mrna_seq_tpm.txt")
    paths = '[paths]\ncases = "data_clinical_patient.txt"\nexpression = "data_mrna_seq_tpm.txt"\n'
    mapping = '[columns]\ndiagnosis = "HISTOLOGICAL_DIAGNOSIS"\n'
    return f'{HEAD}{paths}{mapping}[expression]\nunit = "tpm"\n'


def survpath(site: Path) -> str:
    """SurvPath's csv with a long expression table and CLAM's splits, by slide."""
    tools.survpath_cases(site / "brca.csv")
    tools.long_expression(site / "long.csv")
    slides = {case: [f"{case}-01Z-00-DX1", f"{case}-01Z-00-DX2"] for case in tools.CASES}
    parts = {"train": tools.CASES[:3], "val": tools.CASES[3:4], "test": tools.CASES[-1:]}
    tools.clam_splits(
        site / "splits_0.csv",
        {split: [slide for case in part for slide in slides[case]] for split, part in parts.items()},
    )
    paths = f'[paths]\ncases = "brca.csv"\nexpression = "long.csv"\n{SLIDES}'
    columns = '[columns]\ntime_months = "survival_months"\ncensorship = "censorship"\ndiagnosis = "oncotree_code"\n'
    codes = '[labels.diagnosis]\nIDC = "ductal-like carcinoma"\nILC = "lobular-like carcinoma"\n'
    splits = '[splits]\nfile = "splits_0.csv"\nids = "slide"\n'
    return f'{HEAD}{paths}{columns}{splits}[expression]\nunit = "tpm"\n{codes}'


SITES: dict[str, Callable[[Path], str]] = {
    site.__name__: site for site in (own, excel, gdc, xena, cbioportal, survpath)
}
LOGGED = ("xena",)
SPLIT = ("survpath",)


def make_site(kind: str, folder: Path) -> Path:
    """A sound site folder of one kind, with slides."""
    folder.mkdir(parents=True)
    tools.slides(folder)
    (folder / "site.toml").write_text(SITES[kind](folder))
    return folder


def expected_expression(kind: str) -> np.ndarray:
    values = tools.tpm().to_numpy()
    return np.log2(values + 1) if kind in LOGGED else values
