"""One cohort, from the public sources to a folder that ``modaltune-simulate tcga`` reads."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pandas as pd

from modaltune import __version__
from modaltune.errors import ConfigError, DataError
from modaltune.storage import digest_file, write_json
from simulation.fetch.connection import Connection
from simulation.fetch.download import Source, download
from simulation.fetch.gdc import GDC, read_cases, read_release, read_slides
from simulation.fetch.tables import PROJECTS, clinical_table, name_hospitals, read_centres, slide_table
from simulation.fetch.xena import UNIT, XENA, matrix_url, read_matrix

MANIFEST = "manifest.json"
DOWNLOADS = "downloads"
HOSPITALS = 5

Say = Callable[[str, int, int | None], None]
"""Told of a step: its name, how far it is and, where that is known, how far it goes."""


@dataclass(frozen=True, kw_only=True)
class Wanted:
    """What to fetch.

    Attributes:
        cohort: e.g. ``BRCA``, in capitals.
        hospitals: how many of the largest centres become hospitals.
        centres: table that names the centre of tissue source sites in place of GDC, or None.
        gdc: address of the GDC API.
        xena: address of the Xena hub.
    """

    cohort: str
    hospitals: int = HOSPITALS
    centres: Path | None = None
    gdc: str = GDC
    xena: str = XENA

    def __post_init__(self) -> None:
        if self.cohort not in PROJECTS:
            raise ConfigError(f"unknown cohort {self.cohort!r}; choose from {', '.join(PROJECTS)}")

    def options(self) -> dict[str, Any]:
        """What decides the tables; another version of the centres' table is another option."""
        centres = None if self.centres is None else digest_file(self.centres)
        return asdict(self) | {"centres": centres}


def fetch_cohort(wanted: Wanted, out: Path, connection: Connection, say: Say) -> dict[str, Any]:
    """Write ``out/COHORT`` with its tables and a manifest, all of it or nothing.

    A folder that is complete for the same options is verified against its manifest and left as it is, without a
    request. Expression matrices are kept in ``out/downloads``, so other options do not download them again.

    Returns:
        The manifest, and ``fetched``: False when everything was there.
    Raises:
        ConfigError: the folder holds something else.
        DataError: a table there was changed or damaged, or no centre is large enough.
        FetchError: a source does not answer as expected.
    """
    folder = out / wanted.cohort
    centres = {} if wanted.centres is None else read_centres(wanted.centres)
    manifest = _present(folder)
    if manifest is not None and manifest["options"] == wanted.options():
        return manifest | {"fetched": False}
    if manifest is not None and (added := {path.name for path in folder.iterdir()} - {MANIFEST, *manifest["files"]}):
        raise ConfigError(f"{folder}: fetch did not write {len(added)} of the files in it; choose another --out")
    projects = PROJECTS[wanted.cohort]
    say("cases and slides", 0, None)
    release = read_release(connection, wanted.gdc)
    clinical = clinical_table(read_cases(connection, wanted.gdc, projects), wanted.cohort, centres)
    slides = slide_table(read_slides(connection, wanted.gdc, projects))
    say("cases and slides", 1, 1)
    expression, sources, counts = _expression(wanted, out / DOWNLOADS, connection, say)
    clinical.insert(1, "hospital", name_hospitals(clinical, expression.index, wanted.hospitals))
    tables = {"clinical": clinical, "rna": expression.reset_index(), "slides": slides}
    about = {
        "cohort": wanted.cohort,
        "options": wanted.options(),
        "fetched_at": datetime.now(UTC).isoformat(timespec="seconds"),
        "modaltune": __version__,
        "gdc_release": release,
        "sources": [asdict(source) for source in sources],
        "unit": UNIT,
        "counts": counts,
        "hospitals": _hospitals(clinical, expression.index),
    }
    return _write(folder, tables, about, say) | {"fetched": True}


def _expression(
    wanted: Wanted, downloads: Path, connection: Connection, say: Say
) -> tuple[pd.DataFrame, list[Source], dict[str, int]]:
    """Matrices of all projects, cases below each other, genes that all of them have."""
    parts, sources, counts = [], [], dict[str, int]()
    for project in PROJECTS[wanted.cohort]:
        url, path = matrix_url(wanted.xena, project), downloads / f"{project}.HiSeqV2.gz"

        def tell(done: int, total: int | None, project: str = project) -> None:
            say(f"expression of {project}", done, total)

        sources.append(download(connection, url, path, tell))
        part, left_out = read_matrix(path, url)
        parts.append(part)
        counts = {reason: counts.get(reason, 0) + count for reason, count in left_out.items()}
    return pd.concat(parts, join="inner"), sources, counts


def _hospitals(clinical: pd.DataFrame, measured: pd.Index) -> dict[str, dict[str, Any]]:
    """Hospital -> its centre, its tissue source sites and its cases with expression."""
    placed = clinical[clinical["hospital"].notna() & clinical["case_id"].isin(measured)]
    return {
        str(name): {
            "centre": str(group["centre"].iloc[0]),
            "tss": sorted(group["tss"].unique()),
            "cases": len(group),
        }
        for name, group in sorted(placed.groupby("hospital"), key=lambda item: int(str(item[0])[1:]))
    }


def _present(folder: Path) -> dict[str, Any] | None:
    """The manifest of a folder that this command wrote and nobody changed; None when there is no folder."""
    if not folder.exists():
        return None
    try:
        manifest: dict[str, Any] = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
        digests = {name: about["sha256"] for name, about in manifest["files"].items()}
        manifest["options"]
    except (OSError, ValueError, LookupError, TypeError, AttributeError):
        raise ConfigError(
            f"{folder}: not a folder that fetch wrote (no readable {MANIFEST}); choose another --out"
        ) from None
    for name, digest in digests.items():
        if not (folder / name).is_file() or digest_file(folder / name) != digest:
            raise DataError(
                f"{folder / name}: missing or changed since it was fetched (sha256 differs from {MANIFEST}); "
                f"remove {folder} to fetch it again, or choose another --out"
            )
    return manifest


def _write(folder: Path, tables: Mapping[str, pd.DataFrame], about: Mapping[str, Any], say: Say) -> dict[str, Any]:
    """Write the folder beside its place, then put it there."""
    partial = folder.with_name(f".{folder.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    try:
        files = {}
        for number, (name, table) in enumerate(tables.items(), start=1):
            path = partial / f"{name}.parquet"
            table.to_parquet(path, index=False)
            files[path.name] = {"rows": len(table), "bytes": path.stat().st_size, "sha256": digest_file(path)}
            say("tables", number, len(tables))
        manifest = dict(about) | {"files": files}
        write_json(partial / MANIFEST, manifest)
        if folder.exists():
            shutil.rmtree(folder)
        os.replace(partial, folder)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise
    return manifest
