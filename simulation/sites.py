"""Writing simulated hospitals as site folders, exactly as a real hospital would lay out its own."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from modaltune.data.bags import write_bag
from modaltune.data.case_table import task_columns
from modaltune.data.cohort import SPLITS, Bag
from modaltune.data.site import HASH_SPLIT, SITE_FILE
from modaltune.errors import ConfigError
from modaltune.seeds import numpy_generator

_WRITTEN = "# Written by modaltune-simulate, which replaces this folder when it builds into it again."
MODALITIES = ("expression", "slides")
CLINICAL = ("age", "sex")
DISJOINT: Mapping[str, tuple[str, ...]] = {
    "H1": ("diagnosis",),
    "H2": ("stage",),
    "H3": ("survival",),
    "H4": ("diagnosis", "survival"),
}
"""Hospitals that label different tasks; the others label everything."""

Bags = Mapping[str, Sequence[tuple[str, Bag]]]
"""case_id -> (slide_id, bag) of its slides."""


def write_site(
    folder: Path,
    *,
    name: str,
    tasks: Sequence[str],
    cases: pd.DataFrame,
    expression: pd.DataFrame | None,
    bags: Bags,
    files: Mapping[str, Sequence[tuple[str, Path]]] | None = None,
    encoder: str = "simulated",
    min_cell: int = 5,
) -> Path:
    """Write a site folder: complete or not at all. An earlier site folder of that name is replaced.

    Args:
        folder: the site folder.
        name: name of the site.
        tasks: tasks it labels; label columns of other tasks are not written.
        cases: index ``case_id``; ``split``, the labels of the tasks, ``age``, ``sex``.
        expression: ``[cases, genes]``, index ``case_id``; None = no genomics.
        bags: case_id -> its slides; empty = no slides.
        files: case_id -> (slide_id, feature file) in place of bags; the site folder only points to them.
        encoder: name of the patch encoder, noted in the feature files.
        min_cell: smallest count that may leave the site.
    Returns:
        The folder.
    """
    if folder.exists() and not _ours(folder) and (not folder.is_dir() or any(folder.iterdir())):
        raise ConfigError(
            f"{folder}: exists and was not written by a simulation; choose another output folder or remove it"
        )
    partial = folder.with_name(f".{folder.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    wanted = ["split", *(column for task in tasks for column in task_columns(task)), *CLINICAL]
    paths = _write_tables(partial, cases[[column for column in wanted if column in cases]], expression)
    if files:
        paths |= _link_slides(partial, files)
    elif bags:
        paths |= _write_slides(partial, bags, encoder)
    (partial / SITE_FILE).write_text(_site_toml(name, tasks, paths, min_cell), encoding="utf-8")
    if folder.exists():
        shutil.rmtree(folder)
    os.replace(partial, folder)
    return folder


def _ours(folder: Path) -> bool:
    """Whether a simulation wrote the folder: a hospital's own one is never replaced."""
    site = folder / SITE_FILE
    return site.is_file() and site.read_text(encoding="utf-8", errors="replace").startswith(_WRITTEN)


def draw_split(strata: pd.Series, seed: int, *names: object) -> pd.Series:
    """Split cases 65/10/25, as evenly as whole cases allow inside every stratum.

    Args:
        strata: one value a case, index ``case_id``.
        seed: seed of the draw.
        names: what else the draw depends on, e.g. the hospital.
    Returns:
        train, val or test, same index.
    """
    places = even_places(strata, seed, "split", *names)
    bounds = np.cumsum([HASH_SPLIT[name] for name in SPLITS])[:-1]
    split = np.asarray(SPLITS, dtype=object)[np.searchsorted(bounds, places, side="right")]
    return pd.Series(split, index=strata.index)


def even_places(strata: pd.Series, seed: int, *names: object) -> NDArray[np.float64]:
    """A place in [0, 1) for every case, drawn so that those of every stratum are spread evenly."""
    draw = numpy_generator(seed, *names)
    order = np.lexsort([draw.permutation(len(strata)), strata.rank(method="dense").to_numpy()])
    places = np.empty(len(strata))
    # multiples of the golden ratio are spread evenly over [0, 1) in every run of neighbours, so in every stratum
    places[order] = (draw.random() + np.arange(len(strata)) * (np.sqrt(5) - 1) / 2) % 1
    return places


def class_and_event(cases: pd.DataFrame) -> pd.Series:
    """Strata of a split: diagnosis (blank is one of them) by event."""
    return cases["diagnosis"].fillna("none").astype(str) + "/" + cases["event"].fillna(-1).astype(int).astype(str)


def require_known(what: str, names: Iterable[str], known: Collection[str]) -> None:
    """Refuse an unknown name and list the known ones."""
    unknown = [name for name in names if name not in known]
    if unknown:
        raise ConfigError(f"unknown {what} {unknown[0]!r}; choose from {', '.join(known)}")


def disjoint_tasks(hospitals: Collection[str], tasks: Collection[str]) -> dict[str, tuple[str, ...]]:
    """The layout ``DISJOINT`` for all hospitals of a cohort; its third task takes the place of ``stage``."""
    if absent := [name for name in DISJOINT if name not in hospitals]:
        raise ConfigError(f"disjoint tasks need hospitals H1 to H4; {absent[0]} is absent")
    level = next((task for task in tasks if task not in ("diagnosis", "survival")), None)
    if level is None:
        raise ConfigError("disjoint tasks need a cohort with diagnosis, survival and a third task")
    layout = {name: tuple(level if task == "stage" else task for task in held) for name, held in DISJOINT.items()}
    return {name: layout.get(name, tuple(tasks)) for name in hospitals}


def check_overrides(
    hospitals: Collection[str],
    known_tasks: Collection[str],
    tasks: Mapping[str, Collection[str]],
    without: Mapping[str, Collection[str]],
) -> None:
    """Refuse unknown hospitals, tasks and modalities, and a hospital that is left without a task or a modality."""
    require_known("hospital", (*tasks, *without), hospitals)
    for hospital, names in tasks.items():
        require_known("task", names, known_tasks)
        if not names:
            raise ConfigError(f"hospital {hospital} is left without a task; choose from {', '.join(known_tasks)}")
    for hospital, names in without.items():
        require_known("modality", names, MODALITIES)
        if set(names) >= set(MODALITIES):
            raise ConfigError(
                f"hospital {hospital} is left without a modality; take away expression or slides, not both"
            )


def _write_tables(folder: Path, cases: pd.DataFrame, expression: pd.DataFrame | None) -> dict[str, str]:
    tables = {"cases": cases} if expression is None else {"cases": cases, "expression": expression}
    for name, table in tables.items():
        table.rename_axis("case_id").reset_index().to_parquet(folder / f"{name}.parquet", index=False)
    return {name: f"{name}.parquet" for name in tables}


def _write_slides(folder: Path, bags: Bags, encoder: str) -> dict[str, str]:
    slides = [(slide, case, f"{slide}.h5", bag) for case, pairs in bags.items() for slide, bag in pairs]
    for slide, _, file, bag in slides:
        write_bag(folder / "features" / file, bag, encoder=encoder, name=slide)
    return _slide_table(folder, [row[:3] for row in slides])


def _link_slides(folder: Path, files: Mapping[str, Sequence[tuple[str, Path]]]) -> dict[str, str]:
    (folder / "features").mkdir()
    rows = []
    for case, pairs in files.items():
        for slide, path in pairs:
            (folder / "features" / path.name).symlink_to(path.resolve())
            rows.append((slide, case, path.name))
    return _slide_table(folder, rows)


def _slide_table(folder: Path, rows: Sequence[tuple[str, str, str]]) -> dict[str, str]:
    pd.DataFrame(rows, columns=["slide_id", "case_id", "file"]).to_csv(folder / "slides.csv", index=False)
    return {"slides": "slides.csv", "features": "features"}


def _site_toml(name: str, tasks: Sequence[str], paths: Mapping[str, str], min_cell: int) -> str:
    lines = [_WRITTEN, f"name = {json.dumps(name)}", f"tasks = {json.dumps(list(tasks))}", "", "[paths]"]
    lines += [f"{key} = {json.dumps(value)}" for key, value in paths.items()]
    return "\n".join([*lines, "", "[policy]", f"min_cell = {min_cell}", ""])
