"""The slides of a folder, and the tables of what became of them."""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from modaltune.data.sample_map import TCGA_SAMPLE
from modaltune.data.slide_table import SLIDE_COLUMNS, files_by_slide
from modaltune.data.tables import identifiers, read_table
from modaltune.errors import FeatureFileError, SlideError
from modaltune.storage import write_text

SUFFIXES = (".svs", ".ndpi", ".mrxs", ".tif", ".tiff", ".dcm", ".scn", ".vms", ".vmu", ".bif", ".svslide", ".czi")
_ENDS = 2**16
PRIMARY_TUMOUR = ("01", "03")
"""TCGA sample types: primary solid tumour, primary blood-derived cancer."""


@dataclass(frozen=True, kw_only=True)
class Source:
    """One slide of the folder.

    Attributes:
        row: its number, from 1, in the order of the names; messages name a slide by it.
        slide_id: the file's name without suffix; of DICOM in a folder of its own the folder's name.
        path: the file that OpenSlide opens.
        file: its path below the folder, for the local table of failures.
    """

    row: int
    slide_id: str
    path: Path
    file: str


def source_mark(path: Path) -> str:
    """Tells a slide from another one under the same name: SHA-256 of its size, beginning and end."""
    with path.open("rb") as stream:
        beginning, size = stream.read(_ENDS), path.stat().st_size
        stream.seek(max(0, size - _ENDS))
        return hashlib.sha256(str(size).encode() + beginning + stream.read()).hexdigest()


def find_slides(folder: Path) -> list[Source]:
    """All slides at and below a folder, by suffix; the DICOM files of one subfolder are one slide.

    Raises:
        SlideError: no such folder, or no slide in it.
    """
    if not folder.is_dir():
        raise SlideError(f"--slides {folder}: no such folder")
    found: dict[Path, str] = {}
    series: set[Path] = set()
    for path in sorted(path for path in folder.rglob("*") if _is_slide(path, folder)):
        if path.suffix.lower() != ".dcm" or path.parent == folder:
            found[path] = path.stem
        elif path.parent not in series:
            series.add(path.parent)
            found[path] = path.parent.name
    if not found:
        raise SlideError(f"--slides {folder}: no slide in it; expected files that end in {', '.join(SUFFIXES)}")
    return [
        Source(row=row, slide_id=name, path=path, file=path.relative_to(folder).as_posix())
        for row, (path, name) in enumerate(found.items(), start=1)
    ]


def read_slides_table(path: Path, features: Path) -> pd.DataFrame:
    """``slides.csv`` of a site as it stands, without a row where there is none; an absent ``file`` is filled in.

    Raises:
        FeatureFileError: it names no slides and cases, or one slide twice.
    """
    if not path.is_file():
        return pd.DataFrame(columns=list(SLIDE_COLUMNS))
    table = read_table(path, where=path.name, error=FeatureFileError, text=SLIDE_COLUMNS)
    if "file" not in table and "slide_id" in table:
        files = files_by_slide(features)
        slides = [str(slide).strip() for slide in table["slide_id"]]
        table["file"] = [min(files.get(slide, {f"{slide}.h5"})) for slide in slides]
    for column in SLIDE_COLUMNS:
        identifiers(table, column, where=path.name, error=FeatureFileError, unique=column == "slide_id")
    return table


def write_slides_table(path: Path, features: Path, made: Collection[str] = ()) -> int:
    """Write ``slides.csv`` of a site for the bags of a folder; rows and columns that it has already stay as they are.

    Beside new slides a table without ``file`` gets that column too. A new slide's case is its TCGA barcode, or the
    slide itself. TCGA slides of other than primary tumours are left out, and so is a bag that is older than the table
    and has no row in it: somebody took it out.

    Args:
        made: slides whose bags this run wrote.
    Returns:
        How many slides of other than primary tumours were left out.
    """
    table, bags = read_slides_table(path, features), sorted(features.glob("*.h5"))
    others = {bag.stem for bag in bags if not _is_primary(bag.stem)}
    if path.is_file():
        written = path.stat().st_mtime
        bags = [bag for bag in bags if bag.stem in made or bag.stat().st_mtime > written]
    known = {*table["slide_id"], *(Path(file).stem for file in table["file"])}
    rows = [(bag.stem, _case(bag.stem), f"{bag.stem}.h5") for bag in bags if bag.stem not in known | others]
    if rows:
        more = pd.DataFrame(rows, columns=list(SLIDE_COLUMNS))
        write_text(path, pd.concat([table, more]).to_csv(index=False))
    return len(others - known)


def write_failures(path: Path, failures: Iterable[tuple[Source, str]]) -> None:
    """Write the failures with the names of their files: a table for the site alone."""
    rows = [(slide.row, slide.file, why) for slide, why in failures]
    write_text(path, pd.DataFrame(rows, columns=["row", "file", "reason"]).to_csv(index=False))


def _is_slide(path: Path, folder: Path) -> bool:
    hidden = any(part.startswith(".") for part in path.relative_to(folder).parts)
    return path.suffix.lower() in SUFFIXES and path.is_file() and not hidden


def _case(slide_id: str) -> str:
    found = TCGA_SAMPLE.fullmatch(slide_id)
    return found[1] if found else slide_id


def _is_primary(slide_id: str) -> bool:
    found = TCGA_SAMPLE.fullmatch(slide_id)
    return found is None or found[2] in PRIMARY_TUMOUR
