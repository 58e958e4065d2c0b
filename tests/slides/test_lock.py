from __future__ import annotations

import json
import multiprocessing
import os
import platform
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest

from modaltune.slides.lock import locked


def dead_process() -> int:
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    return ended.pid


def test_a_lock_says_who_holds_it_and_goes_away(tmp_path: Path) -> None:
    file = tmp_path / "lock"
    with locked(file) as mine:
        assert mine
        assert json.loads(file.read_text()) == {"pid": os.getpid(), "host": platform.node()}
    assert not file.exists()


def test_a_lock_goes_away_when_the_work_fails(tmp_path: Path) -> None:
    def fail() -> None:
        with locked(tmp_path / "lock"):
            raise ValueError("broken")

    with pytest.raises(ValueError, match="broken"):
        fail()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("owner", [{"pid": os.getppid(), "host": platform.node()}, {"pid": 1, "host": "elsewhere"}])
def test_the_lock_of_a_living_process_or_another_host_is_respected(owner: Mapping[str, object], tmp_path: Path) -> None:
    file = tmp_path / "lock"
    file.write_text(json.dumps(owner))
    with locked(file) as mine:
        assert not mine
    assert json.loads(file.read_text()) == owner


@pytest.mark.parametrize("content", ["", '{"pid": 12', "dead", "restarted container"])
def test_the_lock_of_a_dead_process_is_taken_over(content: str, tmp_path: Path) -> None:
    pids = {"dead": dead_process(), "restarted container": os.getpid()}
    file = tmp_path / "lock"
    file.write_text(json.dumps({"pid": pids[content], "host": platform.node()}) if content in pids else content)
    with locked(file) as mine:
        assert mine
        assert json.loads(file.read_text())["pid"] == os.getpid()
    assert not file.exists()


def contend(file: Path, start: object, log: Path) -> None:
    start.wait()  # type: ignore[attr-defined]
    with locked(file) as mine:
        if mine:
            with log.open("a") as stream:
                stream.write("in\n")
            for _ in range(20):
                os.sched_yield()
            assert json.loads(file.read_text())["pid"] == os.getpid()
            with log.open("a") as stream:
                stream.write("out\n")


def test_of_many_processes_that_find_a_dead_owner_one_at_a_time_goes_on(tmp_path: Path) -> None:
    file, log, context = tmp_path / "lock", tmp_path / "log", multiprocessing.get_context("fork")
    file.write_text(json.dumps({"pid": dead_process(), "host": platform.node()}))
    start = context.Event()
    crowd = [context.Process(target=contend, args=(file, start, log)) for _ in range(8)]
    for process in crowd:
        process.start()
    start.set()
    for process in crowd:
        process.join()
    assert [process.exitcode for process in crowd] == [0] * 8
    words = log.read_text().split()
    assert words == ["in", "out"] * (len(words) // 2)
    assert not file.exists()
