from __future__ import annotations

import logging
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

import server.app
from modaltune.data.cohort import Cohort
from modaltune.federation.study import Study
from server.rounds import Federation
from simulation import experiment
from simulation.engine import run_federation
from simulation.experiment import Experiment
from simulation.study import read_sites
from simulation.synthetic import build_synthetic
from tests.integration.grids import Passed, RecordingGrid, federate_here
from tests.integration.helpers import SITES, Finished, Ran, make_study, run_script, vocabulary

CASES = 80
TWO = ("H1", "H2")


@pytest.fixture(scope="session")
def hospitals(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Site folders of a small synthetic cohort: different tasks, missing modalities, every count may leave."""
    folders = build_synthetic(tmp_path_factory.mktemp("cohort"), cases=CASES)
    for folder in folders:
        settings = folder / "site.toml"
        settings.write_text(settings.read_text().replace("min_cell = 5", "min_cell = 1"))
    return {folder.name: folder for folder in folders}


@pytest.fixture(scope="session")
def folders(hospitals: dict[str, Path]) -> dict[str, Path]:
    """The folders of three of the hospitals."""
    return {site: hospitals[site] for site in SITES}


@pytest.fixture(scope="session")
def cohorts(hospitals: dict[str, Path]) -> dict[str, Cohort]:
    return read_sites(list(hospitals.values()), vocabulary(), "unused")


@pytest.fixture(scope="session")
def study(hospitals: dict[str, Path], cohorts: dict[str, Cohort]) -> Study:
    """Two rounds of a small model over all five hospitals."""
    return make_study(cohorts, hospitals["H1"].parent / "gene_sets.gmt")


@pytest.fixture
def two_hospitals(
    hospitals: dict[str, Path], cohorts: dict[str, Cohort], monkeypatch: pytest.MonkeyPatch
) -> Callable[..., Experiment]:
    """Experiments over H1 and H2, which answer in this process instead of Flower's engine."""

    def make(out: Path, rounds: int) -> Experiment:
        monkeypatch.setattr(experiment, "run_federation", federate_here)
        study = make_study({site: cohorts[site] for site in TWO}, hospitals["H1"].parent / "gene_sets.gmt")
        study = study.model_copy(update={"training": study.training.model_copy(update={"rounds": rounds})})
        folders = {site: hospitals[site] for site in TWO}
        return Experiment(study, folders, folders, out, lambda _: None)

    return make


@pytest.fixture(scope="session")
def federation(study: Study, hospitals: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Finished:
    """One real federation through Flower and Ray; the coordinator's messages are written down as they pass."""
    folder, passed = tmp_path_factory.mktemp("federation"), list[Passed]()

    class Recorded(Federation):
        def __init__(self, grid: Any, *arguments: Any) -> None:
            super().__init__(RecordingGrid(grid, passed), *arguments)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(server.app, "Federation", Recorded)
        result = run_federation(study, hospitals, folder)
    return Finished(result=result, folder=folder, passed=passed)


@pytest.fixture(scope="session")
def demo(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Ran]:
    """The shortest demo as a user runs it: the run folder and what the command said."""
    out = tmp_path_factory.mktemp("demo") / "run"
    return out, run_script("modaltune-simulate", "demo", "--rounds", 1, "--methods", "linear", "--json", "--out", out)


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Callable[..., Ran]:
    """Runs a console script's entry point in this process."""

    def run(main: Callable[[], None], *arguments: object) -> Ran:
        monkeypatch.setattr(sys, "argv", [main.__module__, *map(str, arguments)])
        capfd.readouterr()
        ours = logging.getLogger("modaltune")
        level = ours.level
        with pytest.raises(SystemExit) as ended:
            main()
        ours.setLevel(level)  # a command is quiet; the tests after it are not
        out, err = capfd.readouterr()
        return Ran(code=int(ended.value.code or 0), out=out, err=err)

    return run


@pytest.fixture(scope="module")
def tables(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Invented tables of one cohort, laid out as docs/data.md says."""
    folder, draw = tmp_path_factory.mktemp("tables"), np.random.default_rng(0)
    ids = [f"TCGA-XX-{number:04d}" for number in range(40)]
    clinical = {
        "case_id": ids,
        "hospital": ["H1"] * 20 + ["H2"] * 20,
        "primary_class": draw.integers(0, 2, 40),
        "stage_num": draw.integers(1, 5, 40),
        "os_months": draw.exponential(30, 40) + 1,
        "os_event": draw.integers(0, 2, 40),
        "age": draw.normal(60, 5, 40),
        "sex": ["female", "male"] * 20,
    }
    (folder / "BLCA").mkdir()
    pd.DataFrame(clinical).to_parquet(folder / "BLCA" / "clinical.parquet")
    genes = pd.DataFrame(draw.normal(size=(40, 4)), columns=["TP53", "KRAS", "EGFR", "RB1"])
    genes.insert(0, "case_id", ids)
    genes.to_parquet(folder / "BLCA" / "rna.parquet")
    return folder
