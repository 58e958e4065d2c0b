from __future__ import annotations

import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.integration.helpers import Ran, alive, start

pytestmark = [
    pytest.mark.integration,
    pytest.mark.skipif(sys.platform == "win32", reason="sessions of processes are a Unix notion"),
]
WORKING = """
import os, sys, time
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from simulation.engine import end_with_parent

with ProcessPoolExecutor(1, mp_context=get_context("spawn"), initializer=end_with_parent) as pool:
    pool.submit(os.getpid).result()
    pool.submit(time.sleep, 600)
    print("working", file=sys.stderr, flush=True)
"""
PATIENCE = 60.0  # seconds; processes that were told to end may need a few on a loaded machine


def wait_for_nobody(session: int) -> list[str]:
    """Processes of a session that do not end."""
    deadline = time.monotonic() + PATIENCE
    while (left := alive(session)) and time.monotonic() < deadline:
        time.sleep(0.2)
    return left


def read_until(process: subprocess.Popen[str], word: str) -> list[str]:
    assert process.stderr is not None
    lines = []
    for line in process.stderr:
        lines.append(line)
        if line.startswith(word):
            return lines
    pytest.fail(f"{word!r} never came: {''.join(lines)}")


def test_a_finished_simulation_leaves_no_process(demo: tuple[Path, Ran]) -> None:
    assert demo[1].code == 0
    assert wait_for_nobody(demo[1].session) == []


def test_an_interrupted_simulation_leaves_no_process_and_only_what_it_needs_to_go_on(tmp_path: Path) -> None:
    """Ctrl-C after the hospitals answered for the first time, when Ray and its workers run."""
    process = start("modaltune-simulate", "demo", "--rounds", 500, "--json", "--out", tmp_path / "run")
    read_until(process, "capability OK")
    during = alive(process.pid)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=10 * PATIENCE)
    assert any("ray::" in line for line in during)  # it was interrupted while hospitals worked
    assert (process.returncode, out) == (130, "")
    assert err.splitlines()[-1].startswith("error: interrupted; no file is half-written")
    assert "Traceback" not in err
    assert wait_for_nobody(process.pid) == []
    assert {path.name for path in tmp_path.iterdir()} <= {".run.partial"}


def test_a_killed_simulation_leaves_none_that_trains_models_for_comparison() -> None:
    command = [sys.executable, "-c", WORKING]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, start_new_session=True) as process:
        read_until(process, "working")
        during = alive(process.pid)
        process.kill()
    assert len(during) > 1
    assert wait_for_nobody(process.pid) == []
