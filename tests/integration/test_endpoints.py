"""Hospitals that follow patients to different endpoints train one model."""

from __future__ import annotations

import shutil
from pathlib import Path

import pandas as pd
import pytest

from modaltune.federation.study import Study
from server.rounds import Federation
from tests.integration.grids import LocalGrid

pytestmark = pytest.mark.integration
RELAPSE = "relapse_free_survival"


def followed_to_relapse(site: Path, *, instead: bool) -> None:
    """Relapses at half the time to death, or ``instead`` of it the same times under the other endpoint's name."""
    toml = (site / "site.toml").read_text()
    assert '"survival"' in toml
    if instead:
        columns = '[columns]\nrelapse_free_time_months = "time_months"\nrelapse_free_event = "event"\n'
        (site / "site.toml").write_text(toml.replace('"survival"', f'"{RELAPSE}"') + columns)
        return
    cases = pd.read_parquet(site / "cases.parquet")
    relapses = {"relapse_free_time_months": cases["time_months"] / 2, "relapse_free_event": cases["event"]}
    cases.assign(**relapses).to_parquet(site / "cases.parquet")
    (site / "site.toml").write_text(toml.replace('"survival"', f'"survival", "{RELAPSE}"'))


def test_overall_and_relapse_free_survival_are_tasks_of_their_own(
    study: Study, hospitals: dict[str, Path], tmp_path: Path
) -> None:
    folders = {name: Path(shutil.copytree(path, tmp_path / name)) for name, path in hospitals.items()}
    followed_to_relapse(folders["H4"], instead=True)
    followed_to_relapse(folders["H5"], instead=False)
    relapse = study.task("survival").model_copy(update={"name": RELAPSE, "template": "Time to relapse: {text}."})
    both = study.model_copy(update={"tasks": (*study.tasks, relapse)})
    result = Federation(LocalGrid(folders), both, tmp_path / "run").run()
    assert {name for name, found in result.capabilities.items() if RELAPSE in found.tasks} == {"H4", "H5"}
    overall, other = (result.preprocessing.tasks[task].bin_edges for task in ("survival", RELAPSE))
    assert len(overall) == len(other) == 3
    assert overall != other
    told = {site: set(found) for site, found in result.evaluation.metrics.items()}
    scored = {task: {site for site in told if f"{task}.c_index.value" in told[site]} for task in ("survival", RELAPSE)}
    assert scored == {"survival": {"H1", "H5"}, RELAPSE: {"H4", "H5"}}
