"""Checks of feature files: every file opened, all values read up to a limit, blocks of rows beyond it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import h5py
import numpy as np
import pandas as pd

from modaltune.data.bags import read_bag
from modaltune.data.tables import rows
from modaltune.doctor.finding import Finding, error, from_error, ok, warning
from modaltune.doctor.site_files import SiteFiles
from modaltune.errors import FeatureFileError

READ_LIMIT = 2**30
"""Bytes of feature files that are read completely; of a larger site, blocks of every file are."""
BLOCKS, BLOCK_ROWS = 4, 256
PATCHES_OF = {"titan": "conch", "longnet": "gigapath"}
"""Slide encoder -> what the name of its patch encoder contains."""


@dataclass(frozen=True, kw_only=True)
class SlideFacts:
    """What one feature file says about itself; None = it does not say.

    Attributes:
        width: features per patch.
        magnification: objective power of the patches.
        scale: level-0 pixels a pixel of the patch, from both its edges.
        positions: number of different coords.
    """

    width: int
    patches: int
    dtype: str
    encoder: str | None
    patch_pixels: int | None
    magnification: float | None
    level0_magnification: float | None
    scale: float | None
    positions: int


def slides(site: SiteFiles) -> Iterator[Finding]:
    """The slides table: files present, each slide of one case, no file used twice."""
    table, folder = site.slides, site.config.paths.features
    if table is None or folder is None:
        yield ok("the site has no slides")
        return
    features = site.folder / folder
    if not features.is_dir():
        yield error(f"paths.features: {folder} is not a folder", "correct it in site.toml")
        return
    absent = ~table["file"].map(lambda file: (features / file).is_file())
    if absent.any():
        yield error(f"the feature file is absent in {rows(absent)}", f"put the files into {folder}/ or remove the rows")
    shared = table["file"].duplicated(keep=False)
    if shared.any():
        yield error(f"one feature file stands for several slides in {rows(shared)}", "name each slide's own file")
    unused = len({path.name for path in features.glob("*.h5")} - {Path(file).name for file in table["file"]})
    if unused:
        yield warning(f"{unused} feature files in {folder}/ belong to no slide", "add them to the slides table, or not")
    if not absent.any() and not shared.any():
        yield ok(f"{len(table)} slides of {table['case_id'].nunique()} cases, every file present")


def bags(site: SiteFiles) -> Iterator[Finding]:
    """Every feature file: readable, finite, and all from one patch encoder at one magnification."""
    table, folder = site.slides, site.config.paths.features
    if table is None or folder is None:
        yield ok("the site has no slides")
        return
    paths = {row: site.folder / folder / file for row, file in table["file"].items()}
    paths = {row: path for row, path in paths.items() if path.is_file()}
    size = sum(path.stat().st_size for path in paths.values())
    facts, problems = {}, list[FeatureFileError]()
    for row, path in paths.items():
        try:
            facts[row] = look_at(path, f"file of row {int(str(row)) + 1}", sampled=size > READ_LIMIT)
        except FeatureFileError as problem:
            problems.append(problem)
    if problems:
        first = from_error(problems[0])
        yield error(f"{len(problems)} of {len(paths)} feature files cannot be used; first: {first.finding}", first.fix)
    if not paths:
        yield warning("no feature file to read", "solve 'slides' first")
    if not facts:
        return
    table_of = pd.DataFrame([vars(fact) for fact in facts.values()], index=pd.Index(facts)).reindex(table.index)
    yield from _agreement(table_of)
    yield from _scale(table_of)
    yield from _positions(table_of)
    yield from _study(site, table_of)
    how = f"{BLOCKS} blocks of {BLOCK_ROWS} rows of each" if size > READ_LIMIT else "all values"
    patches = int(table_of["patches"].sum())
    yield ok(f"{len(facts)} feature files, {patches} patches, {size / 1e6:.0f} MB; read: {how}")


def look_at(path: Path, where: str, *, sampled: bool) -> SlideFacts:
    """Open one feature file and check it, completely or by blocks of rows spread over it.

    Raises:
        FeatureFileError: the file cannot be used.
    """
    if not sampled:
        read_bag(path, where=where)
    try:
        with h5py.File(path, "r") as file:
            return _facts(file, where, sampled=sampled)
    except (AttributeError, KeyError, OSError, RuntimeError, TypeError) as problem:  # whatever it holds instead
        raise FeatureFileError(f"{where}: truncated or not a feature file; copy or extract it again") from problem


def _facts(file: h5py.File, where: str, *, sampled: bool) -> SlideFacts:
    features, coords = file["features"], file["coords"]
    if features.ndim != 2 or 0 in features.shape or coords.shape != (features.shape[0], 2):
        raise FeatureFileError(
            f"{where}: 'features' {features.shape} and 'coords' {coords.shape}; expected [N, W] and [N, 2], N above 0"
        )
    if sampled:
        for start in np.linspace(0, max(0, features.shape[0] - BLOCK_ROWS), BLOCKS).astype(int):
            if not np.isfinite(features[start : start + BLOCK_ROWS]).all():
                raise FeatureFileError(f"{where}: 'features' holds NaN or infinity; extract this slide again")
    pixels, edge = _number(coords, "patch_size"), _number(coords, "patch_size_level0")
    encoder = features.attrs.get("encoder", file.attrs.get("encoder"))
    return SlideFacts(
        width=int(features.shape[1]),
        patches=int(features.shape[0]),
        dtype=str(features.dtype),
        encoder=None if encoder is None else str(encoder),
        patch_pixels=None if pixels is None else int(pixels),
        magnification=_number(coords, "target_magnification"),
        level0_magnification=_number(coords, "level0_magnification"),
        scale=None if pixels is None or edge is None or pixels <= 0 else edge / pixels,
        positions=len(np.unique(np.asarray(coords), axis=0)),
    )


def _number(dataset: h5py.Dataset, name: str) -> float | None:
    value = np.asarray(dataset.attrs.get(name, np.nan))
    number = float(value.item()) if value.size == 1 and np.issubdtype(value.dtype, np.number) else float("nan")
    return None if np.isnan(number) else number


def _agreement(facts: pd.DataFrame) -> Iterator[Finding]:
    """Width, encoder, magnification, edge and type are the same in every file."""
    again = "extract all slides of a site with one patch encoder and one setting"
    for column, what, grave in (
        ("width", "features per patch", True),
        ("encoder", "patch encoder", True),
        ("magnification", "magnification", True),
        ("patch_pixels", "patch edge in pixels", True),
        ("dtype", "number type", False),
    ):
        known = facts[column].dropna()
        if known.nunique() > 1:
            usual = known.mode().iloc[0]
            odd = facts[column].notna() & (facts[column] != usual)
            say = error if grave else warning
            yield say(f"{what} differs: {usual} in most files, another in {rows(odd)}", again)
        silent = facts[column].isna() & facts["width"].notna()
        if column in ("encoder", "magnification") and silent.any():
            yield warning(
                f"{what} is not stated in {rows(silent)}",
                "nothing shows if another extraction got in: TRIDENT writes it, add the attribute",
            )
    if (facts["dtype"] == "float64").any():
        yield warning("features are float64", "float16 or float32 hold them in a quarter or half of the space")
    first = facts.dropna(subset="width").iloc[0]
    encoder = "not stated" if pd.isna(first["encoder"]) else first["encoder"]
    yield ok(f"width {int(first['width'])}, {first['dtype']}, encoder {encoder}")


def _scale(facts: pd.DataFrame) -> Iterator[Finding]:
    """The patch edge at level 0 fits the two magnifications, so both scanners give the same micrometres."""
    expected = facts["level0_magnification"].astype(float) / facts["magnification"].astype(float)
    found = facts["scale"].astype(float)
    wrong = expected.notna() & found.notna() & ((found / expected - 1).abs() > 0.1)
    if wrong.any():
        yield error(
            f"patch_size_level0 does not fit the magnifications in {rows(wrong)}: another size of tissue a patch",
            "extract these slides again and state their micrometres per pixel",
        )


def _positions(facts: pd.DataFrame) -> Iterator[Finding]:
    repeated = facts["positions"] < facts["patches"]
    if repeated.any():
        yield warning(
            f"patches that share a position in {rows(repeated)}", "coords were lost or doubled: extract again"
        )


def _study(site: SiteFiles, facts: pd.DataFrame) -> Iterator[Finding]:
    if site.study is None:
        return
    asked = site.study.slides
    wrong = facts["width"].notna() & (facts["width"] != asked.in_width)
    if wrong.any():
        yield error(
            f"study {site.study.name} needs {asked.in_width} features per patch, not so in {rows(wrong)}",
            "extract the slides with the patch encoder that the study names",
        )
    uneven = facts["patches"].notna() & (facts["patches"] != asked.rows)
    if asked.standardise == "position" and uneven.any():
        yield error(f"the study needs {asked.rows} rows a bag, not so in {rows(uneven)}", "build these bags again")
    name = PATCHES_OF.get(asked.encoder, "")
    other = facts["encoder"].notna() & ~facts["encoder"].astype(str).str.lower().str.contains(name, regex=False)
    if other.any():
        yield warning(
            f"slide encoder {asked.encoder} reads patches of {name}, but another encoder is stated in {rows(other)}",
            "make sure that the features are of the encoder that the study names",
        )
