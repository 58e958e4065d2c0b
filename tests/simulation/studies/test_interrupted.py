"""A real study with real cells, killed and started again."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pandas as pd
import psutil
import pytest

from simulation.studies import runner
from simulation.studies.cells import expand
from simulation.studies.runner import Failure, run_cells
from simulation.studies.spec import load_study_file

STUDY = """
name = "interrupted"
[data]
kind = "synthetic"
cases = 100
[training]
rounds = 1
[[axes]]
name = "training.wire"
values = ["fp16", "int8"]
"""
_MAIN = "from simulation.cli import main; main()"


def start(file: Path, out: Path) -> subprocess.Popen[bytes]:
    """A study as a shell starts it in the background: it and all its processes ignore Ctrl-C."""
    command = [sys.executable, "-c", f"import signal; signal.signal(2, signal.SIG_IGN); {_MAIN}"]
    command += ["study", str(file), "--out", str(out), "--json"]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=(out.parent / "err").open("wb"))


@pytest.mark.slow
@pytest.mark.integration
def test_a_killed_study_leaves_no_process_and_goes_on_with_the_cells_that_are_not_done(tmp_path: Path) -> None:
    file, out = tmp_path / "study.toml", tmp_path / "out"
    file.write_text(STUDY)
    first = start(file, out)
    done = out / "cells" / "wire=fp16,seed=0" / "DONE"
    deadline = time.monotonic() + 300
    while not (done.is_file() and (out / "logs" / "wire=int8,seed=0.log").is_file()) and time.monotonic() < deadline:
        assert first.poll() is None
        time.sleep(0.2)
    cells = psutil.Process(first.pid).children(recursive=True)
    os.kill(first.pid, signal.SIGKILL)
    first.wait()
    written = done.stat().st_mtime
    again = start(file, out)
    output, _ = again.communicate(timeout=300)
    assert again.returncode == 0, (tmp_path / "err").read_text()
    assert done.stat().st_mtime == written
    assert not psutil.wait_procs(cells, timeout=30)[1]
    answer = json.loads(output)
    assert {row["cell"] for row in answer["metrics"]} == {"wire=fp16,seed=0", "wire=int8,seed=0"}
    assert set(pd.read_parquet(out / "results.parquet")["training.wire"]) == {"fp16", "int8"}
    assert len((out / "log.jsonl").read_text().splitlines()) == 2
    said = json.loads((out / "cells" / "wire=int8,seed=0" / "summary.json").read_text())["command"]
    assert said == f"modaltune-simulate study {file} --out {out} --only wire=int8,seed=0"


@pytest.mark.slow
def test_a_cell_that_cannot_run_is_a_failure_with_its_reason(tmp_path: Path) -> None:
    file = tmp_path / "study.toml"
    file.write_text(STUDY.replace("cases = 100", 'cases = 100\nleave_out = ["H7"]'))
    cells, said = expand(load_study_file(file))[:1], []
    failures = run_cells(cells, tmp_path / "out", None, 1, said.append, lambda *_: None)
    assert failures == [
        Failure(cell="wire=fp16,seed=0", reason="unknown hospital 'H7'; choose from H1, H2, H3, H4, H5")
    ]
    assert not list((tmp_path / "out" / "cells").iterdir())


@pytest.mark.slow
def test_a_failure_that_nobody_foresaw_leaves_its_traceback_in_the_log_of_the_cell(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "study.toml"
    file.write_text(STUDY)
    monkeypatch.setattr(runner, "write_cell", lambda path, _: path.write_text("{}"))
    cells, said = expand(load_study_file(file))[:1], []
    (failure,) = run_cells(cells, tmp_path / "out", None, 1, said.append, lambda *_: None)
    assert failure.reason == "unexpected failure (KeyError in __main__); the cell's log in logs/ shows where; report it"
    log = (tmp_path / "out" / "logs" / f"{cells[0].name}.log").read_text()
    assert log.startswith("Traceback")
    assert "in read_cell" in log
