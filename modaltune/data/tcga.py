"""TCGA tables (``DIR/COHORT/*.parquet``, see docs/data.md) as canonical cases, expression and image tokens.

A case is eligible when it has a row in the expression table or in the image table: where every modality is missing,
"missing" would be the label. What is left out or changed is counted, so that commands can print it.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from modaltune.data.case_table import clean_age
from modaltune.data.cohort import Bag
from modaltune.data.follow_up import LONGEST_MONTHS
from modaltune.data.genesets import read_gene_sets
from modaltune.data.image_tokens import IMAGE_TABLES, TOKEN_PIXELS, image_tokens
from modaltune.data.tables import clean_numbers, identifiers, numbers, read_table, rows
from modaltune.errors import ConfigError, DataError

DIAGNOSES: Mapping[str, tuple[str, ...]] = {
    "BLCA": ("transitional cell carcinoma", "papillary transitional cell carcinoma"),
    "BRCA": ("invasive ductal carcinoma", "invasive lobular carcinoma"),
    "COADREAD": ("colon adenocarcinoma", "rectal adenocarcinoma"),
    "GBMLGG": ("glioblastoma", "lower-grade glioma"),
    "NSCLC": ("lung adenocarcinoma", "lung squamous cell carcinoma"),
    "RCC": ("papillary renal cell carcinoma", "clear cell renal cell carcinoma", "chromophobe renal cell carcinoma"),
}
"""Per cohort, the vocabulary value of ``primary_class`` 0, 1, 2; -1 is another histology, left unlabelled."""

LOCATIONS: Mapping[str, str] = {
    "BLCA": "bladder",
    "BRCA": "breast",
    "COADREAD": "bowel",
    "GBMLGG": "brain",
    "NSCLC": "lung",
    "RCC": "kidney",
}
"""Per cohort, what stands before its stages and grades, or its tasks, in a model of several cancers."""

STAGES = ("I", "II", "III", "IV")
GRADES = ("G2", "G3")
LEVELS = ("stage", "grade")
GRADED = ("GBMLGG",)
PATHWAYS = ("pathways.parquet", "pathways.gmt")
SHORTEST_MONTHS = 0.1
"""Follow-up that replaces a time of zero."""

_HELP = "expected tables laid out as described in docs/data.md, which says where to get TCGA data"
_COLUMNS = ("case_id", "hospital", "primary_class", "os_months", "os_event", "age", "sex")


@dataclass(frozen=True, kw_only=True)
class TcgaTables:
    """One cohort, eligible cases only.

    Attributes:
        cohort: its name, e.g. ``BRCA``.
        tasks: that this cohort has.
        cases: index ``case_id``; ``hospital``, ``diagnosis``, ``stage`` or ``grade`` (None when unlabelled),
            ``time_months`` (> 0), ``event`` (1 = death observed), ``age`` (years), ``sex``.
        expression: ``[cases, genes]`` float32, index ``case_id``.
        image: ``[cases, measurements]``, index ``case_id``; None when the cohort has no image table.
        gene_sets: pathway -> genes; empty when there is neither ``pathways.parquet`` nor ``.gmt``.
        counts: what was left out or changed -> number of cases.
    """

    cohort: str
    tasks: tuple[str, ...]
    cases: pd.DataFrame
    expression: pd.DataFrame
    image: pd.DataFrame | None
    gene_sets: Mapping[str, tuple[str, ...]]
    counts: Mapping[str, int]

    @property
    def notes(self) -> tuple[str, ...]:
        """The counts as sentences."""
        return tuple(f"{count} cases: {reason}." for reason, count in self.counts.items())

    @property
    def hospitals(self) -> tuple[str, ...]:
        """Hospitals with an eligible case, by name."""
        return tuple(sorted(self.cases["hospital"].unique()))


@dataclass(frozen=True, kw_only=True)
class HospitalTables:
    """One hospital's share of a cohort.

    Attributes:
        cases: as in :class:`TcgaTables`, without ``hospital``.
        expression: rows of its cases, None when it has none.
        bags: case_id -> one bag of image tokens; a case without an image row has no entry.
    """

    cases: pd.DataFrame
    expression: pd.DataFrame | None
    bags: Mapping[str, Bag]


def cohort_tasks(cohort: str) -> tuple[str, ...]:
    """Tasks of a cohort: gliomas have a grade instead of a stage."""
    return ("diagnosis", "grade" if cohort in GRADED else "stage", "survival")


def placed_level(location: str, level: str) -> str:
    """A stage or grade as a value of its own cancer."""
    return f"{location} {level}"


def with_location(cases: pd.DataFrame, cohort: str, tasks: Collection[str] = LEVELS) -> pd.DataFrame:
    """Cases whose stage or grade carries the location of the cohort's cancer.

    Args:
        tasks: columns that are changed, where the cases have them.
    """
    location = LOCATIONS[cohort]
    change = {
        name: cases[name].map(lambda level: None if pd.isna(level) else placed_level(location, str(level)))
        for name in tasks
        if name in cases
    }
    return cases.assign(**{name: column.astype(object) for name, column in change.items()})


def cancer_task(cohort: str, task: str) -> str:
    """A diagnosis, stage or grade as a task of its own cancer: ``kidney_stage``; survival is one task for all."""
    return task if task == "survival" else f"{LOCATIONS[cohort]}_{task}"


def with_cancer_tasks(cases: pd.DataFrame, cohort: str) -> pd.DataFrame:
    """Cases whose labels are columns of tasks of their cancer."""
    return cases.rename(columns={name: cancer_task(cohort, name) for name in ("diagnosis", *LEVELS)})


def read_tcga(data: Path, cohort: str, *, expression: str = "rna", slides: Collection[str] = ()) -> TcgaTables:
    """Read one cohort.

    Args:
        data: folder with one folder a cohort.
        cohort: its name in any letter case.
        expression: name of the expression table, without ``.parquet``.
        slides: cases that have patch features elsewhere, and so are eligible too.
    Returns:
        The eligible cases and their tables.
    Raises:
        ConfigError: the cohort is unknown.
        DataError: the folder or a table is absent, incomplete or broken.
    """
    folder = _cohort_folder(data, cohort)
    name = folder.name
    clinical = _read(folder / "clinical.parquet")
    missing = [column for column in (*_COLUMNS, _level_column(name)) if column not in clinical.columns]
    if missing:
        raise DataError(f"{name}/clinical.parquet: column {', '.join(map(repr, missing))} is missing; {_HELP}")
    table = f"{expression}.parquet"
    genes = clean_numbers(_read(folder / table), key="case_id", where=f"{name}/{table}")
    image = _image(folder)
    measured = genes.index.union(pd.Index(list(slides)))
    measured = measured if image is None else measured.union(image.index)
    cases, counts = _eligible(_canonical(clinical, name), measured, table)
    if cases.empty:
        raise DataError(f"{name}: no case has a hospital and a row in {table} or an image table; {_HELP}")
    return TcgaTables(
        cohort=name,
        tasks=cohort_tasks(name),
        cases=cases,
        expression=genes[genes.index.isin(cases.index)],
        image=None if image is None else image[image.index.isin(cases.index)],
        gene_sets=_pathways(data),
        counts=counts,
    )


def hospital_tables(tables: TcgaTables, hospital: str) -> HospitalTables:
    """The share of one hospital; an unknown name lists the known ones."""
    if hospital not in tables.hospitals:
        raise ConfigError(f"{tables.cohort}: unknown hospital {hospital!r}; it has {', '.join(tables.hospitals)}")
    cases = tables.cases[tables.cases["hospital"] == hospital].drop(columns="hospital")
    expression = tables.expression[tables.expression.index.isin(cases.index)]
    bags: dict[str, Bag] = {}
    if tables.image is not None:
        image = tables.image[tables.image.index.isin(cases.index)]
        features, coords, _ = image_tokens(image)
        for case, tokens in zip(image.index, features, strict=True):
            bags[str(case)] = Bag(features=tokens, coords=coords, patch_size_level0=TOKEN_PIXELS)
    return HospitalTables(cases=cases, expression=None if expression.empty else expression, bags=bags)


def _cohort_folder(data: Path, cohort: str) -> Path:
    if not data.is_dir():
        raise DataError(f"{data}: no such folder; {_HELP}")
    found = [name for name in sorted(DIAGNOSES) if (data / name / "clinical.parquet").is_file()]
    if (data / "site.toml").is_file():
        raise DataError(f"{data}: a site folder, not tables of cohorts; modaltune predict reads it")
    if not found:
        raise DataError(f"{data}: no COHORT/clinical.parquet in it; {_HELP}")
    if cohort.upper() not in found:
        raise ConfigError(f"unknown cohort {cohort!r}; {data} has {', '.join(found)}")
    return data / cohort.upper()


def _read(path: Path) -> pd.DataFrame:
    where = f"{path.parent.name}/{path.name}"
    if not path.is_file():
        raise DataError(f"{where}: no such file; {_HELP}")
    return read_table(path, where=where, error=DataError)


def _level_column(cohort: str) -> str:
    return "grade" if cohort in GRADED else "stage_num"


def _canonical(clinical: pd.DataFrame, cohort: str) -> pd.DataFrame:
    """Clinical columns in canonical names and vocabulary values, index ``case_id``; times as found."""
    where = f"{cohort}/clinical.parquet"
    ids = identifiers(clinical, "case_id", where=where, error=DataError, unique=True)
    diagnoses = DIAGNOSES[cohort]
    diagnosis = _coded(clinical, "primary_class", (-1, *range(len(diagnoses))), where)
    months, event = _months(clinical, where), _coded(clinical, "os_event", (0, 1), where)
    followed = months.notna() & event.notna()
    if cohort in GRADED:
        level, name = clinical["grade"].where(clinical["grade"].isin(GRADES)), "grade"
    else:
        stage = _coded(clinical, "stage_num", range(1, len(STAGES) + 1), where)
        level, name = stage.map(dict(enumerate(STAGES, start=1))), "stage"
    cases = {
        "hospital": _text(clinical["hospital"]),
        "diagnosis": _text(diagnosis.map(dict(enumerate(diagnoses)))),
        name: _text(level),
        "time_months": months.where(followed),
        "event": event.where(followed),
        "age": clean_age(clinical["age"], where),
        "sex": _text(clinical["sex"]),
    }
    return pd.DataFrame(cases).set_index(pd.Index(ids, name="case_id"))


def _coded(clinical: pd.DataFrame, column: str, codes: Sequence[int], where: str) -> pd.Series:
    """A column of whole numbers of which each means something, as float64; blanks stay."""
    values = numbers(clinical[column], column, where)
    unknown = values.notna() & ~values.isin(codes)
    if unknown.any():
        raise DataError(
            f"{where}: {column!r} is none of {', '.join(map(str, codes))} in {rows(unknown)}; expected one of them or"
            " a blank, see docs/data.md"
        )
    return values


def _months(clinical: pd.DataFrame, where: str) -> pd.Series:
    months = numbers(clinical["os_months"], "os_months", where)
    long = months > LONGEST_MONTHS
    if long.any():
        raise DataError(
            f"{where}: 'os_months' is above {LONGEST_MONTHS} in {rows(long)}; expected months, not days, or a blank"
        )
    return months


def _text(values: pd.Series) -> pd.Series:
    return values.astype(object).where(values.notna(), None)


def _eligible(cases: pd.DataFrame, measured: pd.Index, table: str) -> tuple[pd.DataFrame, dict[str, int]]:
    """Eligible cases with times clipped, and what was left out or changed."""
    has_row, placed = cases.index.isin(measured), cases["hospital"].notna()
    kept = cases[has_row & placed].copy()
    level = "grade" if "grade" in kept else "stage"
    wrong, early = kept["time_months"] < 0, kept["time_months"] == 0
    kept.loc[wrong, ["time_months", "event"]] = None
    kept.loc[early, "time_months"] = SHORTEST_MONTHS
    counts = {
        f"left out: no row in {table} or an image table": int((~has_row).sum()),
        "left out: no hospital": int((has_row & ~placed).sum()),
        "kept without diagnosis: another histology": int(kept["diagnosis"].isna().sum()),
        f"kept without {level}": int(kept[level].isna().sum()),
        "kept without survival": int(kept["time_months"].isna().sum()) - int(wrong.sum()),
        "kept without survival because follow-up is negative": int(wrong.sum()),
        f"follow-up of 0 months, set to {SHORTEST_MONTHS}": int(early.sum()),
    }
    return kept, {reason: count for reason, count in counts.items() if count}


def _image(folder: Path) -> pd.DataFrame | None:
    for name in IMAGE_TABLES:
        path = folder / f"{name}.parquet"
        if path.is_file():
            table = _read(path)
            where = f"{folder.name}/{path.name}"
            ids = identifiers(table, "case_id", where=where, error=DataError, unique=True)
            return table.drop(columns="case_id").set_index(pd.Index(ids, name="case_id"))
    return None


def pathways_file(data: Path) -> Path | None:
    """The file of gene sets: ``pathways.parquet``, or else ``pathways.gmt``."""
    return next((path for name in PATHWAYS if (path := data / name).is_file()), None)


def _pathways(data: Path) -> dict[str, tuple[str, ...]]:
    """Pathway -> genes, both in the order of the file."""
    path = pathways_file(data)
    if path is None or path.suffix == ".gmt":
        return {} if path is None else read_gene_sets(path)
    table = read_table(path, where=path.name, error=DataError)
    if not {"gene", "pathway"} <= set(table.columns):
        raise DataError(f"{path.name}: columns 'gene' and 'pathway' are needed; {_HELP}")
    return {str(name): tuple(members["gene"]) for name, members in table.groupby("pathway", sort=False)}
