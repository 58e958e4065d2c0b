"""The tiny cohort as a site folder beside a released model of the tiny study, for predict and explain."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

import modaltune.cli
from modaltune.data.cohort import Cohort
from modaltune.data.preprocessing import Preprocessing
from modaltune.federation.study import Study
from modaltune.models.learner import Learner, save_model
from simulation.sites import write_site


@dataclass(frozen=True, kw_only=True)
class Released:
    model: Path
    site: Path


def release(
    folder: Path, learner: Learner, study: Study, preprocessing: Preprocessing, cohort: Cohort, min_cell: int = 3
) -> Released:
    save_model(folder / "model", learner, study, preprocessing.model_copy(update={"study": study.digest}))
    write_site(
        folder / "H1",
        name="H1",
        tasks=cohort.tasks,
        cases=cohort.cases,
        expression=cohort.expression,
        bags={
            case: [(f"{case}-slide{number}", bag) for number, bag in enumerate(bags)]
            for case, bags in cohort.bags.items()
        },
        encoder="stand-in",
        min_cell=min_cell,
    )
    return Released(model=folder / "model", site=folder / "H1")


Run = Callable[..., tuple[int, str, str]]


def runner(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """The command line in this process: exit status, stdout and stderr with its lines joined."""

    def call(*arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["modaltune", *map(str, arguments)])
        with pytest.raises(SystemExit) as ended:
            modaltune.cli.main()
        out, err = capsys.readouterr()
        return int(ended.value.code or 0), out, " ".join(err.split())

    return call


def one_document(out: str) -> dict[str, object]:
    """The one JSON document of stdout."""
    assert out.count("\n") == 1
    found: dict[str, object] = json.loads(out)
    return found
