"""Ways of breaking a site folder: each is one line that names the place and the remedy, and nothing is written."""

from __future__ import annotations

import gzip
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from zipfile import ZipFile

import h5py
import numpy as np
import pandas as pd
import pytest

import client.cli
from modaltune.data.site import load_site
from modaltune.federation.study import Study
from tests.data import tool_files as tools
from tests.data.tool_sites import SITES, make_site
from tests.integration.helpers import Ran

pytestmark = pytest.mark.integration
Damage = Callable[[Path], object]
TOML = "site.toml"
REMEDY = re.compile(r"[;.] (?:\w+ ){0,12}\w+|expected")


@dataclass(frozen=True)
class Break:
    """A sound site of one kind, what is done to it, and what the line must say (a regular expression)."""

    kind: str
    damage: Damage
    line: str


def swap(file: str, old: str, new: str, count: int = 1) -> Damage:
    """Replace text in a file; the text must be there."""

    def damage(site: Path) -> None:
        text = (site / file).read_text()
        assert old in text
        (site / file).write_text(text.replace(old, new, count))

    return damage


def add(text: str) -> Damage:
    return lambda site: (site / TOML).write_text((site / TOML).read_text() + text)


def table(file: str, change: Callable[[pd.DataFrame], pd.DataFrame], head: int = 0) -> Damage:
    """Change a table as text; ``head`` lines above its header stay."""

    def damage(site: Path) -> None:
        path = site / file
        separator = "," if ".csv" in file else "\t"
        top = path.read_text().splitlines(keepends=True)[:head] if head else []
        frame = pd.read_csv(path, sep=separator, dtype=str, keep_default_na=False, skiprows=head)
        text = "".join(top) + change(frame).to_csv(sep=separator, index=False)
        path.write_bytes(gzip.compress(text.encode()) if file.endswith(".gz") else text.encode())

    return damage


def put(column: str, row: int, value: str) -> Callable[[pd.DataFrame], pd.DataFrame]:
    def change(frame: pd.DataFrame) -> pd.DataFrame:
        frame.loc[row - 1, column] = value
        return frame

    return change


def drop(column: str) -> Callable[[pd.DataFrame], pd.DataFrame]:
    return lambda frame: frame.drop(columns=column)


def cut(file: str, share: float) -> Damage:
    def damage(site: Path) -> None:
        raw = (site / file).read_bytes()
        (site / file).write_bytes(raw[: int(len(raw) * share)])

    return damage


def remove(file: str) -> Damage:
    return lambda site: (site / file).unlink()


def both(*damages: Damage) -> Damage:
    return lambda site: [damage(site) for damage in damages]


def sheet_twice(site: Path) -> None:
    with pd.ExcelWriter(site / "cases.xlsx", engine="openpyxl") as book:
        tools.truth().reset_index().to_excel(book, sheet_name="a", index=False)
        tools.truth().reset_index().to_excel(book, sheet_name="b", index=False)


def renamed_to_excel(site: Path) -> None:
    tools.own_cases(site / "cases.xlsx")


def dates_for_genes(site: Path) -> None:
    """Genes such as MARCH1, as a spreadsheet leaves them."""
    values = tools.tpm().reset_index().rename(columns={"ESR1": pd.Timestamp("2026-03-01")})
    values.to_excel(site / "expression.xlsx", index=False)


def latin(site: Path) -> None:
    text = (site / "cases.csv").read_text().replace("female", "weiblich ü")
    (site / "cases.csv").write_bytes(text.encode("latin-1"))


def as_parquet(change: Callable[[pd.DataFrame], pd.DataFrame]) -> Damage:
    def damage(site: Path) -> None:
        change(tools.truth().reset_index()).to_parquet(site / "cases.parquet")
        swap(TOML, "cases.csv", "cases.parquet")(site)

    return damage


def cut_sheet(site: Path) -> None:
    """A workbook whose archive is whole and whose sheet ends in the middle."""
    tools.truth().reset_index().to_excel(site / "whole.xlsx", index=False)
    with ZipFile(site / "whole.xlsx") as whole, ZipFile(site / "cases.xlsx", "w") as cut:
        for name in whole.namelist():
            part = whole.read(name)
            cut.writestr(name, part[: len(part) // 2] if "sheet1" in name else part)
    (site / "whole.xlsx").unlink()
    swap(TOML, "cases.csv", "cases.xlsx")(site)


def endless_name(site: Path) -> None:
    table("slides.csv", put("file", 1, f"{A}{'x' * 5000}.h5"))(site)


def first_star(change: Callable[[str], str]) -> Damage:
    def damage(site: Path) -> None:
        path = sorted((site / "star").rglob("*.tsv"))[2]
        path.write_text(change(path.read_text()))

    return damage


def lose_star(site: Path) -> None:
    sorted((site / "star").rglob("*.tsv"))[2].unlink()


def xena_like(**options: object) -> Damage:
    return lambda site: tools.xena_matrix(site / "TCGA-BRCA.star_tpm.tsv.gz", **options)  # type: ignore[arg-type]


def splits(**parts: list[str]) -> Damage:
    return lambda site: tools.clam_splits(site / "splits_0.csv", parts)


def own_splits(text: str, options: str = "") -> Damage:
    return both(lambda site: (site / "folds.csv").write_text(text), add(f'[splits]\nfile = "folds.csv"\n{options}'))


def header_short(site: Path) -> None:
    """As R's write.table does it: row names without a column name."""
    lines = (site / "expression.csv").read_text().splitlines()
    (site / "expression.csv").write_text("\n".join([lines[0].removeprefix("case_id,"), *lines[1:]]))


def bag(change: Callable[[h5py.File], object]) -> Damage:
    def damage(site: Path) -> None:
        with h5py.File(min((site / "features").glob("*.h5")), "r+") as file:
            change(file)

    return damage


def not_a_number(file: h5py.File) -> None:
    file["features"][1, 3] = np.nan


A, B = tools.CASES[0], tools.CASES[1]
SLIDE_A = [f"{A}-01Z-00-DX{number}" for number in (1, 2)]
CLINICAL, MRNA, PATIENTS = "clinical.tsv", "data_mrna_seq_tpm.txt", "data_clinical_patient.txt"
XENA, SHEET, HGNC = "TCGA-BRCA.star_tpm.tsv.gz", "gdc_sample_sheet.tsv", "hgnc_complete_set.txt"

BREAKS: dict[str, Break] = {
    # site.toml
    "toml cut off": Break("own", cut(TOML, 0.9), "site.toml: not valid TOML"),
    "unknown section": Break("own", add("[expresion]\n"), "unknown key 'expresion'"),
    "unknown expression key": Break(
        "own", swap(TOML, "unit =", "units ="), "'expression.units'; known keys: unit, log"
    ),
    "unknown unit": Break("own", swap(TOML, '"tpm"', '"TPM"'), "expression.unit: .*'counts', 'tpm'"),
    "log of log2": Break("xena", swap(TOML, 'unit = "log2"', 'unit = "log2"\nlog = true'), "'log = true' is for unit"),
    "unknown sample type": Break("own", swap(TOML, '"tpm"', '"tpm"\nsamples = ["11"]'), "expression.samples.0: "),
    "no sample type": Break("own", swap(TOML, '"tpm"', '"tpm"\nsamples = []'), "expression.samples: "),
    "expression unnamed": Break("own", swap(TOML, 'expression = "expression.csv"\n', ""), "paths.expression is not"),
    "splits key": Break("survpath", swap(TOML, "ids =", "id ="), "unknown key 'splits.id'; known keys: file, ids"),
    "splits ids": Break("survpath", swap(TOML, '"slide"\n[', '"patient"\n['), "splits.ids: .*'case' or 'slide'"),
    "event is censorship": Break(
        "survpath", swap(TOML, 'censorship = "', 'event = "'), "event = 'censorship': .*write censorship = 'censorship'"
    ),
    "censorship is event": Break(
        "own", add('[columns]\ncensorship = "event"\n'), "censorship = 'event': .*write event"
    ),
    "both": Break("own", add('[columns]\ncensorship = "c"\nevent = "e"\n'), "names both 'event' and 'censorship'"),
    "path of cases": Break("own", swap(TOML, "cases.csv", "case.csv"), "case.csv: no such file"),
    "format": Break("own", swap(TOML, '"cases.csv"', '"site.toml"'), "unknown table format '.toml'; choose from .parq"),
    # tables
    "semicolons": Break(
        "own", lambda site: swap("cases.csv", ",", ";", 999)(site), "separated by semicolons, expected"
    ),
    "tabs": Break("own", lambda site: swap("cases.csv", ",", "\t", 999)(site), "separated by tabs, expected commas"),
    "latin-1": Break("own", latin, "cases.csv: not UTF-8 text"),
    "cut off": Break("own", cut("cases.csv", 0.93), r"cases.csv: the last row has \d of 7 fields"),
    "cut gzip": Break("xena", cut(XENA, 0.7), "not a readable tsv table"),
    "not gzip": Break("xena", lambda site: (site / XENA).write_text("Ensembl_ID\tx\n"), "not a readable tsv table"),
    "longer row": Break(
        "own", swap("cases.csv", ",female", ",female,x"), "row 1 has more than the 7 fields|header has f"
    ),
    "longer row later": Break("own", swap("cases.csv", ",male", ",male,x"), "row 2 has more than the 7 fields"),
    "header short": Break("own", header_short, "the header has fewer fields than the rows"),
    "nameless column": Break("own", swap("cases.csv", ",stage", ","), "cases.csv: column 3 has no name"),
    "nameless first": Break("own", swap("expression.csv", "case_id", ""), "column 1 has no name"),
    "column twice": Break("own", swap("cases.csv", ",stage", ",age"), "1 column names occur twice .first: column 6"),
    "two sheets": Break("excel", sheet_twice, "cases.xlsx: expected one sheet"),
    "csv called xlsx": Break("excel", renamed_to_excel, "cases.xlsx: not a readable xlsx table"),
    "genes became dates": Break("excel", dates_for_genes, "expression.xlsx: the name of column 3 is a date"),
    "header only": Break("own", table("cases.csv", lambda frame: frame[:0]), "the table has no row"),
    "empty file": Break("own", cut("cases.csv", 0), "not a readable csv table"),
    # clinical
    "no case": Break("own", table("cases.csv", drop("case_id")), "column 'case_id' is missing"),
    "case twice": Break(
        "own", table("cases.csv", put("case_id", 3, A)), "repeats an earlier one in 1 row .first: row 3"
    ),
    "event words and numbers": Break(
        "own", table("cases.csv", put("event", 2, "Dead")), "'event' is neither 0 nor 1 .*row 2"
    ),
    "event of two": Break("own", table("cases.csv", put("event", 4, "2")), "'event' is neither 0 nor 1 .*row 4"),
    "time of zero": Break("own", table("cases.csv", put("time_months", 1, "0")), "not above 0 in 1 row .first: row 1"),
    "time below zero": Break("own", table("cases.csv", put("time_months", 2, "-3")), "not above 0 .*row 2"),
    "days for months": Break("own", table("cases.csv", put("time_months", 5, "2000")), "above 720 .*row 5.*not days"),
    "decimal comma": Break("own", table("cases.csv", put("time_months", 5, "20,5")), "not a number .*row 5"),
    "age in days": Break("own", table("cases.csv", put("age", 6, "21000")), "'age' is outside 0 to 120 .*row 6"),
    "undeclared censorship": Break(
        "survpath",
        swap(TOML, 'censorship = "censorship"\n', ""),
        "no column 'event', but 'censorship'; .*add censorship =",
    ),
    "censorship of two": Break(
        "survpath", swap("brca.csv", ",0.0,1.0,", ",2.0,1.0,", 2), "'censorship' is neither .*row 1"
    ),
    "censorship beside event": Break(
        "survpath",
        table("brca.csv", lambda frame: frame.assign(event="1")),
        "'censorship' and the table has 'event' too",
    ),
    "slides disagree": Break("survpath", table("brca.csv", put("age", 2, "99")), "'age' differs .* row 2"),
    "treatments disagree": Break(
        "gdc", table(CLINICAL, put("ajcc_pathologic_stage", 4, "Stage IV")), "'stage' .*row 4"
    ),
    "both alive and dead": Break("gdc", table(CLINICAL, put("vital_status", 2, "Alive")), "differs .* in .*row 2"),
    "vital status": Break(
        "gdc", table(CLINICAL, put("vital_status", 3, "gone")), "'vital_status' is neither alive nor .*row 3"
    ),
    "no days": Break("gdc", table(CLINICAL, drop("days_to_death")), "clinical.tsv: column 'days_to_death' is missing"),
    "days below zero": Break("xena", swap(CLINICAL, "\t365\t", "\t-365\t", 2), "'time_months' is not above 0 .*row 9"),
    "unmapped diagnosis": Break("gdc", swap(TOML, "Lobular", "Lobullar"), "'Lobular carcinoma, NOS' .*Map local codes"),
    "stage X": Break("gdc", swap(CLINICAL, "Stage IIA", "Stage X", 99), "'stage' has labels outside .*'Stage X'"),
    "status contradicts itself": Break(
        "cbioportal",
        table(PATIENTS, put("OS_STATUS", 3, "1:LIVING"), head=4),
        "'OS_STATUS' is neither alive nor .*row 3",
    ),
    "months of a patient": Break(
        "cbioportal", table(PATIENTS, put("OS_MONTHS", 7, "x"), head=4), "'OS_MONTHS' .*row 7"
    ),
    "half an endpoint": Break(
        "cbioportal", swap(TOML, "[columns]", '[columns]\ntime_months = "OS_MONTHS"'), "needs column 'event'"
    ),
    "mapped column absent": Break("cbioportal", swap(TOML, "HISTOLOGICAL_", "HISTO_"), "'HISTO_DIAGNOSIS' named in"),
    # expression
    "unit of a matrix": Break("cbioportal", swap(TOML, 'unit = "tpm"\n', ""), "does not say its unit; add"),
    "negative TPM": Break(
        "own", table("expression.csv", put("TP53", 2, "-1")), "negative values, but the unit is 'tpm'"
    ),
    "logged already": Break("xena", swap(TOML, 'unit = "log2"', 'unit = "tpm"\nlog = true'), "look like logarithms"),
    "too large for log2": Break("own", swap(TOML, '"tpm"', '"log2"'), "values above 40 cannot be of unit 'log2'"),
    "no z-scores": Break("own", swap(TOML, '"tpm"', '"zscore"'), "no negative value, but the unit is 'zscore'"),
    "Ensembl without map": Break("xena", swap(TOML, f'gene_map = "{HGNC}"\n', ""), "named by Ensembl ids; name HGNC"),
    "no gene map": Break("xena", remove(HGNC), "hgnc_complete_set.txt: no such file"),
    "another gene map": Break("xena", table(HGNC, drop("prev_symbol")), "'prev_symbol' is missing; expected HGNC's"),
    "mouse genes": Break("xena", swap(HGNC, "ENSG", "ENSMUSG", 99), "hgnc_complete_set.txt knows none of 4 genes"),
    "samples twice": Break("xena", xena_like(suffixes=("-01A", "-01B")), "10 cases have several samples of type 01"),
    "normal tissue only": Break("xena", xena_like(suffixes=("-11B",)), "none of 12 samples is listed and of type 01"),
    "gene twice": Break(
        "xena", table(XENA, lambda frame: pd.concat([frame, frame[:1]])), "1 genes occur more than once"
    ),
    "word for a value": Break(
        "xena", table(XENA, put(f"{B}-01A", 2, "high")), "1 sample columns are not numeric .*column 3"
    ),
    "hole in a matrix": Break("xena", table(XENA, put(f"{B}-01A", 2, "")), "first: row 2, column 3"),
    "no sample": Break(
        "cbioportal", table(MRNA, lambda frame: frame.iloc[:, :2]), "no sample column besides Hugo_Symbol"
    ),
    "no gene column": Break(
        "cbioportal", swap(MRNA, "Hugo_Symbol\tEntrez_Gene_Id", "a\tb"), "column 'case_id' is missing"
    ),
    "sample named twice": Break("cbioportal", swap(MRNA, f"{B}-01", f"{A}-01"), "1 column names occur twice"),
    "long table twice": Break(
        "survpath",
        table("long.csv", lambda frame: pd.concat([frame, frame[:1]])),
        "a case's gene occurs again .*row 41",
    ),
    "long table with holes": Break(
        "survpath", table("long.csv", lambda frame: frame[1:]), "1 of 10 cases lack some of"
    ),
    "long table without a gene": Break(
        "survpath", table("long.csv", put("gene", 3, "")), "gene is blank in 1 row .*row 3"
    ),
    "STAR file absent": Break("gdc", lose_star, "1 of 11 files listed in gdc_sample_sheet.tsv .*row 3"),
    "STAR file cut": Break(
        "gdc", first_star(lambda text: text[: len(text) // 2]), "star, file of row 3 of gdc_sample_sh"
    ),
    "STAR release": Break(
        "gdc", first_star(lambda text: text.rsplit("\n", 2)[0] + "\n"), "file of row 3 .*: 4 genes, other than the 5"
    ),
    "STAR of another tool": Break(
        "gdc", first_star(lambda text: text.replace("tpm_un", "un_tpm")), "'tpm_unstranded' is missing"
    ),
    "STAR unit": Break("gdc", swap(TOML, '"tpm"', '"log2"'), "needs .expression. unit .*; choose from counts, tpm"),
    "no sample sheet": Break("gdc", swap(TOML, f'sample_map = "{SHEET}"\n', ""), "needs .expression. sample_map"),
    "another sheet": Break("gdc", table(SHEET, drop("Case ID")), "columns of samples and cases are missing; expected"),
    "file twice in sheet": Break(
        "gdc", table(SHEET, lambda frame: pd.concat([frame, frame[:1]])), "File Name repeats .*12"
    ),
    "nobody's expression": Break(
        "own", swap("expression.csv", "TCGA", "TGCA", 99), "none of 10 rows belongs to a case"
    ),
    # splits
    "splits file absent": Break("survpath", remove("splits_0.csv"), "splits_0.csv: no such file"),
    "case in two splits": Break(
        "survpath",
        splits(train=SLIDE_A, val=[B, B], test=[SLIDE_A[0]]),
        "in two splits: train in row 1 and test in row 1",
    ),
    "slides in two splits": Break(
        "survpath", splits(train=[SLIDE_A[0]], val=["other", SLIDE_A[1]]), "slides of a case .*row 1 and val in row 2"
    ),
    "strangers' splits": Break(
        "survpath", splits(train=["x"], val=["y"]), "none of 2 identifiers is a slide of this site"
    ),
    "splits of true and false": Break("survpath", splits(train=["True"], val=["False"]), "columns hold true and false"),
    "splits of cases": Break("survpath", splits(train=[A], val=[B]), "none of 2 identifiers is a slide"),
    "split unknown": Break("own", own_splits(f"case_id,split\n{A},train\n{B},dev\n"), "'split' is not one of .*row 2"),
    "split column": Break("own", own_splits(f"case_id,fold\n{A},1\n"), "expected columns 'case_id' and 'split'"),
    "which fold": Break("own", own_splits(f"case_id,fold,split\n{A},0,train\n{A},1,val\n"), "2 folds; say which one"),
    "fold absent": Break("own", own_splits(f"case_id,fold,split\n{A},0,train\n", "fold = 7\n"), "no row of fold 7"),
    "no folds": Break("own", own_splits(f"case_id,split\n{A},train\n", "fold = 1\n"), "no column 'fold'"),
    "own split twice": Break(
        "own", own_splits(f"case_id,split\n{B},val\n{A},train\n{B},test\n"), "val in row 1 and test in row 3"
    ),
    "splits twice": Break(
        "own",
        both(own_splits(f"case_id,split\n{A},val\n"), table("cases.csv", lambda frame: frame.assign(split="train"))),
        "cases.csv has a column 'split' and site.toml a section .splits.; remove one",
    ),
    # what no reader foresees by itself
    "identifier as task": Break(
        "own", swap(TOML, '"diagnosis"', '"case_id"'), "'tasks' names case_id, a column of its"
    ),
    "endless file name": Break("own", endless_name, "feature file is absent in 1 row .*row 1"),
    "endless path": Break("own", swap(TOML, "cases.csv", "c" * 5000), "no such file"),
    "sheet cut": Break("own", cut_sheet, "not a readable xlsx table; write or copy it again"),
    "bytes": Break("own", as_parquet(lambda cases: cases.assign(sex=b"\xff")), "column [0-9]+ holds bytes or lists"),
    "lists": Break("own", as_parquet(lambda cases: cases.assign(sex=[["f"]] * len(cases))), "holds bytes or lists"),
    # slides
    "slide of a stranger": Break(
        "own", swap("slides.csv", f",{A},", ",TCGA-ZZ-9999,"), "case_id is not in cases.csv .*row 1"
    ),
    "bag absent": Break(
        "own", lambda site: min((site / "features").iterdir()).unlink(), "feature file is absent .*row 1"
    ),
    "NaN in a bag": Break("own", bag(not_a_number), "file of row 1: 1 of 2 rows of 'features' hold NaN"),
}


def content(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture(scope="module")
def study_file(study: Study, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("study") / "study.json"
    measured = {"MEASURED": tuple(sorted(tools.ENSEMBL))}
    path.write_text(study.model_copy(update={"gene_sets": measured}).to_json())
    return path


@pytest.mark.parametrize("name", BREAKS)
def test_a_broken_site_is_one_line_that_says_where_and_what_to_do(
    name: str, study_file: Path, command: Callable[..., Ran], tmp_path: Path
) -> None:
    broken = BREAKS[name]
    site = make_site(broken.kind, tmp_path / "H1")
    broken.damage(site)
    before = content(site)
    ran = command(client.cli.main, "check", study_file, "--site", site)
    assert (ran.code, ran.out) == (2, "")
    assert ran.err.startswith("error: ")
    assert ran.err.count("\n") == 1
    assert re.search(broken.line, ran.err), ran.err
    assert REMEDY.search(ran.err), ran.err
    assert not re.search("TCGA-(A1|B2|C3)|Traceback", ran.err), ran.err
    assert content(site) == before


@pytest.mark.parametrize("kind", SITES)
def test_the_sites_that_are_broken_above_are_sound(
    kind: str, study_file: Path, command: Callable[..., Ran], tmp_path: Path
) -> None:
    site = make_site(kind, tmp_path / "H1")
    before = content(site)
    ran = command(client.cli.main, "check", study_file, "--site", site, "--json")
    assert (ran.code, ran.err) == (0, "")
    assert content(site) == before
    assert len(load_site(site, split_salt="s", labels=tools.LABELS).cases) > 0
