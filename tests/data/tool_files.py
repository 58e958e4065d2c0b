"""One small invented cohort, and files of it as GDC, Xena, cBioPortal, CLAM and SurvPath write them."""

from __future__ import annotations

import csv
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from modaltune.data.bags import write_bag
from modaltune.data.cohort import Bag

CASES = [f"TCGA-{place}-{number:04d}" for number, place in enumerate(["A1", "B2", "C3"] * 4, start=1)]
MEASURED = CASES[:10]
ENSEMBL = {
    "TP53": "ENSG00000141510.18",
    "ESR1": "ENSG00000091831.24",
    "CDH1": "ENSG00000039068.19",
    "KMT2D": "ENSG00000167548.18",
}
DIAGNOSES = {
    "Infiltrating duct carcinoma, NOS": "ductal-like carcinoma",
    "Lobular carcinoma, NOS": "lobular-like carcinoma",
}
LABELS = {"diagnosis": tuple(DIAGNOSES.values()), "stage": ("I", "II", "III", "IV")}
MISSING = "'--"


def truth() -> pd.DataFrame:
    """The cases as a cohort has them; days are whole, as registries count them."""
    days = np.array([30, 61, 90, 200, 365, 400, 731, 800, 1000, 1461, 1500, 2000])
    return pd.DataFrame(
        {
            "diagnosis": list(DIAGNOSES.values()) * 6,
            "stage": ["I", "II", "III", "IV"] * 3,
            "time_months": days / 30.4375,
            "event": [1.0, 0.0] * 6,
            "age": np.arange(40.0, 64.0, 2.0),
            "sex": ["female", "male"] * 6,
        },
        index=pd.Index(CASES, name="case_id"),
    )


def tpm() -> pd.DataFrame:
    """TPM of the measured cases, as float32 stores them."""
    values = np.random.default_rng(0).gamma(2.0, 20.0, size=(len(MEASURED), len(ENSEMBL))).round(3)
    values[0, 0] = 120.0
    return pd.DataFrame(values.astype(np.float32), index=pd.Index(MEASURED, name="case_id"), columns=list(ENSEMBL))


def own_cases(path: Path) -> None:
    truth().reset_index().to_csv(path, index=False)


def own_expression(path: Path) -> None:
    tpm().reset_index().to_csv(path, index=False)


def gdc_clinical(path: Path, *, prefixed: bool = False) -> None:
    """``clinical.tsv`` of the GDC portal: a row a treatment, blanks as ``'--``; since 2025 names have prefixes."""
    rows = []
    codes = {value: code for code, value in DIAGNOSES.items()}
    for number, (case, row) in enumerate(truth().iterrows()):
        days = str(round(row["time_months"] * 30.4375))
        for treatment in ("Pharmaceutical Therapy, NOS", "Radiation Therapy, NOS"):
            rows.append(
                {
                    "case_id": f"0f4f7a6e-{number:04d}-4f0e-9d0c-5f0f0f0f0f0f",
                    "case_submitter_id": case,
                    "project_id": "TCGA-BRCA",
                    "age_at_index": int(row["age"]),
                    "days_to_death": days if row["event"] else MISSING,
                    "gender": row["sex"],
                    "vital_status": "Dead" if row["event"] else "Alive",
                    "ajcc_pathologic_stage": f"Stage {row['stage']}{'A' if row['stage'] != 'IV' else ''}",
                    "days_to_last_follow_up": MISSING if row["event"] else days,
                    "primary_diagnosis": codes[row["diagnosis"]],
                    "tumor_grade": MISSING,
                    "treatment_type": treatment,
                }
            )
    table = pd.DataFrame(rows)
    if prefixed:
        entity = dict.fromkeys(table.columns[3:7], "demographic") | dict.fromkeys(table.columns[7:11], "diagnoses")
        names = {"case_submitter_id": "cases.submitter_id", "case_id": "cases.case_id"}
        names |= {name: f"{part}.{name}" for name, part in entity.items()}
        names |= {"project_id": "project.project_id", "treatment_type": "treatments.treatment_type"}
        names["days_to_death"] = "demographic.days_to_death"
        table = table.rename(columns=names)
    table.to_csv(path, sep="\t", index=False)


def cbioportal_patients(path: Path) -> None:
    """``data_clinical_patient.txt``: four lines of ``#``, then the header."""
    rows = truth()
    table = pd.DataFrame(
        {
            "PATIENT_ID": rows.index,
            "OS_STATUS": rows["event"].map({0.0: "0:LIVING", 1.0: "1:DECEASED"}).to_numpy(),
            "OS_MONTHS": rows["time_months"].to_numpy(),
            "AGE": rows["age"].astype(int).to_numpy(),
            "SEX": rows["sex"].str.capitalize().to_numpy(),
            "AJCC_PATHOLOGIC_TUMOR_STAGE": [f"STAGE {stage}" for stage in rows["stage"]],
            "HISTOLOGICAL_DIAGNOSIS": rows["diagnosis"].to_numpy(),
        }
    )
    names = [name.replace("_", " ").title() for name in table.columns]
    kinds = ["STRING", "STRING", "NUMBER", "NUMBER", "STRING", "STRING", "STRING"]
    head = [names, names, kinds, ["1"] * len(names)]
    lines = "".join("#" + "\t".join(line) + "\n" for line in head)
    path.write_text(lines + table.to_csv(sep="\t", index=False))


def survpath_cases(path: Path) -> None:
    """A row a slide, an unnamed counter first, ``censorship`` 1 = censored."""
    rows = truth().loc[[case for case in CASES for _ in range(2)]]
    pd.DataFrame(
        {
            "case_id": rows.index,
            "slide_id": [f"{case}-01Z-00-DX{1 + number % 2}.svs" for number, case in enumerate(rows.index)],
            "site": rows.index.str[5:7],
            "is_female": (rows["sex"] == "female").astype(float).to_numpy(),
            "oncotree_code": rows["diagnosis"]
            .map(dict(zip(DIAGNOSES.values(), ("IDC", "ILC"), strict=True)))
            .to_numpy(),
            "age": rows["age"].to_numpy(),
            "survival_months": rows["time_months"].to_numpy(),
            "censorship": (1 - rows["event"]).to_numpy(),
            "train": 1.0,
            "stage": rows["stage"].to_numpy(),
            "sex": rows["sex"].to_numpy(),
        }
    ).to_csv(path)


def long_expression(path: Path) -> None:
    values = tpm().rename_axis(columns="gene").stack().rename("value").reset_index()
    values.sample(frac=1, random_state=0).to_csv(path, index=False)


def xena_matrix(
    path: Path,
    *,
    first: str = "Ensembl_ID",
    suffixes: Sequence[str] = ("-01A",),
    change: Callable[..., object] = np.log2,
) -> None:
    """Genes x samples; the GDC hub names genes by Ensembl id, the legacy hub by symbol. Normal tissue (11) is in it."""
    values = change(tpm() + 1) if change is np.log2 else tpm()
    table = values.T.rename(index=ENSEMBL) if first == "Ensembl_ID" else values.T  # type: ignore[attr-defined]
    parts = [table.rename(columns=lambda case, suffix=suffix: f"{case}{suffix}") for suffix in suffixes]
    normal = table.iloc[:, :2].rename(columns=lambda case: f"{case}-11A") * 0.5
    pd.concat([*parts, normal], axis=1).rename_axis(index=first).to_csv(path, sep="\t")


def star_folder(folder: Path, sheet: Path, *, normal: bool = True) -> None:
    """GDC STAR counts as gdc-client leaves them, a folder a file, and the portal's sample sheet."""
    rows = []
    samples = [(case, "01A", "Primary Tumor") for case in MEASURED]
    if normal:
        samples.append((MEASURED[0], "11A", "Solid Tissue Normal"))
    for number, (case, kind, words) in enumerate(samples):
        file = f"{number:08x}-aaaa.rna_seq.augmented_star_gene_counts.tsv"
        star_file(folder / f"{number:08x}" / file, tpm().loc[case])
        rows.append([f"{number:08x}", file, "Transcriptome Profiling", "TCGA-BRCA", case, f"{case}-{kind}", words])
    names = ["File ID", "File Name", "Data Category", "Project ID", "Case ID", "Sample ID", "Sample Type"]
    pd.DataFrame(rows, columns=names).to_csv(sheet, sep="\t", index=False)


def star_file(path: Path, values: pd.Series) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    columns = ["gene_id", "gene_name", "gene_type", "unstranded", "stranded_first", "stranded_second"]
    columns += ["tpm_unstranded", "fpkm_unstranded", "fpkm_uq_unstranded"]
    with path.open("w", newline="") as stream:
        stream.write("# gene-model: GENCODE v36\n")
        writer = csv.writer(stream, delimiter="\t", lineterminator="\n")
        writer.writerow(columns)
        for name in ("N_unmapped", "N_multimapping", "N_noFeature", "N_ambiguous"):
            writer.writerow([name, "", "", 1000, 900, 800, "", "", ""])
        for gene, value in values.items():
            writer.writerow([ENSEMBL[str(gene)], gene, "protein_coding", round(value * 40), 1, 2, value, value / 2, 3])
        writer.writerow([f"{ENSEMBL['TP53'].split('.')[0]}.18_PAR_Y", "TP53", "protein_coding", *[0] * 6])


def cbioportal_expression(path: Path) -> None:
    """``data_mrna_seq_tpm.txt``: one gene has no symbol, one has no value."""
    table = tpm().T.rename(columns=lambda case: f"{case}-01")
    table.insert(0, "Entrez_Gene_Id", [7157, 2099, 999, 8085])
    table = table.rename_axis(index="Hugo_Symbol").reset_index()
    nameless = table.iloc[[0]].assign(Hugo_Symbol=None)
    blank = table.iloc[[1]].assign(Hugo_Symbol="BLANK1", **dict.fromkeys(table.columns[2:], np.nan))
    pd.concat([table, nameless, blank]).to_csv(path, sep="\t", index=False, na_rep="NA")


def hgnc(path: Path) -> None:
    """``hgnc_complete_set.txt``, the columns around those that are read shortened."""
    lines = [
        ["hgnc_id", "symbol", "name", "alias_symbol", "prev_symbol", "entrez_id", "ensembl_gene_id"],
        ["HGNC:11998", "TP53", "tumor protein p53", "p53|LFS1", "", "7157", "ENSG00000141510"],
        ["HGNC:3467", "ESR1", "estrogen receptor 1", "NR3A1|Era", "ESR", "2099", "ENSG00000091831"],
        ["HGNC:1748", "CDH1", "cadherin 1", "uvomorulin|CD324", "UVO", "999", "ENSG00000039068"],
        ["HGNC:7133", "KMT2D", "lysine methyltransferase 2D", "ALR|MLL4", "TNRC21|MLL2", "8085", "ENSG00000167548"],
        ["HGNC:15840", "KMT2B", "lysine methyltransferase 2B", "MLL2|MLL4|TRX2", "", "9757", "ENSG00000272333"],
    ]
    with path.open("w", newline="") as stream:
        csv.writer(stream, delimiter="\t", lineterminator="\n").writerows(lines)


def clam_splits(path: Path, ids: Mapping[str, Sequence[str]]) -> None:
    """``splits_k.csv``: an unnamed counter, then a column of identifiers a split."""
    pd.DataFrame({split: pd.Series(list(names), dtype=object) for split, names in ids.items()}).to_csv(path)


def slides(folder: Path, *, width: int = 32) -> None:
    """``slides.csv`` and bags of two slides each of the first four cases and the last one."""
    rows = [(f"{case}-01Z-00-DX{slide}", case) for case in [*CASES[:4], CASES[-1]] for slide in (1, 2)]
    table = pd.DataFrame(rows, columns=["slide_id", "case_id"])
    table["file"] = table["slide_id"] + ".h5"
    table.to_csv(folder / "slides.csv", index=False)
    for file in table["file"]:
        bag = Bag(
            features=np.ones((2, width), dtype=np.float32),
            coords=np.array([[0, 0], [256, 0]]),
            patch_size_level0=256,
        )
        write_bag(folder / "features" / file, bag, encoder="test")
