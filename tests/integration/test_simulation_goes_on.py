"""An interrupted simulation, started again, gives what an undisturbed one gives; sites answer in this process."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from modaltune.federation.study import Study
from server.rounds import Result
from simulation import experiment, runs
from simulation.runs import Plan, simulate
from simulation.synthetic import HOMOGENEOUS, build_synthetic
from tests.integration.grids import federate_here

pytestmark = pytest.mark.slow
SEEDS = (0, 1)
TIMES = ("seconds", "time")


def build(folder: Path, seed: int, everything: bool) -> Sequence[Path]:
    return build_synthetic(folder, seed=seed, cases=80, layout=HOMOGENEOUS)[:2]


PLAN = Plan(
    name="two",
    title="Two hospitals",
    vocabulary="synthetic",
    settings="synthetic",
    build=build,
    changes={"training": {"rounds": 2, "wire": "int8", "keep_optimiser": True}, "slides": {"max_patches": 8}},
    comparisons=("pooled",),
)


class Federations:
    """Stands for the engine; counts the rounds of training that it did."""

    rounds = 0

    def run(self, study: Study, folders: Mapping[str, Path], out: Path, progress: Any = None) -> Result:
        def count(row: Mapping[str, Any]) -> None:
            self.rounds += row["phase"] == "train"
            if progress is not None:
                progress(row)

        return federate_here(study, folders, out, count)


def run_until(line: str | None, out: Path) -> Federations:
    """The plan, interrupted when it says a line that begins so."""
    engine = Federations()

    def say(text: str) -> None:
        if line is not None and text.startswith(line):
            raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(experiment, "run_federation", engine.run)
        patch.setattr(runs, "write_report", lambda _: None)
        if line is None:
            simulate(PLAN, out, SEEDS, say, "two")
        else:
            with pytest.raises(KeyboardInterrupt):
                simulate(PLAN, out, SEEDS, say, "two")
    return engine


def without_times(path: Path) -> Any:
    found = json.loads(path.read_text())
    return {key: value for key, value in found.items() if key not in TIMES} if isinstance(found, dict) else found


def test_it_goes_on_after_a_round_and_after_a_model_with_the_same_result(tmp_path: Path) -> None:
    whole, cut = tmp_path / "whole" / "run", tmp_path / "cut" / "run"
    assert run_until(None, whole).rounds == 4
    assert run_until("round 2/2", cut).rounds == 2, "the second round was done and not yet written down"
    assert run_until("  pooled", cut).rounds == 1
    assert run_until(None, cut).rounds == 2, "of the second seed"
    for name in ("metrics.json", "comparisons.json", "summary.json", "preprocessing.json", "study.json"):
        assert without_times(cut / name) == without_times(whole / name), name
    for seed in ("", "seeds/1/"):
        weights = f"{seed}model/weights.safetensors"
        assert (cut / weights).read_bytes() == (whole / weights).read_bytes()
    pd.testing.assert_frame_equal(*(pd.read_parquet(run / "predictions.parquet") for run in (cut, whole)))
    assert sorted(path.name for path in cut.iterdir()) == sorted(path.name for path in whole.iterdir())
    assert [path.name for path in cut.parent.iterdir()] == ["run"]
