"""What integration tests share besides fixtures: a small study, commands as processes, run folders."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from modaltune.data.cohort import Cohort
from modaltune.federation.study import Study
from modaltune.federation.task import TaskSpec
from modaltune.storage import read_json_lines
from modaltune.tasks.vocabulary import configs_folder, load_vocabulary
from server.rounds import Result
from simulation.study import draft_study
from tests.integration.grids import Passed

SITES = ("H1", "H2", "H5")  # of the synthetic cohort; all three hold the diagnosis
SMALL = {
    "slides": {"width": 32, "depth": 2, "standardise": "feature"},
    "model": {
        "groups": ((0, 0), (1, 1)),
        "extra_extractors": 1,
        "output_width": 32,
        "gene_latent": 16,
        "gene_tokens": 4,
    },
    "training": {"rounds": 2, "batch_size": 16, "wire": "fp32"},
    "privacy": {"min_cell": 1},
}


@dataclass(frozen=True, kw_only=True)
class Finished:
    """A federation that ran: its result, its folder and every message that passed the coordinator."""

    result: Result
    folder: Path
    passed: list[Passed] = field(default_factory=list)

    @property
    def rounds(self) -> list[dict[str, Any]]:
        return read_rounds(self.folder)


@dataclass(frozen=True, kw_only=True)
class Ran:
    """A command that ended."""

    code: int
    out: str
    err: str
    session: int = 0


def read_rounds(folder: Path) -> list[dict[str, Any]]:
    return read_json_lines(folder / "rounds.jsonl")


def make_study(cohorts: Mapping[str, Cohort], gene_sets: Path, seed: int = 0) -> Study:
    return draft_study("small", cohorts, vocabulary(), gene_sets, SMALL, seed=seed)


def vocabulary() -> tuple[TaskSpec, ...]:
    return tuple(load_vocabulary(configs_folder() / "labels" / "synthetic.toml"))


def script(name: str) -> Path:
    """A console script of the project, as installed beside this interpreter."""
    return Path(sys.executable).with_name(name)


def start(name: str, *arguments: object) -> subprocess.Popen[str]:
    """A console script in a session of its own, so that whatever it starts can be found."""
    command = [str(script(name)), *map(str, arguments)]
    pipe = subprocess.PIPE
    return subprocess.Popen(
        command, stdout=pipe, stderr=pipe, text=True, start_new_session=True, preexec_fn=_heed_interrupts
    )


def _heed_interrupts() -> None:
    """A shell starts background jobs with SIGINT ignored, and their children inherit it."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def run_script(name: str, *arguments: object) -> Ran:
    process = start(name, *arguments)
    out, err = process.communicate()
    return Ran(code=process.returncode, out=out, err=err, session=process.pid)


def alive(session: int) -> list[str]:
    """Processes of a session that have not ended."""
    listed = subprocess.run(["ps", "-axo", "pid=,stat=,args="], capture_output=True, text=True, check=True).stdout
    rows = [line.split(None, 2) for line in listed.splitlines()]
    return [" ".join(row) for row in rows if not row[1].startswith("Z") and _session_of(int(row[0])) == session]


def _session_of(pid: int) -> int | None:
    try:
        return os.getsid(pid)
    except (ProcessLookupError, PermissionError):
        return None


def assert_one_line(ran: Ran, code: int = 2) -> str:
    """The one line of an error."""
    assert ran.code == code
    assert ran.out == ""
    assert ran.err.startswith("error: ")
    assert ran.err.count("\n") == 1
    assert "Traceback" not in ran.err
    return ran.err


def only_json(text: str) -> Any:
    """The one JSON document on standard output, without NaN or infinity."""
    assert text.count("\n") == 1
    return json.loads(text, parse_constant=lambda name: pytest.fail(f"{name} in JSON"))
