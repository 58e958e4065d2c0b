"""Checks of feature files: every file opened, all values read up to a limit, blocks of rows beyond it."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from modaltune.data.bag_files import open_bag
from modaltune.data.bags import check_features
from modaltune.data.cohort import Bag
from modaltune.data.encoder_names import encoder_model
from modaltune.data.slide_settings import SlideSettings, difference
from modaltune.data.slide_table import absent_files, shared_files
from modaltune.data.tables import rows
from modaltune.doctor.finding import Finding, error, from_error, ok, warning
from modaltune.doctor.site_files import SiteFiles
from modaltune.errors import FeatureFileError

READ_LIMIT = 2**30
"""Bytes of feature files that are read completely; of a larger site, blocks of every file are."""
BLOCKS, BLOCK_ROWS = 4, 256
PATCHES_OF = {"titan": "conch", "longnet": "gigapath"}
"""Slide encoder -> what the model of its patch encoder contains."""


@dataclass(frozen=True, kw_only=True)
class SlideFacts:
    """What one feature file says about itself; None = it does not say.

    Attributes:
        width: features per patch.
        positions: number of different coords.
        mpp: micrometres per pixel of the patches.
    """

    width: int
    patches: int
    positions: int
    dtype: str
    encoder: str | None
    patch_size: int | None
    mpp: float | None


def slides(site: SiteFiles) -> Iterator[Finding]:
    """The slides table: files present, each slide of one case, no file used twice."""
    table, folder = site.slides, site.config.paths.features
    if table is None or folder is None:
        yield ok("the site has no slides")
        return
    features = site.folder / folder
    if not os.path.isdir(features):
        yield error(f"paths.features: {folder} is not a folder", "correct it in site.toml")
        return
    absent = absent_files(table["file"], features)
    if absent.any():
        inside = ~absent_files(table["file"][absent].map(lambda file: Path(file).name), features)
        fix = f"put the files into {folder}/ or remove the rows"
        if inside.all():
            fix = f"file is a path inside {folder}/: leave {folder}/ or other folders out of it"
        yield error(f"the feature file is absent in {rows(absent)}", fix)
    shared = shared_files(table["file"], features)
    if shared.any():
        yield error(f"one feature file stands for several slides in {rows(shared)}", "name each slide's own file")
    used = {Path(file) for file in table["file"]}
    suffixes = {file.suffix for file in used}
    unused = sum(path.suffix in suffixes and path.relative_to(features) not in used for path in features.iterdir())
    if unused:
        yield warning(f"{unused} feature files in {folder}/ belong to no slide", "add them to the slides table, or not")
    if not absent.any() and not shared.any():
        yield ok(f"{len(table)} slides of {table['case_id'].nunique()} cases, every file present")


def bags(site: SiteFiles) -> Iterator[Finding]:
    """Every feature file: readable, finite, and all from one patch encoder and one setting."""
    table, folder = site.slides, site.config.paths.features
    if table is None or folder is None:
        yield ok("the site has no slides")
        return
    paths = {row: site.folder / folder / file for row, file in table["file"].items()}
    paths = {row: path for row, path in paths.items() if os.path.isfile(path)}
    size = sum(path.stat().st_size for path in paths.values())
    edge = site.config.features.patch_size_level0
    facts, problems = {}, list[FeatureFileError]()
    for row, path in paths.items():
        try:
            facts[row] = look_at(path, f"file of row {int(str(row)) + 1}", edge=edge, sampled=size > READ_LIMIT)
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
    yield from _positions(table_of)
    yield from _study(site, table_of)
    how = f"{BLOCKS} blocks of {BLOCK_ROWS} rows of each" if size > READ_LIMIT else "all values"
    patches = int(table_of["patches"].sum())
    yield ok(f"{len(facts)} feature files, {patches} patches, {size / 1e6:.0f} MB; read: {how}")


def look_at(path: Path, where: str, *, edge: int | None, sampled: bool) -> SlideFacts:
    """Open one feature file and check it, completely or by blocks of rows spread over it.

    Args:
        path: the file.
        where: what findings call it.
        edge: patch edge in level-0 pixels, for files that do not state it.
        sampled: whether only blocks are read.
    Raises:
        FeatureFileError: the file cannot be used.
    """
    bag, source = open_bag(path, where=where, patch_size_level0=edge)
    if sampled:
        _check_blocks(bag, where)
    else:
        check_features(bag, where)
    patches, width = bag.features.shape
    return SlideFacts(
        width=width,
        patches=patches,
        positions=len(np.unique(bag.coords, axis=0)),
        dtype=source.dtype,
        encoder=source.encoder,
        patch_size=source.patch_size,
        mpp=None if source.mpp is None else round(source.mpp, 2),
    )


def _check_blocks(bag: Bag, where: str) -> None:
    for start in np.linspace(0, max(0, len(bag.features) - BLOCK_ROWS), BLOCKS).astype(int):
        if not np.isfinite(bag.features[start : start + BLOCK_ROWS]).all():
            raise FeatureFileError(f"{where}: 'features' hold NaN or infinity; extract this slide again")


def _agreement(facts: pd.DataFrame) -> Iterator[Finding]:
    """Width, encoder, micrometres per pixel, edge and type are the same in every file."""
    again = "extract all slides of a site with one patch encoder and one setting"
    for column, what, grave in (
        ("width", "features per patch", True),
        ("encoder", "patch encoder", True),
        ("mpp", "micrometres per pixel", True),
        ("patch_size", "patch edge in pixels", True),
        ("dtype", "number type", False),
    ):
        said = _models(facts) if column == "encoder" else facts[column]
        known = said.dropna()
        if known.nunique() > 1:
            usual = known.mode().iloc[0]
            odd = said.notna() & (said != usual)
            say = error if grave else warning
            yield say(f"{what} differs: {usual} in most files, another in {rows(odd)}", again)
        silent = facts[column].isna() & facts["width"].notna()
        if column in ("encoder", "mpp") and silent.any():
            yield warning(
                f"{what} is not stated in {rows(silent)}",
                "nothing shows if another extraction got in: TRIDENT writes it, add the attribute",
            )
    if (facts["dtype"] == "float64").any():
        yield warning("features are float64", "float16 or float32 hold them in a quarter or half of the space")
    first = facts.dropna(subset="width").iloc[0]
    encoder = "not stated" if pd.isna(first["encoder"]) else first["encoder"]
    yield ok(f"width {int(first['width'])}, {first['dtype']}, encoder {encoder}")


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
    said = [difference(_settings(fact), asked) for _, fact in facts.iterrows()]
    if first := next(filter(None, said), None):
        unlike = pd.Series([text is not None for text in said], index=facts.index)
        yield error(
            f"not made as study {site.study.name} says in {rows(unlike)}; the first has {first}",
            "extract these slides as the study says under [slides]",
        )
    uneven = facts["patches"].notna() & (facts["patches"] != asked.rows)
    if asked.standardise == "position" and uneven.any():
        yield error(f"the study needs {asked.rows} rows a bag, not so in {rows(uneven)}", "build these bags again")
    name = PATCHES_OF.get(asked.encoder, "")
    other = facts["encoder"].notna() & ~_models(facts).astype(str).str.contains(name, regex=False)
    if other.any():
        yield warning(
            f"slide encoder {asked.encoder} reads patches of {name}, but another encoder is stated in {rows(other)}",
            "make sure that the features are of the encoder that the study names",
        )


def _models(facts: pd.DataFrame) -> pd.Series:
    """The patch encoders that files state, as they are compared."""
    return facts["encoder"].map(encoder_model, na_action="ignore")


def _settings(fact: pd.Series) -> SlideSettings:
    """One row of :class:`SlideFacts`."""
    encoder, mpp, size = (None if pd.isna(fact[name]) else fact[name] for name in ("encoder", "mpp", "patch_size"))
    return SlideSettings(patch_encoder=encoder, mpp=mpp, patch_size=None if size is None else int(size))
